"""Measures one case: geometry, grey values, and each class of its label. Imports no torch, as it runs in workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from scripts.prepare.output import write_json

VERSION = 1  # of what is measured: raise it, and every case is measured again
LEVELS = (0.5, 1.0, 50.0, 99.5)  # percentiles of a whole image
QUANTILES = 500  # of the labelled voxels: as many from a small case as from a large one
_SAMPLE = 2_000_000  # voxels that percentiles of a whole image are taken from, at even distances


@dataclass(frozen=True)
class Job:
    """One case to measure.

    Attributes:
        case_id: its name.
        image: path of the image.
        label: path of the label map.
        classes: number of classes, background among them.
        key: changes with the files; kept in the record.
        record: JSON file to write.
    """

    case_id: str
    image: str
    label: str
    classes: int
    key: str
    record: str


def measure_case(job: Job) -> dict[str, Any]:
    """Measure a case and keep the record; it is the same whichever way the axes of the files run.

    Args:
        job: the case.

    Returns:
        ``shape``, ``spacing`` (mm; R, A, S), ``coded`` (whether the header says what its geometry means),
        ``box`` (share of the image within the box of its non-zero voxels), ``channels`` (see `grey_values`) and
        ``classes`` (value -> see `class_facts`; classes that are absent are left out).
    """
    image, spacing, coded = read_ras(job.image)
    label, _, _ = read_ras(job.label)
    image = image.reshape(*image.shape[:3], -1)  # (X, Y, Z, C)
    label = label.reshape(label.shape[:3]).astype(np.int32)
    record = {
        "case_id": job.case_id,
        "key": job.key,
        "shape": list(label.shape),
        "spacing": [round(float(mm), 5) for mm in spacing],
        "coded": coded,
        "box": nonzero_share(image),
        "channels": [grey_values(image[..., c].astype(np.float32), label) for c in range(image.shape[3])],
        "classes": class_facts(label, job.classes, spacing),
    }
    write_json(Path(job.record), record)
    return record


def known_record(path: str | Path, key: str) -> dict[str, Any] | None:
    """Return the record of a case that was measured before, or None when it is missing, damaged or of other files."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def read_ras(path: str | Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read a NIfTI file with its axes to the right, to the front and to the head.

    Args:
        path: of shape (X, Y), (X, Y, Z) or (X, Y, Z, C).

    Returns:
        The array, at least three-dimensional; voxel size (mm) along its axes; whether qform or sform are coded.
    """
    volume = nib.load(path)
    data = np.asanyarray(volume.dataobj)
    data = data.reshape(data.shape + (1,) * (3 - data.ndim))
    turn = nib.orientations.io_orientation(volume.affine)
    spacing = nib.affines.voxel_sizes(volume.affine)[np.argsort(turn[:, 0])]
    coded = bool(volume.header["qform_code"] or volume.header["sform_code"])
    return nib.orientations.apply_orientation(data, turn), spacing, coded


def grey_values(image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Describe the grey values of one channel.

    Args:
        image: (X, Y, Z) float32.
        label: (X, Y, Z), 0 the background.

    Returns:
        ``min``, ``max``, ``levels`` (percentiles `LEVELS`), ``mean`` and ``std``, ``clipped`` (both, once what lies
        beyond the percentiles 0.5 and 99.5 is cut off), ``border`` (median of the outermost voxels along the two
        longest axes: air, where the image shows a whole body) and ``foreground`` (`QUANTILES` quantiles of labelled
        voxels).
    """
    sample = image.ravel()[:: max(1, image.size // _SAMPLE)].astype(np.float64)
    levels = np.percentile(sample, LEVELS)
    clipped = np.clip(sample, levels[0], levels[-1])
    sides = np.argsort(image.shape)[1:]
    border = np.concatenate([np.take(image, (0, -1), axis=axis).ravel() for axis in sides])
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    inside = image[label > 0]
    return {
        "min": float(image.min()),
        "max": float(image.max()),
        "levels": [float(v) for v in levels],
        "mean": float(sample.mean()),
        "std": float(sample.std()),
        "clipped": [float(clipped.mean()), float(clipped.std())],
        "border": float(np.median(border)),
        "foreground": [round(float(v), 5) for v in np.quantile(inside, places)] if inside.size else [],
    }


def class_facts(label: np.ndarray, classes: int, spacing: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Describe each class of a label map.

    Args:
        label: (X, Y, Z) int32.
        classes: number of classes, background among them.
        spacing: voxel size.

    Returns:
        Value -> ``voxels``, ``ml``, ``components`` (touching voxels, corners too, are one), ``largest`` (share of the
        voxels in the largest component), ``centre`` and ``extent`` (of its box), in mm.
    """
    found: dict[str, dict[str, Any]] = {}
    mm = np.asarray(spacing, float)
    for value, box in enumerate(ndimage.find_objects(label, max_label=classes - 1), 1):
        if box is None:
            continue
        mask = label[box] == value
        parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        centre = [s.start for s in box] + np.argwhere(mask).mean(0)
        found[str(value)] = {
            "voxels": int(sizes.sum()),
            "ml": float(sizes.sum() * mm.prod() / 1000),
            "components": int(count),
            "largest": float(sizes.max() / sizes.sum()),
            "centre": [round(float(v), 3) for v in centre * mm],
            "extent": [round(float((s.stop - s.start) * step), 3) for s, step in zip(box, mm, strict=True)],
        }
    return found


def nonzero_share(image: np.ndarray) -> float:
    """Share of an image (X, Y, Z, C) that lies in the box around its voxels that are not 0 in every channel."""
    used = (image != 0).any(-1)
    share = 1.0
    for axis in range(3):
        filled = np.flatnonzero(used.any(axis=tuple(a for a in range(3) if a != axis)))
        share *= (filled[-1] + 1 - filled[0]) / used.shape[axis] if filled.size else 0.0
    return float(share)
