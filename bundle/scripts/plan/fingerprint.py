"""The fingerprint of a dataset: what its training cases are like, without a look at the held-out ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts import datalists
from scripts.plan.measure import VERSION, Job, known_record, measure_case
from scripts.prepare.formats import channels_of
from scripts.prepare.output import run_in_parallel
from scripts.prepare.status import fingerprint
from scripts.regions import region_matrices

FOLDER = ".fingerprint"


@dataclass(frozen=True)
class Fingerprint:
    """What is known of a dataset's training cases.

    Attributes:
        name: of the dataset.
        folder: where it lies.
        fold: the held-out fold; none of its cases was opened.
        held_out: number of its cases.
        labels: class names, background first.
        channels: what the dataset says that each channel is.
        regions: overlapping unions of classes that it declares: name -> values.
        cases: the training cases of the datalist.
        records: what was measured of each, in the same order.
    """

    name: str
    folder: Path
    fold: int
    held_out: int
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    regions: dict[str, list[int]]
    cases: tuple[dict[str, Any], ...]
    records: tuple[dict[str, Any], ...]

    @property
    def spacings(self) -> np.ndarray:
        """Voxel sizes (cases, 3), mm; R, A, S."""
        return np.array([record["spacing"] for record in self.records], float)

    @property
    def shapes(self) -> np.ndarray:
        """Voxels along each axis (cases, 3); R, A, S."""
        return np.array([record["shape"] for record in self.records], float)

    def grey(self, channel: int, name: str) -> np.ndarray:
        """One measure of `scripts.plan.measure.grey_values` of each case."""
        return np.array([record["channels"][channel][name] for record in self.records], float)

    def foreground(self, channel: int) -> np.ndarray:
        """Labelled voxels of all cases, the same number of each."""
        return np.concatenate([record["channels"][channel]["foreground"] for record in self.records])

    def of_class(self, value: int) -> list[dict[str, Any]]:
        """What was measured of a class, in the cases that hold it."""
        return [record["classes"][str(value)] for record in self.records if str(value) in record["classes"]]


def take_fingerprint(
    dataset: str | Path, fold: int, store: str | Path, *, workers: int = 2, progress: bool = True
) -> Fingerprint:
    """Measure the training cases of a prepared dataset; what was measured before, of the same files, is taken over.

    Args:
        dataset: the folder that `prepare` wrote, or its ``dataset.json``.
        fold: the fold to hold out: its files are not opened.
        store: folder for the records, one JSON file a case.
        workers: processes.
        progress: show a progress bar.

    Returns:
        The fingerprint.

    Raises:
        FileNotFoundError: no ``dataset.json``.
        ValueError: no class names, regions that do not tell them apart, an unknown fold, or files that cannot be
            trained on, each with its problem.
    """
    folder = dataset_folder(dataset)
    about = _description(folder)
    labels = class_names(about.get("labels"), folder / "dataset.json")
    regions = region_values(about.get("regions"), len(labels), folder / "dataset.json")
    parts = datalists.split(datalists.read_datalist(folder), fold)
    training = parts["training"]
    jobs = {case["case_id"]: _job(case, len(labels), Path(store)) for case in training}
    known = {name: known_record(job.record, job.key) for name, job in jobs.items()}
    todo = {name: job for name, job in jobs.items() if known[name] is None}
    datalists.check_cases([case for case in training if case["case_id"] in todo], labels)
    known |= run_in_parallel(measure_case, todo, workers=workers, progress=progress, description="fingerprint")
    records = tuple(known[case["case_id"]] for case in training)
    counts = sorted({len(record["channels"]) for record in records})
    if len(counts) > 1:
        raise ValueError(f"The images of {folder} have {counts} channels; expected the same number in every case.")
    return Fingerprint(
        name=str(about.get("name") or folder.name),
        folder=folder,
        fold=fold,
        held_out=len(parts["validation"]),
        labels=labels,
        channels=_channels(about, counts[0]),
        regions=regions,
        cases=tuple(training),
        records=records,
    )


def dataset_folder(dataset: str | Path) -> Path:
    """Folder of a dataset that is given as a folder or as its ``dataset.json``.

    Raises:
        FileNotFoundError: nothing of the kind.
    """
    given = Path(dataset).expanduser().resolve()
    folder = given.parent if given.is_file() else given
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{given} is no dataset: there is no dataset.json. Import images with `nny prepare` (folders, nnunet, msd, "
            "bids, …), and give --dataset the folder that it wrote."
        )
    return folder


def class_names(labels: Any, file: Path) -> tuple[str, ...]:
    """Class names, background first, of ``{value: name}``.

    Raises:
        ValueError: no such mapping, or values with gaps.
    """
    known = {int(k): str(v) for k, v in labels.items() if str(k).isdigit()} if isinstance(labels, dict) else {}
    if len(known) < 2 or sorted(known) != list(range(len(known))) or len(known) != len(labels):
        raise ValueError(
            f"{file}: labels are {labels!r}; expected value -> name for 0 (background), 1, 2, … without gaps. "
            "`nny prepare msd` or `nny prepare nnunet` writes the dataset so."
        )
    return tuple(known[value] for value in range(len(known)))


def region_values(regions: Any, classes: int, file: Path) -> dict[str, list[int]]:
    """Overlapping regions of ``{name: values}``; none where the dataset declares none.

    Raises:
        ValueError: regions that a network with one output for each class cannot be trained on.
    """
    found = {str(name): [int(value) for value in values] for name, values in (regions or {}).items()}
    try:
        if found:
            region_matrices(found)
        if found and len(found) != classes - 1:
            raise ValueError(f"There are {len(found)} regions for {classes - 1} foreground classes; expected as many.")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return found


def _description(folder: Path) -> dict[str, Any]:
    try:
        return datalists.about(folder)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{folder / 'dataset.json'} is not the JSON of a dataset: {error}") from error


def _channels(about: dict[str, Any], count: int) -> tuple[str, ...]:
    """What the dataset says that its channels are, as many as its images have."""
    said: Sequence[str] = channels_of(about)
    return tuple(said) if len(said) == count else tuple(f"channel {i}" for i in range(count))


def _job(case: dict[str, Any], classes: int, store: Path) -> Job:
    image, label = Path(case["image"]), Path(case["label"])
    there = [path for path in (image, label) if path.is_file()]
    key = fingerprint(there, (VERSION, classes, str(image)))
    return Job(case["case_id"], str(image), str(label), classes, key, str(store / f"{case['case_id']}.json"))
