"""One version of a network, read and loaded once, with the table that says what is known of the patients."""

from __future__ import annotations

from pathlib import Path

from scripts.clinical import ClinicalTable
from scripts.segment import Segmenter

from monailabel_app.lib.models import Source, read_config, takes_clinical


class Network:
    """A version that segments as `nny infer` does.

    Args:
        source: the network, with weights.
        version: its version.
        clinical: the clinical table, or None; a network without fusion does without.

    Raises:
        ValueError: there are no weights, or those of another network, or a table that is refused.
        FileNotFoundError: a file of the source is missing.
    """

    def __init__(self, source: Source, version: str, clinical: Path | None = None) -> None:
        if source.weights is None:
            raise ValueError(f"{source.name} has no weights yet: train it first.")
        self.version = version
        self.segmenter = Segmenter.of(read_config(source))
        config = read_config(source, clinical)
        self.table: ClinicalTable | None = (
            config.get_parsed_content("clinical_table") if takes_clinical(config) else None
        )

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients of the table."""
        return self.table.patient_ids if self.table else ()
