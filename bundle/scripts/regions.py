"""Overlapping regions, each a union of classes: a sigmoid for each in training, scores for each in evaluation.

A network for regions has one output for each class, as any other, so that masks, probabilities, exports and releases
stay what they are. The logits of its regions are differences of them: the logit of a class is the sum of those of the
regions that hold it, plus a constant; `region_matrices` solves this for the regions. The class of the largest logit is
then the most probable one of independent regions: where regions agree with each other, it lies in exactly those whose
sigmoid exceeds 0.5.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional as F

from scripts.losses import IGNORED, DiceFocalCELoss
from scripts.metrics import case_metrics

Regions = Mapping[str, Sequence[int]]


def region_matrices(regions: Regions) -> tuple[Tensor, Tensor]:
    """Which class lies in which region, and how region logits follow from class logits.

    Args:
        regions: name to the label values that make up the region; as many regions as there are foreground classes.

    Returns:
        Membership ``(classes, regions)`` of 0 and 1, background first, and contrasts ``(regions, classes)``.

    Raises:
        ValueError: a value that is no foreground class, or regions that do not tell the classes apart.

    Example:
        >>> region_matrices({"organ": [1, 2], "tumour": [2]})[1].tolist()
        [[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]
    """
    count = len(regions)
    members = torch.zeros(count + 1, count, dtype=torch.float64)
    for column, (name, values) in enumerate(regions.items()):
        wrong = [value for value in values if value not in range(1, count + 1)]
        if wrong or not values:
            raise ValueError(
                f"Region {name!r} is made of the values {list(values)}; expected some of 1 to {count}: there must be "
                "as many regions as foreground classes, and background is in none."
            )
        members[list(values), column] = 1
    system = torch.cat([members, torch.ones(count + 1, 1, dtype=torch.float64)], 1)  # (classes, regions and constant)
    if torch.linalg.matrix_rank(system) <= count:
        raise ValueError(
            f"The regions {dict(regions)} do not tell {count} foreground classes apart, so no label map could be made "
            "of them. Give nested regions, such as {'whole': [1, 2], 'core': [2]}."
        )
    return members.float(), torch.linalg.inv(system)[:-1].round(decimals=9).float() + 0.0  # no -0


def segmentation_loss(*, regions: Regions, **terms: Any) -> DiceFocalCELoss:
    """The loss of a task: over its regions where it has any, else over its classes.

    Args:
        regions: as of `RegionLoss`; empty for a task of classes.
        **terms: of `DiceFocalCELoss`.

    Returns:
        The loss.
    """
    return RegionLoss(regions=regions, **terms) if regions else DiceFocalCELoss(**terms)


class RegionLoss(DiceFocalCELoss):
    """`DiceFocalCELoss` over overlapping regions: a sigmoid for each, binary cross-entropy for cross-entropy.

    The terms are those of MONAI's ``DiceLoss(sigmoid=True)``, ``FocalLoss`` and of torch's
    ``binary_cross_entropy_with_logits``, on region logits that are differences of the class logits (see the module).

    Args:
        regions: name to the label values that make up the region, as of `region_matrices`.
        **terms: of `DiceFocalCELoss`. ``weight`` has one value per class, of which the first is not used and the others
            are the regions', in order; ``include_background`` changes nothing, as background is no region.

    References:
        Isensee et al., "nnU-Net for Brain Tumor Segmentation", BrainLes 2020, section 3.2 (region-based training).

    Example:
        >>> logits, label = torch.randn(2, 3, 16, 16, 16), torch.randint(3, (2, 1, 16, 16, 16))
        >>> RegionLoss(regions={"organ": [1, 2], "tumour": [2]}, to_onehot_y=True)(logits, label).shape
        torch.Size([])
    """

    members: Tensor
    contrasts: Tensor

    def __init__(self, *, regions: Regions, **terms: Any) -> None:
        """See the class."""
        super().__init__(**terms)
        members, contrasts = region_matrices(regions)
        self.register_buffer("members", members, persistent=False)
        self.register_buffer("contrasts", contrasts, persistent=False)

    def _one_scale(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss of class logits (B, C, *spatial) against an index map (B, *spatial)."""
        if logits.shape[1] != len(self.members):
            raise ValueError(
                f"The network has {logits.shape[1]} outputs, but {len(self.members) - 1} regions need "
                f"{len(self.members)}, one for each class with background: set `labels` and out_channels."
            )
        dtype = torch.promote_types(logits.dtype, torch.float32)
        index = index.flatten(1)  # (B, N)
        known = (index != IGNORED).unsqueeze(1).to(dtype)  # (B, 1, N)
        scores = torch.einsum("rc,bcn->brn", self.contrasts.to(logits.device, dtype), logits.flatten(2).to(dtype))
        truth = self.members.to(logits.device, dtype)[index.clamp_min(0).long()].transpose(1, 2) * known  # (B, R, N)
        share = scores.sigmoid() * known
        entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none") * known
        wrong = truth + share - 2 * truth * share  # 1 - the probability of what is true
        regions = scores.shape[1]
        weight = scores.new_ones(regions) if self.weight is None else self.weight[1:].to(scores)
        dice = self._dice(share.sum(2), (share * truth).sum(2), truth.sum(2), weight)
        voxels = known.sum().clamp_min(1)
        cross_entropy = (entropy.sum((0, 2)) * weight).sum() / (voxels * weight.sum().clamp_min(1e-12))
        focal = ((wrong.clamp_min(1e-12).pow(self.gamma) * entropy).sum((0, 2)) * weight).sum() / (voxels * regions)
        return self.lambda_dice * dice + self.lambda_focal * focal + self.lambda_ce * cross_entropy


class LabelsToRegionsd(MapTransform):
    """Turn a label map ``(1, *spatial)`` into one channel per region, behind a channel for what is in none of them.

    Args:
        keys: label maps of whole numbers.
        regions: name to the label values that make up the region.
    """

    def __init__(self, keys: KeysCollection, regions: Regions, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.regions = {name: list(values) for name, values in regions.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with float32 masks ``(1 + regions, *spatial)``."""
        case = dict(data)
        for key in self.key_iterator(case):
            labels = torch.as_tensor(case[key])
            masks = [torch.isin(labels, labels.new_tensor(values)) for values in self.regions.values()]
            inside = torch.cat(masks)  # (regions, *spatial)
            case[key] = torch.cat([~inside.any(0, keepdim=True), inside]).float()
        return case


def region_metrics(
    prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float], regions: Regions, *settings: Any
) -> list[dict[str, Any]]:
    """Compare a predicted label map with the true one, region by region.

    Args:
        prediction: label map of whole numbers.
        label: true label map of the same shape.
        spacing: size of a voxel in mm along each axis.
        regions: name to the label values that make up the region.
        *settings: the surface tolerance in mm and the case's id, as of `scripts.metrics.case_metrics`.

    Returns:
        Rows of `case_metrics`, one for each region, whose name stands under ``class``.

    Raises:
        ValueError: as `case_metrics`, or a label value that is in no region.
    """
    known = [0, *{value for values in regions.values() for value in values}]
    for name, array in (("prediction", prediction), ("label", label)):
        strange = np.setdiff1d(array, known)
        if strange.size:
            raise ValueError(f"{name} holds value {strange[0]}, which is in none of the regions {dict(regions)}.")
    rows = []
    for name, values in regions.items():
        masks = (np.isin(array, list(values)) for array in (prediction, label))
        rows += case_metrics(*masks, spacing, {1: name}, *settings)
    return rows
