"""Imports a folder of images with a folder of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.datalists import case_name
from scripts.dicom import CaseError
from scripts.prepare.cohort import Cohort, prepare_cohort, safe_name
from scripts.prepare.formats import clinical_table, patient_of
from scripts.prepare.scans import SourceCase, load_volume, read_case

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_ROLE = r"images?|img|volume|ct|mri?|labels?|lbl|masks?|seg|segmentation|gt|0000"
_STRIP = re.compile(rf"^(?:{_ROLE})(?:[_-](?=.)|(?=\d))|[_-](?:{_ROLE})$", re.I)
_MAX_CLASSES = 255


def prepare_folders(
    images: str,
    labels: str,
    output: str,
    *,
    names: str | Sequence[str] = "",
    modality: str = "image",
    patient: str = "",
    clinical: str | None = None,
    id_column: str = "patient_id",
    folds: int = 5,
    seed: int = 0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Imports a folder of images and a folder of label maps (NIfTI, NRRD or MetaImage) that are named alike.

    case7.nii.gz belongs to case7.nii.gz, case7_seg.nii.gz, label_case7.nii.gz and so on: words for image and label at
    the beginning or end of a name do not count. An image without a label, or the reverse, is reported as broken.

    Args:
        images: the folder of images, searched at any depth.
        labels: the folder of label maps.
        output: the folder to write.
        names: of the classes 1, 2, … of the label maps, separated by commas. Without it every label map is read first
            for the values that occur: {0, 255} becomes background and "label 255".
        modality: what the images are; CT means Hounsfield units.
        patient: regular expression for the patient in a case's name, e.g. "^(\\w+?)_"; by default each case is of a
            patient of its own.
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
        FileNotFoundError: a folder without images.
        ValueError: two files of one name, or not a single usable case.
    """
    pair = [volumes_by_name(Path(folder).expanduser()) for folder in (images, labels)]
    cases = []
    for name in sorted(pair[0] | pair[1]):
        image, label = (found.get(name) for found in pair)
        case = case_name(image or label).removesuffix("_0000")
        problem = "" if image and label else f"{image or label} has no {'label' if image else 'image'} of that name"
        files = (str(image),) if image else ()
        cases.append(SourceCase(safe_name(case), patient_of(case, patient), files, str(label or ""), problem=problem))
    classes, values = class_values(names, [case.label for case in cases if not case.problem], progress)
    root = Path(images).expanduser()
    cohort = Cohort(
        name=root.resolve().parent.name,
        cases=cases,
        labels=classes,
        channels=(modality,),
        read=partial(read_case, values=values),
        clinical=clinical_table(root, clinical, id_column),
    )
    return prepare_cohort(
        cohort, output, folds=folds, seed=seed, workers=workers, overwrite=overwrite, progress=progress
    )


def volumes_by_name(folder: Path) -> dict[str, Path]:
    """Finds the volumes of a folder by what their names say beside ``image``, ``label``, ``seg``, ….

    Raises:
        FileNotFoundError: none.
        ValueError: two of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith(ENDINGS) or path.name.startswith("."):
            continue
        name = bare_name(path)
        if name in found:
            raise ValueError(f"{found[name]} and {path} are both named {name}; rename one")
        found[name] = path
    if not found:
        raise FileNotFoundError(f"{folder} holds no volume ({', '.join(ENDINGS)})")
    return found


def bare_name(path: Path) -> str:
    """The name of a file without its ending and words for image or label: ``img_case7_0000.nii.gz`` -> ``case7``."""
    name, before = case_name(path), ""
    while name != before:
        before, name = name, _STRIP.sub("", name)
    return name


def class_values(
    names: str | Sequence[str], labels: Sequence[str], progress: bool
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Decides on the classes of label maps that no description comes with.

    Args:
        names: of the classes 1, 2, …, separated by commas; empty: every value that occurs is a class.
        labels: the files, read only without ``names``.
        progress: show a progress bar.

    Returns:
        tuple: class names, background first; value in the files -> class.

    Raises:
        ValueError: too many values, or values that are no whole numbers.
    """
    given = [n.strip() for n in names.split(",")] if isinstance(names, str) else [str(n).strip() for n in names]
    given = [name for name in given if name and name != "background"]
    if given:
        return ("background", *given), {i: i for i in range(len(given) + 1)}
    values: set[float] = {0}
    for path in tqdm(labels, "reading the values of the labels", disable=not progress):
        try:
            values |= set(np.unique(load_volume(path)[0]).tolist())
        except CaseError:
            continue  # reported with its case
    if len(values) - 1 > _MAX_CLASSES or not all(float(value).is_integer() for value in values):
        raise ValueError(
            f"the label maps hold {len(values)} values, such as {sorted(values)[-3:]}; expected whole numbers for at "
            f"most {_MAX_CLASSES} classes. Are these images instead of labels?"
        )
    order = sorted(int(value) for value in values - {0})
    return ("background", *(f"label {value}" for value in order)), {0: 0} | {v: i for i, v in enumerate(order, 1)}
