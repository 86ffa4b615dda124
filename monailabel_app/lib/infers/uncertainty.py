"""How sure a network is of a mask: the entropy of its probabilities, as a map and as one number a case."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample, Transform
from monai.utils import convert_to_tensor

FOREGROUND = 0.05  # probability from which a voxel counts as maybe foreground
SLAB = 16  # slices at a time, so that the probabilities of a scan never exist as a whole


class Uncertaintyd(Transform):
    """Add the entropy of logits ``(classes, *spatial)``, before they become labels.

    ``entropy`` is ``(1, *spatial)`` float32 on the network's grid, 0 (sure) to 1 (all classes alike). ``uncertainty``
    is its mean over the voxels that are foreground with a probability of at least 0.05; where there are none, the mean
    over all voxels. Background that is surely background would otherwise make large scans look sure.

    Args:
        key: where the logits are.
    """

    def __init__(self, key: str = "pred") -> None:
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with ``entropy`` and ``uncertainty``."""
        case = dict(data)
        logits = convert_to_tensor(case[self.key], dtype=torch.float32, track_meta=False)
        entropy = torch.empty((1, *logits.shape[1:]), dtype=torch.float32)
        total = inside = 0.0
        for start in range(0, logits.shape[-1], SLAB):
            probabilities = logits[..., start : start + SLAB].softmax(0).cpu()  # (classes, *, slab)
            part = torch.special.entr(probabilities).sum(0) / math.log(len(logits))  # (*, slab)
            chosen = probabilities[0] <= 1 - FOREGROUND
            total, inside = total + float(part[chosen].sum()), inside + int(chosen.sum())
            entropy[0, ..., start : start + SLAB] = part
        case["entropy"] = entropy
        case["uncertainty"] = total / inside if inside else float(entropy.mean())
        return case


def map_on_source(entropy: torch.Tensor, image: MetaTensor) -> MetaTensor:
    """Put an entropy map on the grid of the source image.

    Args:
        entropy: ``(1, *spatial)`` on the network's grid.
        image: the preprocessed image ``(C, *spatial)``, whose metadata hold the source's affine and shape.

    Returns:
        ``(*source spatial)``, float32, linearly interpolated.
    """
    affine = convert_to_tensor(image.meta["original_affine"], dtype=torch.float64, device="cpu")
    shape = [int(n) for n in np.asarray(image.meta["spatial_shape"]).ravel()[: image.ndim - 1]]
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
    located = MetaTensor(entropy, affine=image.affine)
    return resample(located, dst_affine=affine, spatial_size=shape)[0]
