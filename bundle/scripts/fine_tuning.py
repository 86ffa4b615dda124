"""Training that goes on from a bundle's own weights."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.clinical import ClinicalSchema
from scripts.files import replacing
from scripts.runs import check_name


def keep_statistics(schema: ClinicalSchema | None, bundle_root: str, statistics: str) -> None:
    """Give a run the clinical scaling that the bundle's weights know, in place of one fitted on its own patients.

    Args:
        schema: the clinical schema; None for images alone, and nothing is done.
        bundle_root: folder of the bundle, with ``models/clinical.json``.
        statistics: where the run keeps its scaling, a file ``clinical.json``; one that is there stays.

    Raises:
        FileNotFoundError: the bundle has no clinical scaling.
        ValueError: it is not JSON, or is to get another name.
    """
    if schema is None or Path(statistics).is_file():
        return
    check_name(statistics)
    known = Path(bundle_root) / "models" / "clinical.json"
    if not known.is_file():
        raise FileNotFoundError(f"{known} is missing: the weights beside it need the clinical scaling they were given.")
    text = known.read_text(encoding="utf-8")
    json.loads(text)
    with replacing(statistics) as part:
        part.write_text(text, encoding="utf-8")
