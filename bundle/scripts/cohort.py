"""Segments a cohort in one process or in many: each case once, each mask whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from scripts.datalists import Case
from scripts.ensemble import Ensemble
from scripts.terms import as_json, read_terms, write_terms

RECORD = "inference.json"  # what made the masks of a folder
NAMES = ("model.pt", "inference.yaml", "clinical.json")  # what a network's answer depends on
MASK, PROBABILITIES = "_seg.nii.gz", "_probabilities.nii.gz"


def begin(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Write down what makes the masks of a folder; if something else made those that are there, they count no more.

    Args:
        folder: of the masks.
        made_by: weights, clinical table and settings.
    """
    if as_json(read_terms(folder / RECORD)) != as_json(made_by):
        write_terms(folder / RECORD, made_by)


def open_cases(cases: Sequence[Case], folder: Path, probabilities: bool = False) -> list[Case]:
    """The cases whose masks are still to be made: they are missing, or older than their image or than the record.

    Args:
        cases: of `scripts.datalists.inference_cases`.
        folder: of the masks, after `begin`.
        probabilities: these are wanted, too.

    Returns:
        Cases, in order.
    """
    since = (folder / RECORD).stat().st_mtime_ns
    wanted = (MASK, PROBABILITIES) if probabilities else (MASK,)

    def finished(case: Case) -> bool:
        files = [folder / f"{case['case_id']}{suffix}" for suffix in wanted]
        if not all(file.is_file() for file in files):
            return False
        image = Path(str(case["image"]))
        newest = max(since, image.stat().st_mtime_ns) if image.exists() else since
        return min(file.stat().st_mtime_ns for file in files) >= newest

    return [case for case in cases if not finished(case)]


def identity(source: str, runs: Sequence[Path], clinical: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes masks: images by their place, networks and clinical table by the sums of their files, and settings.

    Args:
        source: path of the images.
        runs: folders of runs or bundles, or zips.
        clinical: path of a table.
        settings: ids of the configuration.

    Returns:
        Plain values.
    """
    own = [f"{folder}{name}" for folder in ("", "models/", "configs/") for name in NAMES]
    networks = {
        str(run): {name: _sum(run / name) for name in own if (run / name).is_file()} or _sum(run) for run in runs
    }
    table = None if clinical is None else {"path": str(clinical), "sha256": _sum(Path(clinical))}
    said = {name: str(value) for name, value in settings.items()}
    return {"source": source, "networks": networks, "clinical": table, "settings": said}


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A folder of this process alone, beside the finished masks, where the next ones are made."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as place:
        yield Path(place)


class Delivery:
    """Handler that moves the files of a case to their place when all of them are written, the mask last.

    Args:
        source: where they are written, a folder of this process alone on the same file system.
        target: where they belong.
    """

    def __init__(self, *, source: str, target: str) -> None:
        self.source, self.target = Path(source), Path(target)

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self) -> None:
        """Move what is there."""
        for file in sorted(self.source.iterdir(), key=lambda file: file.name.endswith(MASK)):
            os.replace(file, self.target / file.name)


def segment_cases(ensemble: Ensemble, cases: Sequence[Case], folder: Path, probabilities: bool = False) -> None:
    """Write the masks of several networks together.

    Args:
        ensemble: the networks.
        cases: of `scripts.datalists.inference_cases`.
        folder: where to: ``<case>_seg.nii.gz`` and, if wanted, ``<case>_probabilities.nii.gz``.
        probabilities: write these, too.
    """
    for case in tqdm(cases, desc="cases"):
        found = ensemble.of_case(case, probabilities=probabilities)
        if probabilities:
            found.save(folder / f"{case['case_id']}{PROBABILITIES}", "probabilities")
        found.save(folder / f"{case['case_id']}{MASK}")


def _sum(file: Path) -> str | None:
    """SHA-256 of a file; None for a folder."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
