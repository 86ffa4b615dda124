"""Writes a prepared dataset: NIfTI pairs, datalist, clinical table; each file appears whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.files import PART, replacing

IMAGES, LABELS_FOLDER = "imagesTr", "labelsTr"


@dataclass(frozen=True)
class NiftiCase:
    """One line of the datalist; the files are ``imagesTr/<case_id>.nii.gz`` and ``labelsTr/<case_id>.nii.gz``."""

    case_id: str
    patient_id: str
    fold: int
    group: str = ""


def remove_leftovers(output: Path) -> None:
    """Removes temporary files that an interrupted run left in ``output``."""
    for folder in (output, output / IMAGES, output / LABELS_FOLDER, output / ".prepare"):
        for part in folder.glob(f".*{PART}"):
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as JSON, replacing the file in one step."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def nifti_paths(output: Path, case_id: str) -> tuple[Path, Path]:
    """Returns the image's and the label's path of a case."""
    name = f"{case_id}.nii.gz"
    return output / IMAGES / name, output / LABELS_FOLDER / name


def write_nifti_pair(output: Path, case_id: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    """Writes a case's image and label on one grid.

    The bytes depend on the content alone (no time of writing), the label comes first, and neither is ever seen
    half-written.

    Args:
        output: the dataset folder.
        case_id: name of the case.
        image: int16 or float32 (X, Y, Z) or, with several channels, (X, Y, Z, C).
        label: uint8 (X, Y, Z).
        affine: 4x4, voxel indices to RAS millimetres.

    Raises:
        ValueError: the two shapes differ.
    """
    if image.shape[:3] != label.shape:
        raise ValueError(f"{case_id}: the image is {image.shape} and the label {label.shape}; they must be on one grid")
    image_path, label_path = nifti_paths(output, case_id)
    for path, data in ((label_path, label), (image_path, image)):
        nifti = nib.Nifti1Image(data, affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_qform(affine, code=1)  # 1 = scanner coordinates
        nifti.set_sform(affine, code=1)
        with (
            replacing(path) as part,
            open(part, "wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=4, mtime=0) as packed,
        ):
            packed.write(nifti.to_bytes())


def write_dataset_json(
    output: Path,
    cases: Sequence[NiftiCase],
    *,
    name: str,
    labels: dict[int, str],
    description: str = "",
    channels: Sequence[str] = ("CT",),
    more: dict[str, Any] | None = None,
) -> None:
    """Writes the datalist in the layout of the Medical Segmentation Decathlon, with patients and folds.

    Args:
        output: the dataset folder.
        cases: the cases to list.
        name: name of the dataset.
        labels: label value -> name.
        description: one sentence.
        channels: what each channel of the images is.
        more: further entries, such as ``licence`` and ``regions``.
    """
    training = [
        {
            "image": f"./{IMAGES}/{case.case_id}.nii.gz",
            "label": f"./{LABELS_FOLDER}/{case.case_id}.nii.gz",
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "fold": case.fold,
            "group": case.group,
        }
        for case in cases
    ]
    write_json(
        output / "dataset.json",
        {
            "name": name,
            "description": description,
            "labels": {str(k): v for k, v in labels.items()},
            "modality": {str(i): channel for i, channel in enumerate(channels)},
            **(more or {}),
            "numTraining": len(training),
            "training": training,
        },
    )


def write_clinical_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the clinical table as it came: names, spellings and numbers unaltered, an empty cell for an empty one."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])


def run_in_parallel(
    function: Callable[[Any], Any], jobs: dict[str, Any], *, workers: int, progress: bool = True, description: str = ""
) -> dict[str, Any]:
    """Calls ``function`` with each job's value, in processes of their own, with a progress bar.

    Args:
        function: a function at the top of a module (it is sent to other processes).
        jobs: name -> argument.
        workers: number of processes; 1 works in this one.
        progress: show the bar.
        description: text of the bar.

    Returns:
        dict: name -> result, in the order of ``jobs``.
    """
    if int(workers) < 1:
        raise ValueError(f"workers is {workers}; expected at least 1")
    workers = min(int(workers), max(1, len(jobs)))
    results: dict[str, Any] = {}
    with tqdm(total=len(jobs), desc=description, unit="case", disable=not progress, file=sys.stderr) as bar:
        if workers == 1:
            for name, job in jobs.items():
                results[name] = function(job)
                bar.update()
            return results
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
            futures = {pool.submit(function, job): name for name, job in jobs.items()}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a worker process was killed after {len(results)} of {len(jobs)} cases, most often for want of "
                    "memory; what is finished is kept: run the same command again with fewer --workers"
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return {name: results[name] for name in jobs}


def _die_with_parent() -> None:
    """Ends this worker when the main process is gone, so that a killed run leaves nobody writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
