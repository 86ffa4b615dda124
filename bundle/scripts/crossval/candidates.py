"""Ways to clean masks, and the Dice that each would have: removed components are counted, no mask is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, KeepLargestConnectedComponentd

from scripts.components import RemoveSmallComponentsd, components, voxel_ml
from scripts.regions import Regions

NONE, LARGEST = "none", "largest"
VOLUMES = (0.01, 0.1, 1.0, 10.0)  # ml below which components are removed
OPTIONS = (NONE, LARGEST, *(f"{ml:g} ml" for ml in VOLUMES))  # the simpler first


def candidate_rows(
    mask: np.ndarray, label: np.ndarray, affine: np.ndarray, labels: Sequence[str], regions: Regions | None = None
) -> list[dict[str, Any]]:
    """Score every option for every class of a case.

    Each option changes voxels of its own class alone, to background; so classes can be chosen for one by one.

    Args:
        mask: predicted label map ``(*spatial)``, as the network gave it.
        label: true label map on the same grid.
        affine: voxel to world in mm ``(4, 4)``.
        labels: class names, background first.
        regions: overlapping regions, where these are what is scored: name -> label values.

    Returns:
        Rows with class, option and dice: of the class, or the mean over the regions that it is a part of; 1 where
        nothing is in the label nor, after cleaning, in the mask, so that removing what is not there counts.

    Raises:
        ValueError: other shapes.
    """
    if mask.shape != label.shape:
        raise ValueError(f"The mask has shape {mask.shape}, the label {label.shape}; expected the same grid.")
    rows = []
    for value, name in list(enumerate(labels))[1:]:
        numbers, place = components(mask == value)
        sizes = np.bincount(numbers.ravel(), minlength=1)
        sizes[0] = 0
        kept = {option: _kept(option, sizes, voxel_ml(affine)) for option in OPTIONS}
        dice: dict[str, list[float]] = {option: [] for option in OPTIONS}
        for union in (values for values in (regions or {name: [value]}).values() if value in values):
            truth, others = np.isin(label, union), np.isin(mask, union) & (mask != value)
            hits = np.bincount(numbers[truth[place]], minlength=len(sizes))
            overlap, total = np.count_nonzero(truth & others), np.count_nonzero(truth) + np.count_nonzero(others)
            for option, which in kept.items():
                size = int(sizes[which].sum()) + total
                dice[option].append(2 * (int(hits[which].sum()) + overlap) / size if size else 1.0)
        rows += [{"class": name, "option": option, "dice": float(np.mean(dice[option]))} for option in OPTIONS]
    return rows


def _kept(option: str, sizes: np.ndarray, voxel: float) -> np.ndarray:
    """Which components an option keeps, bool ``(components,)``; number 0 is what lies outside of them."""
    kept = sizes > 0
    if option == LARGEST:
        largest = np.argsort(sizes)[::-1][0]  # of equal ones the one that MONAI keeps
        kept &= np.arange(len(sizes)) == largest
    elif option != NONE:
        kept &= sizes * voxel >= volume_of(option)
    return kept


def volume_of(option: str) -> float:
    """The ml of an option such as ``0.1 ml``."""
    return float(option.removesuffix(" ml"))


def settings_of(choice: Mapping[str, str], labels: Sequence[str]) -> dict[str, list]:
    """A choice as ids of ``inference.yaml``.

    Args:
        choice: class to option.
        labels: class names, background first.

    Returns:
        ``keep_largest`` and ``remove_small``.
    """
    values = {name: value for value, name in enumerate(labels)}
    small = [[values[name], volume_of(option)] for name, option in choice.items() if option not in (NONE, LARGEST)]
    return {
        "keep_largest": sorted(values[name] for name, option in choice.items() if option == LARGEST),
        "remove_small": sorted(small),
    }


def cleaned(file: str | Path, settings: Mapping[str, list]) -> MetaTensor:
    """Read a mask and clean it as inference does.

    Args:
        file: NIfTI label map.
        settings: of `settings_of`; empty to leave it as it is.

    Returns:
        Label map ``(1, *spatial)``, uint8.
    """
    image = nib.load(file)
    mask = MetaTensor(np.asarray(image.dataobj)[None].astype(np.uint8), affine=image.affine)
    steps: list[Any] = []
    if settings.get("keep_largest"):
        steps.append(KeepLargestConnectedComponentd("pred", settings["keep_largest"], is_onehot=False))
    if settings.get("remove_small"):
        steps.append(RemoveSmallComponentsd("pred", settings["remove_small"]))
    return Compose(steps)({"pred": mask})["pred"]
