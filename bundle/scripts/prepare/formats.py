"""Imports two formats that many datasets come in: the Medical Segmentation Decathlon's, and nnU-Net's raw data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scripts.datalists import case_name, patient_name
from scripts.prepare.cohort import Cohort, prepare_cohort, safe_name
from scripts.prepare.scans import SourceCase, read_case
from scripts.prepare.spreadsheet import Spreadsheet, read_clinical_table


def prepare_msd(
    source: str,
    output: str,
    *,
    patient: str = "",
    clinical: str | None = None,
    id_column: str = "patient_id",
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Imports a dataset of the Medical Segmentation Decathlon, or any other with such a dataset.json.

    Every image and label listed under `training` is read, checked and written again with its geometry unchanged.
    Entries may carry `case_id`, `patient_id`, `fold` and `group`; else patients are dealt into folds.

    Args:
        source: the folder with dataset.json, or that file.
        output: the folder to write.
        patient: regular expression for the patient in a case's name, e.g. "^(\\w+?)_"; by default each case is of a
            patient of its own, but for names such as patient001_frame12.
        clinical: table (xlsx or csv) with the patients' clinical variables.
        id_column: its column with the patients' ids.
        folds: number of folds for cross-validation; a patient is in one fold only.
        seed: seed of the folds.
        workers: processes.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        FileNotFoundError: no dataset.json.
        ValueError: a dataset.json that cannot be used, or not a single usable case.
    """
    root, content = read_description(source)
    classes = classes_of(content.get("labels"), root)
    entries = content.get("training")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("image") for e in entries):
        raise ValueError(f"{root}/dataset.json needs a list `training` of entries with `image` and `label`")
    cases = []
    for entry in entries:
        name = str(entry.get("case_id") or case_name(entry["image"]))
        cases.append(
            SourceCase(
                case_id=safe_name(name),
                patient_id=str(entry.get("patient_id") or patient_of(name, patient)),
                images=(str(root / entry["image"]),),
                label=str(root / entry["label"]) if entry.get("label") else "",
                group=str(entry.get("group") or ""),
                fold=entry.get("fold"),
                problem="" if entry.get("label") else f"dataset.json names no label for {entry['image']}",
            )
        )
    cohort = _cohort(root, content, cases, classes, clinical_table(root, clinical, id_column))
    return prepare_cohort(
        cohort, output, folds=folds, seed=seed, workers=workers, overwrite=overwrite, progress=progress
    )


def prepare_nnunet(
    source: str,
    output: str,
    *,
    patient: str = "",
    clinical: str | None = None,
    id_column: str = "patient_id",
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Imports raw data of nnU-Net, version 1 (Task001_Name) or 2 (Dataset001_Name), with one file a channel.

    Files are imagesTr/<case>_0000.nii.gz, _0001, … and labelsTr/<case>.nii.gz, or what `file_ending` and `dataset` of
    dataset.json say. Labels that are regions (lists of values) become nested classes and `regions`.

    Args:
        source: the folder with dataset.json, imagesTr and labelsTr.
        output: the folder to write.
        patient: regular expression for the patient in a case's name, e.g. "^(\\w+?)_"; by default each case is of a
            patient of its own, but for names such as patient001_frame12.
        clinical: table (xlsx or csv) with the patients' clinical variables.
        id_column: its column with the patients' ids.
        folds: number of folds for cross-validation; a patient is in one fold only.
        seed: seed of the folds.
        workers: processes.
        overwrite: make every case again, also the finished ones.
        progress: show a progress bar.

    Returns:
        dict: `output`, `kept` (cases), `broken` (case -> reason), `resumed` (cases done before), `report`.

    Raises:
        FileNotFoundError: no dataset.json.
        ValueError: a dataset.json that cannot be used, or not a single usable case.
    """
    root, content = read_description(source)
    labels, regions = _nnunet_labels(content, root)
    classes = classes_of(labels, root)
    regions = {name: [classes[1][v] for v in of] for name, of in regions.items()}
    files = _nnunet_files(root, content)
    cases = [
        SourceCase(safe_name(name), patient_of(name, patient), tuple(map(str, images)), str(label))
        for name, (images, label) in sorted(files.items())
    ]
    cohort = _cohort(root, content, cases, classes, clinical_table(root, clinical, id_column), regions=regions)
    return prepare_cohort(
        cohort, output, folds=folds, seed=seed, workers=workers, overwrite=overwrite, progress=progress
    )


def read_description(source: str) -> tuple[Path, dict[str, Any]]:
    """Reads ``dataset.json``; returns its folder and what it says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or no mapping.
    """
    given = Path(source).expanduser()
    file = given if given.is_file() else given / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; --source must be the folder that holds dataset.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected a mapping with labels and training")
    return file.parent, content


def classes_of(labels: object, root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Turns ``{value: name}`` into class names without gaps.

    Args:
        labels: value (a number or its text) -> name.
        root: the dataset's folder, for messages.

    Returns:
        tuple: names in the order of their values, background first; value in the files -> class.

    Raises:
        ValueError: no mapping of numbers to names, or none of them 0.
    """
    try:
        known = {int(value): str(name) for value, name in dict(labels).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{root}/dataset.json: labels are {labels!r}; expected value -> name, 0 background") from error
    if 0 not in known or len(known) < 2:
        raise ValueError(f"{root}/dataset.json: labels have the values {sorted(known)}; expected 0 and at least 1 more")
    order = sorted(known)
    return tuple(known[v] for v in order), {value: i for i, value in enumerate(order)}


def patient_of(name: str, pattern: str) -> str:
    """The patient of a case: what a regular expression finds in its name (its first group, if it has one)."""
    if not pattern:
        return patient_name(name)
    found = re.search(pattern, name)
    if found is None:
        raise ValueError(f"--patient {pattern!r} finds nothing in the case's name {name!r}")
    return found[1] if found.re.groups else found[0]


def channels_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """What each channel is, of ``channel_names`` (nnU-Net 2) or ``modality``; ``image`` if nothing is said."""
    names = content.get("channel_names") or content.get("modality") or {"0": "image"}
    names = names if isinstance(names, dict) else {"0": str(names)}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def clinical_table(root: Path, path: str | None, id_column: str) -> Spreadsheet | None:
    """The table that the user names, or None."""
    return None if path is None else read_clinical_table(root, path, id_column=id_column)


def _nnunet_labels(content: Mapping[str, Any], root: Path) -> tuple[dict[int, str], dict[str, list[int]]]:
    """Value -> name, and regions -> values; of version 1 (value -> name) or 2 (name -> value or values)."""
    labels = content.get("labels") or {}
    if all(str(key).isdigit() for key in labels):
        return {int(key): str(name) for key, name in labels.items()}, {}
    if "ignore" in labels:
        raise ValueError(f"{root}/dataset.json has an ignore label, which is not supported; drop it or those cases")
    regions = {n: [int(v) for v in (of if isinstance(of, list) else [of])] for n, of in labels.items()}
    regions.pop("background", None)
    names = {0: "background"} | {v: f"class {v}" for of in regions.values() for v in of}
    if all(len(of) == 1 for of in regions.values()):
        return names | {of[0]: name for name, of in regions.items()}, {}
    for (name, of), value in zip(regions.items(), content.get("regions_class_order") or [], strict=False):
        names[int(value)] = name if of == [int(value)] else f"{name} only"
    return names, regions


def _nnunet_files(root: Path, content: Mapping[str, Any]) -> dict[str, tuple[list[Path], Path]]:
    """Case -> files of its channels, and its label; files that should be there but are not are named, too."""
    if content.get("dataset"):
        return {n: ([root / i for i in e["images"]], root / e["label"]) for n, e in content["dataset"].items()}
    ending = str(content.get("file_ending", ".nii.gz"))
    count = len(channels_of(content))
    labels = {p.name.removesuffix(ending) for p in (root / "labelsTr").glob(f"[!.]*{ending}")}
    images = {p.name.removesuffix(ending) for p in (root / "imagesTr").glob(f"[!.]*_[0-9][0-9][0-9][0-9]{ending}")}
    names = labels | {name[:-5] for name in images}
    if not names:
        raise FileNotFoundError(f"{root} holds no imagesTr/<case>_0000{ending} and no labelsTr/<case>{ending}")
    return {
        name: (
            [root / "imagesTr" / f"{name}_{i:04d}{ending}" for i in range(count)],
            root / "labelsTr" / f"{name}{ending}",
        )
        for name in names
    }


def _cohort(
    root: Path,
    content: Mapping[str, Any],
    cases: list[SourceCase],
    classes: tuple[tuple[str, ...], dict[int, int]],
    clinical: Spreadsheet | None,
    regions: dict[str, list[int]] | None = None,
) -> Cohort:
    """The cohort of a ``dataset.json``, with its classes as of `classes_of`."""
    names, values = classes
    channels = channels_of(content)
    return Cohort(
        name=str(content.get("name") or root.resolve().name),
        cases=cases,
        labels=names,
        channels=channels,
        read=partial(read_case, values=values, channels=len(channels)),
        description=str(content.get("description") or ""),
        regions=regions or {},
        more={key: content[key] for key in ("licence", "license", "reference", "release") if content.get(key)},
        clinical=clinical,
    )
