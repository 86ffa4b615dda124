"""What the voxels of a dataset say about its grid: whether their size is known, which slices are thick, the target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scripts.plan.fingerprint import Fingerprint

THICK = 3.0  # so many times the other voxel sizes make slices thick, as in nnU-Net
COVERED = 0.05  # share of the median volume that a patch should see
COARSEST = 2.5  # times the finest voxel size of the data
_TURNED = {0: "ASR", 1: "RSA", 2: "RAS"}  # thick axis -> order in which it is the last


@dataclass(frozen=True)
class Choice:
    """A value of the configuration, and why.

    Attributes:
        value: what goes into the file.
        reason: one sentence, or less.
    """

    value: object
    reason: str


@dataclass(frozen=True)
class Grid:
    """The grid that the network will see.

    Attributes:
        axcodes: order of the axes; thick slices come last.
        known: whether voxel sizes are true.
        thick: whether slices are thick.
        ratio: how much thicker slices are than voxels are wide; None where that is not known.
        spacing: voxel size along the axes, mm; 1 where it is not known.
        shape: median number of voxels along the axes at that spacing.
        reasons: axcodes, spacing_known, spacing, thick -> sentence.
    """

    axcodes: str
    known: bool
    thick: bool
    ratio: float | None
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    reasons: dict[str, str]

    @property
    def order(self) -> list[int]:
        """Index of each axis among R, A, S."""
        return ["RAS".index(code) for code in self.axcodes]


def plan_grid(data: Fingerprint, spacing_known: bool | None = None) -> Grid:
    """Decide on orientation and voxel size.

    Args:
        data: the fingerprint.
        spacing_known: what the user says; None to judge from the files.

    Returns:
        The grid.
    """
    reasons: dict[str, str] = {}
    known, reasons["spacing_known"] = _is_known(data, spacing_known)
    axis, reasons["axcodes"] = _thick_axis(data, known)
    axcodes = _TURNED[axis]
    order = ["RAS".index(code) for code in axcodes]
    spacings, shapes = data.spacings[:, order], data.shapes[:, order]
    if not known:
        shape = np.median(shapes, axis=0)
        thick = bool(shape[2] * THICK < shape[:2].min())
        reasons["spacing"] = "voxels as stored, as their size is not known"
        text = f"slices are {'thick' if thick else 'not thick'}: a volume has {shape[2]:.0f} of {shape[0]:.0f} x "
        reasons["thick"] = f"{text}{shape[1]:.0f} voxels, and no other sign of their distance"
        return Grid(axcodes, known, thick, None, (1.0, 1.0, 1.0), tuple(int(n) for n in shape), reasons)
    median = np.median(spacings, axis=0)
    shape = median_shape(spacings, shapes, median)
    target, why = median.copy(), "median of the training cases"
    if (spacings == spacings[0]).all():
        why = "that of every training case"
    elif median[2] > THICK * median[:2].max() and shape[2] * THICK < shape[:2].min():
        target[2] = max(np.percentile(spacings[:, 2], 10), median[:2].max())
        why = "median; 10th percentile between slices, which are thick"
    target = np.array([round(float(mm), 3) for mm in target])
    shape = median_shape(spacings, shapes, target)
    ratio = float(target[2] / target[:2].min())
    thick = ratio >= THICK
    reasons["spacing"] = why
    reasons["thick"] = (
        f"slices lie {ratio:.1f} times as far apart as voxels are wide; {'thick' if thick else 'not thick, below 3'}"
    )
    return Grid(axcodes, known, thick, ratio, tuple(float(v) for v in target), tuple(int(n) for n in shape), reasons)


def coarsen(grid: Grid, data: Fingerprint, voxels: int) -> Grid:
    """Make the voxels of a grid larger, the finest first, until a patch sees enough of a volume.

    Args:
        grid: of `plan_grid`.
        data: the fingerprint.
        voxels: of the largest patch that fits.

    Returns:
        The grid, the same where a patch sees `COVERED` of the median volume, or where voxel sizes are not known.
    """
    before = voxels / math.prod(grid.shape)
    if not grid.known or before >= COVERED:
        return grid
    spacings, shapes = data.spacings[:, grid.order], data.shapes[:, grid.order]
    target = np.array(grid.spacing)
    while voxels / np.prod(median_shape(spacings, shapes, target)) < COVERED:
        finest = target.min()
        if finest * 1.05 > COARSEST * min(grid.spacing):
            break
        target[target <= finest * 1.05] = finest * 1.05
    target = np.array([round(float(mm), 2) for mm in target])
    shape = median_shape(spacings, shapes, target)
    ratio = float(target[2] / target[:2].min())
    fine = " x ".join(f"{mm:g}" for mm in grid.spacing)
    reasons = grid.reasons | {
        "spacing": f"coarser than the data ({fine}), so that a patch sees {voxels / np.prod(shape):.1%} of a volume "
        f"instead of {before:.1%}",
        "thick": f"slices lie {ratio:.1f} times as far apart as voxels are wide",
    }
    numbers = tuple(float(v) for v in target), tuple(int(n) for n in shape)
    return Grid(grid.axcodes, True, ratio >= THICK, ratio, *numbers, reasons)


def median_shape(spacings: np.ndarray, shapes: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Median number of voxels along each axis once every case has the target spacing."""
    return np.maximum(1, np.median(np.round(shapes * spacings / target), axis=0)).astype(int)


def _is_known(data: Fingerprint, said: bool | None) -> tuple[bool, str]:
    """Whether voxel sizes are true, and how one knows."""
    if said is not None:
        return said, "as you say"
    if not np.allclose(data.spacings, 1.0, atol=1e-6):
        return True, "the files store voxel sizes"
    if not any(record["coded"] for record in data.records):
        return False, "every file stores 1 mm and no code for its geometry: guessed; --spacing_known True if it is true"
    sizes = np.sort(np.median(data.shapes, axis=0))
    if sizes[0] * THICK < sizes[1]:
        size = " x ".join(f"{n:.0f}" for n in np.median(data.shapes, axis=0))
        return False, f"every file stores 1 mm, which {size} voxels cannot be: guessed; else --spacing_known True"
    return True, "every file stores 1 mm, and the volumes have the shape for it: guessed; else --spacing_known False"


def _thick_axis(data: Fingerprint, known: bool) -> tuple[int, str]:
    """The axis (of R, A, S) across which the slices lie, and how one knows."""
    if known:
        ordered = np.sort(data.spacings, axis=1)
        clear = ordered[:, 2] >= 1.5 * ordered[:, 1]
        axes = data.spacings.argmax(axis=1)[clear]
        what = "largest voxel size"
    else:
        ordered = np.sort(data.shapes, axis=1)
        clear = ordered[:, 0] * THICK <= ordered[:, 1]
        axes = data.shapes.argmin(axis=1)[clear]
        what = "fewest voxels"
    counts = np.bincount(axes, minlength=3)
    axis = int(counts.argmax())
    if axis == 2 or counts[axis] * 2 <= len(data.records):
        return 2, "to the right, to the front, to the head"
    return axis, f"slices last: {counts[axis]} of {len(data.records)} cases have their {what} along {'RAS'[axis]}"
