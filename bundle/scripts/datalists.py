"""Lists of cases: read, completed, split by patient, and checked before anything expensive starts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.folds import assign_folds

Case = dict[str, Any]
NIFTI = (".nii.gz", ".nii")


def case_name(path: str | Path) -> str:
    """Name of a case after its image file: the file name without its (double) suffix."""
    return re.sub(r"\.(nii\.gz|nii|nrrd|mha|mhd|dcm)$", "", Path(path).name)


def patient_name(case: str) -> str:
    """Name of a patient after a case: frames of one scan, ``patient001_frame12``, are of one patient."""
    return re.sub(r"_frame\d+$", "", case)


def read_datalist(dataset_dir: str | Path, *, folds: int = 5, seed: int = 0) -> list[Case]:
    """Read the labelled cases of a dataset folder in the layout of the Medical Segmentation Decathlon.

    ``case_id`` defaults to the name of the image file and ``patient_id`` to that name without ``_frame<number>``;
    where no case has a ``fold``, patients are dealt to `folds` folds in an order that depends on their ids and `seed`
    only.

    Args:
        dataset_dir: folder that holds ``dataset.json``.
        folds: number of folds to deal when the file has none, >= 2.
        seed: seed of that deal.

    Returns:
        Cases with absolute ``image`` and ``label``, ``case_id``, ``patient_id``, ``fold`` and ``group``.

    Raises:
        FileNotFoundError: no ``dataset.json`` there.
        ValueError: it has no training cases, repeats a case, or lacks an image or label entry.
    """
    root = Path(dataset_dir).expanduser().resolve()
    file = root / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Give the folder that `prepare` wrote (--dataset_dir).")
    entries = json.loads(file.read_text()).get("training", [])
    if not entries:
        raise ValueError(f"{file} lists no case under 'training'.")
    cases = [_complete(entry, root, file) for entry in entries]
    names = [case["case_id"] for case in cases]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} lists these cases more than once: {', '.join(repeated)}.")
    if all(case["fold"] is None for case in cases):
        fold_of = assign_folds((case["patient_id"] for case in cases), folds=folds, seed=seed)
        for case in cases:
            case["fold"] = fold_of[case["patient_id"]]
    missing = [case["case_id"] for case in cases if case["fold"] is None]
    if missing:
        raise ValueError(f"{file} gives a fold to some cases but not to {', '.join(missing)}.")
    return cases


def about(dataset_dir: str | Path) -> dict[str, Any]:
    """What a dataset says of itself: name, description, modality, licence, labels; not its cases.

    Args:
        dataset_dir: folder that holds ``dataset.json``.

    Returns:
        The file's content without lists.
    """
    content = json.loads((Path(dataset_dir).expanduser() / "dataset.json").read_text())
    return {key: value for key, value in content.items() if not isinstance(value, list)}


def _complete(entry: Case, root: Path, file: Path) -> Case:
    for key in ("image", "label"):
        if not entry.get(key):
            raise ValueError(f"{file}: the entry {entry} has no '{key}'.")
    case = {"fold": None, "group": ""} | entry
    case |= {key: str(root / entry[key]) for key in ("image", "label")}
    case["case_id"] = entry.get("case_id") or case_name(entry["image"])
    case["patient_id"] = entry.get("patient_id") or patient_name(case["case_id"])
    return case


def split(cases: Sequence[Case], fold: int) -> dict[str, list[Case]]:
    """Split cases into training and held-out ones.

    Args:
        cases: cases with ``fold`` and ``patient_id``.
        fold: the fold to hold out.

    Returns:
        ``{"training": [...], "validation": [...]}``.

    Raises:
        ValueError: an unknown fold, nothing left to train on, or a patient in both parts.
    """
    parts: dict[str, list[Case]] = {"training": [], "validation": []}
    for case in cases:
        parts["validation" if case["fold"] == fold else "training"].append(case)
    known = sorted({case["fold"] for case in cases})
    if not parts["validation"] or not parts["training"]:
        raise ValueError(
            f"Fold {fold} leaves {len(parts['training'])} cases to train on and "
            f"{len(parts['validation'])} to validate on; the datalist has folds {known}."
        )
    shared = {c["patient_id"] for c in parts["training"]} & {c["patient_id"] for c in parts["validation"]}
    if shared:
        raise ValueError(f"These patients are in fold {fold} and in another one: {', '.join(sorted(shared))}.")
    return parts


def part(dataset_dir: str | Path, fold: int, name: str) -> list[Case]:
    """The training or validation cases of a dataset folder, for configurations.

    Args:
        dataset_dir: folder that holds ``dataset.json``.
        fold: the fold to hold out.
        name: ``training`` or ``validation``.

    Returns:
        Cases as of `read_datalist`.
    """
    return split(read_datalist(dataset_dir), fold)[name]


def evaluation_cases(dataset_dir: str | Path, fold: int | None) -> list[Case]:
    """The cases to score: a fold of a dataset folder, or all of them.

    The label goes under ``reference``, because it must stay on its original grid, unseen by preprocessing.

    Args:
        dataset_dir: folder that holds ``dataset.json``.
        fold: the held-out fold; None or -1 scores every case.

    Returns:
        Cases with ``image``, ``reference`` (the label's path) and ``file`` (the image's path).
    """
    cases = read_datalist(dataset_dir)
    if fold is not None and fold >= 0:
        cases = split(cases, fold)["validation"]
    return [{k: v for k, v in case.items() if k != "label"} | _sources(case) for case in cases]


def _sources(case: Case) -> dict[str, str]:
    """Paths that no transform replaces."""
    return {"file": case["image"], "reference": case["label"]}


def inference_cases(source: str | Path) -> list[Case]:
    """Find the images to segment: a file, a prepared dataset, a DICOM series, or a folder of files or series.

    Args:
        source: a NIfTI (or other ITK) file, a folder that `prepare` wrote, a folder of NIfTI files, a folder holding
            the slices of one DICOM series, or a folder of such folders.

    Returns:
        Cases with ``image``, ``case_id`` and ``patient_id`` (of ``dataset.json``, or the DICOM PatientID, else the
        case's name).

    Raises:
        FileNotFoundError: nothing there that can be read.
        ValueError: two images of the same name, or DICOM folders that cannot be read as one volume.
    """
    source = Path(source).expanduser().resolve()
    if source.is_file():
        return [_file_case(source)]
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} does not exist; expected an image file or a folder of images (--dataset_dir)."
        )
    if (source / "dataset.json").is_file() and (source / "imagesTr").is_dir():
        return [{key: case[key] for key in ("image", "case_id", "patient_id")} for case in read_datalist(source)]
    cases = [_file_case(file) for file in sorted(source.iterdir()) if file.name.endswith(NIFTI)]
    if not cases:
        from scripts.dicom_series import series_cases  # here, as pydicom is needed for nothing else

        cases = series_cases(source)
    if not cases:
        raise FileNotFoundError(f"{source} holds no NIfTI file and no DICOM series.")
    return _distinct(cases)


def _file_case(path: Path) -> Case:
    name = case_name(path)
    return {"image": str(path), "case_id": name, "patient_id": patient_name(name)}


def _distinct(cases: list[Case]) -> list[Case]:
    """The cases; ValueError when two have one name, because the mask of the second would replace the first one's."""
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.setdefault(case["case_id"], case["image"])
        if other != case["image"]:
            raise ValueError(
                f"{other} and {case['image']} are both named {case['case_id']}, and so would their masks. Rename or "
                "remove one of them."
            )
    return cases


def check_cases(cases: Sequence[Case], labels: Sequence[str], *, workers: int = 2) -> None:
    """Check that every image and label can be trained on, and name each file that cannot.

    Args:
        cases: cases with ``image`` and ``label`` paths.
        labels: class names; label files may hold the values 0 … len(labels) - 1.
        workers: files that are read at the same time.

    Raises:
        ValueError: all problems found, one a line: missing or unreadable files, a label on another grid than its
            image, values outside the declared classes, NaN voxels, labels without foreground.
    """
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda case: _problems(case, labels), cases)
        problems = [line for lines in tqdm(found, "checking cases", len(cases), leave=False) for line in lines]
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in the data, nothing was started:\n" + "\n".join(problems))


def _problems(case: Case, labels: Sequence[str]) -> list[str]:
    volumes = {}
    problems = []
    for key in ("image", "label"):
        path = Path(case[key])
        if not path.exists():
            problems.append(f"{path}: no such file.")
            continue
        try:
            volume = nib.load(path)
            volumes[key] = (np.asanyarray(volume.dataobj), volume.affine)
        except Exception as error:  # whatever a damaged file makes the reader raise
            problems.append(f"{path}: cannot be read ({error}).")
    if len(volumes) < 2:
        return problems
    (image, image_affine), (label, label_affine) = volumes["image"], volumes["label"]
    size = image.shape[: label.ndim]
    if label.shape != size or not np.allclose(image_affine, label_affine, atol=1e-3):
        problems.append(
            f"{case['label']}: is on another grid than its image (shape {label.shape}, origin "
            f"{np.round(label_affine[:3, 3], 2).tolist()}; expected shape {size}, origin "
            f"{np.round(image_affine[:3, 3], 2).tolist()} of {case['image']}). Resample it to the image."
        )
    if not np.isfinite(image).all():
        problems.append(f"{case['image']}: {int((~np.isfinite(image)).sum())} voxels are NaN or infinite.")
    values = np.unique(label)
    wrong = [value for value in values.tolist() if value not in range(len(labels))]
    if wrong:
        problems.append(
            f"{case['label']}: holds value {wrong[0]:g}, but {len(labels)} classes are declared "
            f"(0..{len(labels) - 1}: {', '.join(labels)}). Correct the label or the dataset overlay."
        )
    elif not values.any():
        problems.append(f"{case['label']}: is empty, every voxel is background. Drop the case or add its mask.")
    return problems
