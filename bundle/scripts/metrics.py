"""Evaluation of predicted label maps, per case and class, on the grid of the source image."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import find_objects

from scripts.files import replacing

METRICS = ("dice", "iou", "hd95", "assd", "surface_dice", "accuracy", "recall", "precision")
VOLUMES = ("volume_ml_label", "volume_ml_pred")
COLUMNS = ("case_id", "class", *METRICS, *VOLUMES)

CONVENTIONS = {
    "class in neither label nor prediction": "not counted: every metric is empty, except accuracy (1)",
    "class in the label, not predicted": "dice, iou, surface_dice, recall, precision = 0; hd95, assd = image diagonal",
    "class predicted, not in the label": "dice, iou, surface_dice, precision = 0; recall empty; hd95, assd = diagonal",
    "image diagonal": "length in mm of the diagonal of the whole image, voxel edges included",
    "hd95": "mm; the larger of the two directed 95th percentiles of surface distances (MONAI), not that of their union",
    "assd": "mm; mean over the surface voxels of both masks",
    "surface_dice": "share of surface voxels of both masks within surface_tolerance_mm; each voxel counts once",
    "accuracy": "(TP + TN) / all voxels of the image, one class against the rest",
    "surface": "voxels of a mask with a face neighbour outside of it, or at the border of the image",
    "total": "mean over the counted classes of a case, then over cases",
    "std": "over n, not n - 1",
    "n": "number of cases with a value",
    "spacing unknown": "spacing 1 is assumed: read mm as voxels, and no volumes in ml are to be trusted",
}


def case_metrics(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    spacing: Sequence[float],
    class_names: Mapping[int, str],
    surface_tolerance_mm: float = 1.0,
    case_id: str | None = None,
) -> list[dict[str, Any]]:
    """Compare a predicted label map with the true one: one row per foreground class.

    Masks are cropped to the box around both before surfaces are measured, which changes no result. What happens when
    a class is missing from one of the maps, and what each metric means exactly, is said in ``CONVENTIONS``.

    Args:
        prediction: label map (X, Y, Z) or (X, Y) of whole numbers, any dtype.
        label: true label map of the same shape.
        spacing: size of a voxel in mm along each axis, > 0.
        class_names: name of each label value; 0, the background, may be listed and gets no row.
        surface_tolerance_mm: distance up to which surfaces agree, >= 0, for the surface Dice.
        case_id: put into each row when given.

    Returns:
        Rows with keys class, dice, iou, hd95, assd (mm), surface_dice, accuracy, recall, precision, volume_ml_label
        and volume_ml_pred (NaN for 2-D); preceded by case_id when given.

    Raises:
        ValueError: shapes differ or are not 2-D or 3-D, spacing or tolerance are wrong, or a map holds a value that is
            no whole number or has no name.

    References:
        Maier-Hein et al., "Metrics reloaded", Nature Methods 2024; Nikolov et al., "Deep learning to achieve
        clinically applicable segmentation of head and neck anatomy", 2018 (surface Dice).

    Example:
        >>> truth = np.zeros((8, 8, 8), int); truth[2:6, 2:6, 2:6] = 1
        >>> case_metrics(truth, truth, (1, 1, 1), {0: "background", 1: "liver"})[0]["dice"]
        1.0
    """
    prediction, label = _label_map("prediction", prediction), _label_map("label", label)
    spacing = _check_geometry(prediction, label, spacing)
    if not (math.isfinite(surface_tolerance_mm) and surface_tolerance_mm >= 0):
        raise ValueError(f"surface_tolerance_mm is {surface_tolerance_mm}, expected a finite number >= 0.")
    boxes_pred = _boxes("prediction", prediction, class_names)
    boxes_true = _boxes("label", label, class_names)
    rows = []
    for value, name in class_names.items():
        if value == 0:
            continue
        box = _union(boxes_pred[value], boxes_true[value])
        pred, true = prediction[box] == value, label[box] == value
        row = {
            "class": name,
            **_overlap(pred, true, label.size),
            **_surfaces(pred, true, spacing, surface_tolerance_mm),
        }
        if not (pred.any() and true.any()) and (pred.any() or true.any()):
            row["hd95"] = row["assd"] = math.hypot(*(n * s for n, s in zip(label.shape, spacing, strict=True)))
        ml = math.prod(spacing) / 1000 if label.ndim == 3 else math.nan
        row |= {"volume_ml_label": int(true.sum()) * ml, "volume_ml_pred": int(pred.sum()) * ml}
        rows.append({key: row[key] for key in ("class", *METRICS, *VOLUMES)})
    return rows if case_id is None else [{"case_id": case_id, **row} for row in rows]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise rows of ``case_metrics`` over cases, per class and in total.

    Args:
        rows: rows of all cases, each with its case_id.

    Returns:
        ``{"classes": {name: {metric: {"mean", "std", "median", "n"}}}, "total": {metric: {...}}}``. Values that are
        not defined (n = 0) are ``None``. How it is averaged is said in ``CONVENTIONS``.

    Raises:
        ValueError: no rows, a row without one of ``COLUMNS``, or the same case and class twice.
    """
    table = _table(rows)
    values = [*METRICS, *VOLUMES]
    classes = {str(name): _statistics(group[values]) for name, group in table.groupby("class", sort=False)}
    return {"classes": classes, "total": _statistics(table.groupby("case_id", sort=False)[values].mean())}


def write_evaluation(rows: Sequence[Mapping[str, Any]], folder: str | Path, settings: Mapping[str, Any]) -> dict:
    """Write ``per_case.csv`` and ``summary.json`` of an evaluation, each whole or not at all.

    Args:
        rows: rows of all cases, each with its case_id.
        folder: folder to write to, made when missing.
        settings: what the numbers depend on, for example ``{"surface_tolerance_mm": 1.0, "spacing_known": True}``;
            ``CONVENTIONS`` are added to it.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ValueError: as ``summarise``, or settings that JSON cannot hold.
    """
    table = _table(rows)
    summary = {**summarise(rows), "settings": {**settings, "conventions": CONVENTIONS}}
    text = json.dumps(summary, indent=2, allow_nan=False)
    folder = Path(folder)
    with replacing(folder / "per_case.csv") as part:
        table.to_csv(part, index=False)
    with replacing(folder / "summary.json") as part:
        part.write_text(text + "\n", encoding="utf-8")
    return summary


def _overlap(pred: np.ndarray, true: np.ndarray, n_voxels: int) -> dict[str, float]:
    """Overlap of two masks, cropped from an image of n_voxels."""
    tp = int(np.count_nonzero(pred & true))
    n_pred, n_true = int(np.count_nonzero(pred)), int(np.count_nonzero(true))
    union = n_pred + n_true - tp
    return {
        "dice": _ratio(2 * tp, n_pred + n_true),
        "iou": _ratio(tp, union),
        "recall": _ratio(tp, n_true),
        "precision": 0.0 if n_true and not n_pred else _ratio(tp, n_pred),
        "accuracy": (n_voxels - (union - tp)) / n_voxels,
    }


def _surfaces(pred: np.ndarray, true: np.ndarray, spacing: Sequence[float], tolerance: float) -> dict[str, float]:
    """Surface distances in mm and surface Dice of two masks; without distances where one mask is empty."""
    if not (pred.any() and true.any()):
        return {"hd95": math.nan, "assd": math.nan, "surface_dice": 0.0 if pred.any() or true.any() else math.nan}
    edges_pred, edges_true = get_mask_edges(pred, true, crop=False)
    there = get_surface_distance(edges_pred, edges_true, spacing=spacing)  # (surface voxels of pred,), float32
    back = get_surface_distance(edges_true, edges_pred, spacing=spacing)
    both = np.concatenate((there, back))
    return {
        "hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd": float(both.mean(dtype=np.float64)),
        "surface_dice": float((both <= np.float32(tolerance)).mean()),
    }


def _boxes(name: str, label_map: np.ndarray, class_names: Mapping[int, str]) -> dict[int, tuple[slice, ...] | None]:
    """Box around each declared class of a label map, None where it is absent; ValueError on undeclared values."""
    low, high = int(label_map.min()), int(label_map.max())
    if low >= 0 and high <= max(class_names):
        found = find_objects(label_map)
        unknown = [i for i, box in enumerate(found, start=1) if box is not None and i not in class_names]
    else:
        found, unknown = [], [low if low < 0 else high]
    if unknown:
        raise ValueError(
            f"{name} holds value {unknown[0]}, but the declared classes are {dict(class_names)}: add it to the "
            "dataset's labels or remap it."
        )
    return {value: found[value - 1] if 0 < value <= len(found) else None for value in class_names}


def _union(a: tuple[slice, ...] | None, b: tuple[slice, ...] | None) -> tuple[slice, ...]:
    """Smallest box around two boxes; an empty one when both are None."""
    if a is None or b is None:
        return a or b or (slice(0, 0),)
    return tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))


def _label_map(name: str, x: np.ndarray | torch.Tensor) -> np.ndarray:
    """Label map as an integer array, or ValueError when it holds fractions or has a wrong number of axes."""
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"{name} has shape {array.shape}, expected (X, Y, Z) or (X, Y), without a channel axis.")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        return array
    whole = np.isfinite(array) & (array == np.rint(array))
    if not whole.all():
        raise ValueError(f"{name} holds value {array[~whole][0]}, expected whole numbers: resample with 'nearest'.")
    return array.astype(np.int32)


def _check_geometry(prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> tuple[float, ...]:
    """Spacing as floats, or ValueError when the maps or the spacing do not fit each other."""
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape}, the label {label.shape}: expected the same grid. Invert the "
            "preprocessing of the prediction before evaluating it."
        )
    spacing = tuple(float(s) for s in spacing)
    if len(spacing) != label.ndim or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing is {spacing}, expected {label.ndim} positive numbers in mm, one per axis.")
    return spacing


def _ratio(part: int, whole: int) -> float:
    """Ratio of two counts, NaN for 0 / 0."""
    return part / whole if whole else math.nan


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table with the columns of ``per_case.csv``."""
    table = pd.DataFrame(list(rows))
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"rows hold columns {list(table)}, expected also {missing}: see case_metrics(case_id=...).")
    twice = table[table.duplicated(["case_id", "class"])]
    if len(twice):
        raise ValueError(f"case {twice.iloc[0]['case_id']!r} has class {twice.iloc[0]['class']!r} more than once.")
    return table[list(COLUMNS)]


def _statistics(values: pd.DataFrame) -> dict[str, dict[str, float | int | None]]:
    """Mean, standard deviation, median and count of each column, over its finite values."""
    result: dict[str, dict[str, float | int | None]] = {}
    for name, column in values.items():
        finite = column.to_numpy(float)
        finite = finite[np.isfinite(finite)]
        some = finite.size > 0
        numbers = {f: float(getattr(np, f)(finite)) if some else None for f in ("mean", "std", "median")}
        result[str(name)] = {**numbers, "n": int(finite.size)}
    return result
