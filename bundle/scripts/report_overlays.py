"""One case of a run's report: volumes turned to the radiological view, and contours drawn over three planes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from nibabel import orientations

from scripts.report_figures import colour, open_figure, png, tint

# Array axis of an LPS volume that a plane cuts, its name, and what lies left, right, above, below on the screen.
_PLANES = ((2, "axial", "RLAP"), (1, "coronal", "RLSI"), (0, "sagittal", "APSI"))
_CT_WINDOW = (400.0, 40.0)  # width, level of the usual abdominal soft-tissue window (HU)


@dataclass(frozen=True)
class CaseVolumes:
    """One case in LPS order (+x to the patient's left, +y to the back, +z to the head).

    Attributes:
        image: (X, Y, Z) float32.
        label: (X, Y, Z) int16 reference mask.
        prediction: (X, Y, Z) int16 predicted mask.
        spacing: voxel size along X, Y, Z (mm).
        stored: per axis, the axis it has in the file and whether it runs the other way there.
        oriented: whether the file says how the patient lies.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float]
    stored: tuple[tuple[int, bool], ...]
    oriented: bool

    @property
    def planes(self) -> list[tuple[int, str, str]]:
        """The planes worth showing: three, or for a 2-D image its own."""
        thin = [plane for plane in _PLANES if self.image.shape[plane[0]] == 1]
        return thin[:1] or list(_PLANES)


def load_case(image: str | Path, label: str | Path, prediction: str | Path) -> CaseVolumes:
    """Read one case and turn it to LPS, whatever orientation the files have.

    Args:
        image: NIfTI of shape (X, Y), (X, Y, Z) or (X, Y, Z, channels), of which the first channel is shown.
        label: NIfTI, the reference mask.
        prediction: NIfTI, the predicted mask.

    Returns:
        The three arrays in LPS order with their voxel size.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or a mask has another shape than the image.
    """
    volumes = [_read_lps(path) for path in (image, label, prediction)]
    arrays = [np.asarray(v.dataobj) for v, _ in volumes]
    for path, array in zip((label, prediction), arrays[1:], strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(f"{path} has shape {array.shape}, but its image {image} has {arrays[0].shape} (LPS order)")
    first, transform = volumes[0]
    stored = [(0, False)] * 3
    for file_axis, (axis, direction) in enumerate(transform):
        stored[int(axis)] = (file_axis, direction < 0)
    header = first.header
    return CaseVolumes(
        image=arrays[0].astype(np.float32),
        label=_whole_numbers(arrays[1]),
        prediction=_whole_numbers(arrays[2]),
        spacing=tuple(float(s) for s in header.get_zooms()[:3]),
        stored=tuple(stored),
        oriented=bool(header["qform_code"] or header["sform_code"]),
    )


def _whole_numbers(mask: np.ndarray) -> np.ndarray:
    return (mask if mask.dtype.kind in "iub" else np.rint(mask)).astype(np.int16)


def _read_lps(path: str | Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    try:
        volume = nib.load(path)
        data = np.asanyarray(volume.dataobj)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except Exception as error:  # nibabel, zlib and the file system each have their own
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    while data.ndim > 3:
        data = data[..., 0]  # first channel
    data = data.reshape(data.shape + (1,) * (3 - data.ndim))  # (X, Y) -> (X, Y, 1)
    volume = nib.Nifti1Image(data, volume.affine, volume.header)
    transform = orientations.ornt_transform(
        orientations.io_orientation(volume.affine), orientations.axcodes2ornt(("L", "P", "S"))
    )
    return volume.as_reoriented(transform), transform


def display_window(image: np.ndarray) -> tuple[float, float, str]:
    """Choose the grey values that become black and white.

    Args:
        image: array of any shape; values are taken as Hounsfield units when 1 % of them lie below -500 (air).

    Returns:
        Black, white, and the choice in words.
    """
    values = image.reshape(-1)[:: max(1, image.size // 1_000_000)]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0, "no finite grey values"
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    if low <= -500 and high > -500:
        width, level = _CT_WINDOW
        return level - width / 2, level + width / 2, f"CT window W {width:.0f} L {level:.0f} HU"
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return low, max(high, low + 1e-6), "grey values from the 1st to the 99th percentile"


def select_slice(label: np.ndarray, prediction: np.ndarray, axis: int, n_classes: int) -> int:
    """Find the plane that holds most label and most disagreement, every class counting the same.

    Args:
        label: (X, Y, Z) integer mask.
        prediction: (X, Y, Z) integer mask.
        axis: the axis to cut, 0 to 2.
        n_classes: number of foreground classes, of values 1 to n_classes.

    Returns:
        Index along the axis; the middle when both masks are empty.
    """
    others = tuple(a for a in range(3) if a != axis)
    score = np.zeros(label.shape[axis])
    for value in range(1, n_classes + 1):
        is_label, is_prediction = label == value, prediction == value
        count = np.count_nonzero(is_label, axis=others) + np.count_nonzero(is_label != is_prediction, axis=others)
        score += count / max(count.sum(), 1)  # a small tumour weighs as much as the liver around it
    return int(score.argmax()) if score.any() else label.shape[axis] // 2


def case_figure(case: CaseVolumes, n_classes: int, *, spacing_known: bool = True) -> str:
    """Draw the planes of one case with label contours solid and prediction contours dashed.

    The view is the radiological one: the patient's right is on the left of axial and coronal planes, the front on the
    left of sagittal ones. Pixels keep the true aspect. The planes are cropped around both masks.

    Args:
        case: the volumes, in LPS order.
        n_classes: number of foreground classes; label value v has colour v - 1.
        spacing_known: False leaves out scale bar and orientation letters, which would be invented.

    Returns:
        PNG as a data URI.
    """
    low, high, _ = display_window(case.image)
    found, planes = _foreground(case), case.planes
    box = _widen(found, case)
    extent = [(s.stop - s.start) * mm for s, mm in zip(box, case.spacing, strict=True)]
    sizes = [[extent[a] for a in range(3) if a != axis] for axis, *_ in planes]  # (width, height), mm
    widths = [width for width, _ in sizes]
    figure_width = 10.5 if len(planes) > 1 else 4.6
    figure_height = min(0.35 + figure_width * max(height for _, height in sizes) / sum(widths), 6.0)
    with open_figure(figure_width, figure_height, "black") as figure:
        axes = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]  # one scale for all planes
        for ax, plane, (width, height) in zip(axes, planes, sizes, strict=True):
            index = select_slice(case.label[found], case.prediction[found], plane[0], n_classes)
            index += found[plane[0]].start
            image, label, prediction = (
                _cut(volume, plane[0], index, box) for volume in (case.image, case.label, case.prediction)
            )
            frame = (0, width, height, 0)
            ax.imshow(image, cmap="gray", vmin=low, vmax=high, extent=frame, interpolation="bilinear")
            for value in range(1, n_classes + 1):
                _contour(ax, label == value, colour(value - 1), "solid")
                _contour(ax, prediction == value, tint(value - 1), (0, (2.2, 1.8)))
            ax.set(xlim=frame[:2], ylim=frame[2:])
            ax.set_axis_off()
            _annotate(ax, case, plane, index, spacing_known)
        return png(figure)


def _foreground(case: CaseVolumes) -> tuple[slice, ...]:
    """Box around both masks; the whole image when both are empty."""
    masks, box = (case.label > 0) | (case.prediction > 0), []
    for axis, count in enumerate(masks.shape):
        filled = np.flatnonzero(masks.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, count))
    return tuple(box)


def _widen(box: tuple[slice, ...], case: CaseVolumes) -> tuple[slice, ...]:
    """Add 30 % of the box's longest side as margin on each side, as far as the image goes."""
    margin = 0.3 * max((s.stop - s.start) * mm for s, mm in zip(box, case.spacing, strict=True))
    steps = [int(np.ceil(margin / mm)) for mm in case.spacing]
    sides = zip(box, steps, case.image.shape, strict=True)
    return tuple(slice(max(s.start - step, 0), min(s.stop + step, count)) for s, step, count in sides)


def _cut(volume: np.ndarray, axis: int, index: int, box: tuple[slice, ...]) -> np.ndarray:
    window: list[slice | int] = list(box)
    window[axis] = index
    plane = volume[tuple(window)].T  # (rows, columns)
    return plane if axis == 2 else plane[::-1]  # head up


def _contour(ax: Axes, mask: np.ndarray, line: str, style: str | tuple) -> None:
    if not mask.any():
        return
    left, right, bottom, top = ax.images[0].get_extent()
    mask = np.pad(mask, 1).astype(float)  # one empty voxel around it closes the line at the border
    step_x, step_y = (right - left) / (mask.shape[1] - 2), (bottom - top) / (mask.shape[0] - 2)
    x, y = (np.arange(mask.shape[1]) - 0.5) * step_x, (np.arange(mask.shape[0]) - 0.5) * step_y
    lines = ax.contour(x, y, mask, [0.5], colors=[line], linewidths=1.5, linestyles=[style])
    lines.set(path_effects=[patheffects.withStroke(linewidth=2.6, foreground="#000000a0")])  # for bright tissue


def _annotate(ax: Axes, case: CaseVolumes, plane: tuple[int, str, str], index: int, spacing_known: bool) -> None:
    """Write the plane's name and slice number as a viewer of the file counts it, and what is known of the geometry."""
    axis, name, sides = plane
    file_axis, flipped = case.stored[axis]
    count = case.image.shape[axis]
    number = count - index if flipped else index + 1
    oriented = spacing_known and case.oriented and count > 1
    title = f"{name if oriented else f'across file axis {file_axis + 1}'}, slice {number} of {count}"
    ax.set_title("image plane" if count == 1 else title, color="#cbd2d9", fontsize=9)
    if oriented:
        _letters(ax, sides)
    if spacing_known:
        _scale_bar(ax)


def _letters(ax: Axes, sides: str) -> None:
    places = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"),
              (0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom"))  # fmt: skip
    for letter, (x, y, horizontal, vertical) in zip(sides, places, strict=True):
        ax.text(
            x, y, letter, transform=ax.transAxes, ha=horizontal, va=vertical, color="#f5f7fa", fontsize=9,
            path_effects=[patheffects.withStroke(linewidth=2, foreground="black")],
        )  # fmt: skip


def _scale_bar(ax: Axes) -> None:
    _, width, height, _ = ax.images[0].get_extent()
    length = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= width / 4), default=None)
    if length is None:
        return
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    x, y = 0.04 * width, 0.95 * height
    ax.plot([x, x + length], [y, y], color="#f5f7fa", linewidth=1.6, path_effects=outline)
    ax.text(x, y - 0.02 * height, f"{length} mm", color="#f5f7fa", fontsize=7.5, va="bottom", path_effects=outline)
