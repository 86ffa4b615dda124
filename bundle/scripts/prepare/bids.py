"""Imports trees like those of BIDS: images in ``sub-01/…``, label maps of the same entities in ``derivatives``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scripts.datalists import NIFTI, case_name
from scripts.prepare.cohort import Cohort, prepare_cohort, safe_name
from scripts.prepare.folders import class_values
from scripts.prepare.scans import SourceCase, read_case
from scripts.prepare.spreadsheet import Spreadsheet, read_clinical_table

_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")
_OF_LABELS = {"desc", "label", "seg", "space", "res", "den", "atlas", "hemi"}  # entities that images do not have
_NOT_DATA = {"sourcedata", "code", "stimuli"}
ID = "participant_id"


class File(NamedTuple):
    """A file with the entities and the suffix that its name says: ``sub-01_ses-2_T1w`` -> sub 01, ses 2; T1w."""

    path: Path
    entities: dict[str, str]
    suffix: str


def prepare_bids(
    source: str,
    output: str,
    *,
    modality: str | Sequence[str] = "T1w",
    label: str = "dseg",
    names: str | Sequence[str] = "",
    group: str = "",
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Imports a tree like those of BIDS, which keep label maps under derivatives.

    To each label map derivatives/…/sub-01/…/sub-01_…_dseg.nii.gz belong the images sub-01/…/sub-01_…_T1w.nii.gz whose
    entities (sub, ses, run, …) do not contradict it. Images without a label map are left aside. participants.tsv, if
    there is one, becomes clinical.csv. Subjects are the patients.

    Args:
        source: the folder that holds sub-01, sub-02, …
        output: the folder to write.
        modality: suffix of the images; several, separated by commas, become channels: T1w,T2w,FLAIR.
        label: how the names of the label maps end: dseg, mask, label-lesion_mask, desc-manual_dseg, …
        names: of the classes 1, 2, …, separated by commas. Without it those of a dseg.tsv (columns index, name), else
            every value that occurs.
        group: column of participants.tsv that holds each subject's group, such as site.
        folds: number of folds for cross-validation; a patient is in one fold only.
        seed: seed of the folds.
        workers: processes.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        FileNotFoundError: no subjects, or no label maps.
        ValueError: two label maps of the same images, or not a single usable case.
    """
    root = Path(source).expanduser()
    channels = modality.split(",") if isinstance(modality, str) else list(modality)
    channels = [channel.strip() for channel in channels]
    images, labels = find_files(root, channels, label)
    participants = root / "participants.tsv"
    table = read_clinical_table(root, str(participants), id_column=ID) if participants.is_file() else None
    groups = _groups(table, group, participants)
    cases = [_case(file, images, channels, groups) for file in labels]
    classes, values = _classes(root, names, [case.label for case in cases if not case.problem], progress)
    used = {path for case in cases for path in case.images}
    unused = sum(str(image.path) not in used for image in images)
    cohort = Cohort(
        name=root.resolve().name,
        cases=cases,
        labels=classes,
        channels=channels,
        read=partial(read_case, values=values, channels=len(channels)),
        clinical=table,
        notes=[f"{unused} images have no label map and are left aside."] if unused else [],
    )
    return prepare_cohort(
        cohort, output, folds=folds, seed=seed, workers=workers, overwrite=overwrite, progress=progress
    )


def find_files(root: Path, channels: Sequence[str], label: str) -> tuple[list[File], list[File]]:
    """Finds the images of some suffixes, outside of derivatives, and the label maps.

    Args:
        root: the folder that holds the subjects.
        channels: suffixes of images.
        label: how the names of label maps end.

    Returns:
        tuple: images and label maps, sorted.

    Raises:
        FileNotFoundError: none of one of them.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; --source must hold sub-01, sub-02, …")
    images, labels = [], []
    for path in sorted(root.rglob("sub-*")):
        inside = path.relative_to(root).parts
        if not path.name.endswith(NIFTI) or _NOT_DATA & set(inside):
            continue
        name = case_name(path)
        file = File(path, dict(_ENTITY.findall(name)), name.rpartition("_")[2])
        if name.endswith(f"_{label}"):
            labels.append(file)
        elif file.suffix in channels and "derivatives" not in inside:
            images.append(file)
    if not labels or not images:
        what = f"sub-…_{label}.nii.gz" if not labels else f"sub-…_{channels[0]}.nii.gz outside of derivatives"
        raise FileNotFoundError(f"{root} holds no {what}; see --modality and --label")
    return images, labels


def _case(file: File, images: Sequence[File], channels: Sequence[str], groups: dict[str, str]) -> SourceCase:
    """The case of a label map."""
    own = {key: value for key, value in file.entities.items() if key not in _OF_LABELS}
    found, problem = [], ""
    for channel in channels:
        fitting = [i for i in images if i.suffix == channel and _agree(own, i.entities)]
        if len(fitting) > 1:
            fitting = [i for i in fitting if i.entities == own] or fitting
        if len(fitting) != 1:
            there = f": {', '.join(i.path.name for i in fitting)}" if fitting else ""
            problem = problem or f"{file.path} fits {len(fitting)} images *_{channel}.nii.gz{there}; expected one"
        found += [str(i.path) for i in fitting[:1]]
    subject = f"sub-{own.get('sub', '')}"
    name = safe_name("_".join(f"{key}-{value}" for key, value in own.items()))
    return SourceCase(name, subject, tuple(found), str(file.path), groups.get(subject, ""), problem=problem)


def _agree(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether entities name the same subject and session, and contradict each other in nothing else."""
    same = all(one.get(key) == other.get(key) for key in ("sub", "ses"))
    return same and all(one[key] == other[key] for key in one.keys() & other.keys())


def _groups(table: Spreadsheet | None, column: str, path: Path) -> dict[str, str]:
    if not column:
        return {}
    if table is None or column not in table.header:
        raise ValueError(f"{path} has no column {column!r} for --group; it has {table.header if table else 'no rows'}")
    at = table.header.index(column)
    return {subject: str(row[at]) for subject, row in table.rows.items() if at < len(row)}


def _classes(
    root: Path, names: str | Sequence[str], labels: Sequence[str], progress: bool
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names and values: as given, of a table of them, or as they occur."""
    tables = [] if names else sorted(root.rglob("*dseg.tsv"))
    if not tables:
        return class_values(names, labels, progress)
    table = pd.read_csv(tables[0], sep="\t", dtype=str)
    if not {"index", "name"} <= set(table.columns):
        raise ValueError(f"{tables[0]} has the columns {list(table.columns)}; expected index and name")
    known = {int(row["index"]): row["name"] for row in table.to_dict("records")} | {0: "background"}
    order = sorted(known)
    return tuple(known[value] for value in order), {value: i for i, value in enumerate(order)}
