"""Dice + focal + cross-entropy in one loss, from one softmax."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scripts.class_sums import IGNORED, ClassSums, compute_dtype


class DiceFocalCELoss(nn.Module):
    """Weighted sum of the soft Dice, the focal and the cross-entropy loss, optionally over several scales.

    The three terms are those of MONAI's ``DiceLoss(softmax=True)``, ``FocalLoss(use_softmax=True)`` and of
    ``torch.nn.CrossEntropyLoss``, all computed in float32 from one softmax that is never stored: the backward pass
    computes it again, chunk by chunk (so there is no second derivative). As in MONAI, the focal term is a mean over
    voxels *and* classes.

    Two places where the parts disagree with each other, and what happens here:

    - ``include_background=False``: MONAI's focal loss takes its softmax over the foreground logits alone, and so does
      this one (cross-entropy always sees every class). With two classes that leaves nothing to tell apart: the focal
      term is 0, so keep ``include_background=True`` there.
    - ``ignore_index``: MONAI's focal loss then divides by the number of voxels instead of voxels x classes. Here it
      stays the same mean, so that ignoring voxels equals cropping them away.

    Args:
        lambda_dice: factor of the Dice term, >= 0.
        lambda_focal: factor of the focal term, >= 0.
        lambda_ce: factor of the cross-entropy term, >= 0.
        weight: one weight >= 0 per class, background included; ``None`` for equal weights. Scales the Dice and focal
            terms of a class, and is normalised over the voxels in cross-entropy (as in torch).
        include_background: whether class 0 counts in the Dice and focal terms; it always does in cross-entropy.
        to_onehot_y: ``True`` when targets hold class indices, ``False`` when they are one-hot.
        gamma: exponent of the focal term, >= 0; 0 makes it a plain cross-entropy divided by the number of classes.
        batch: ``True`` to compute Dice over the whole batch as if it were one image.
        smooth_nr: added to the numerator of Dice, >= 0.
        smooth_dr: added to its denominator, >= 0; 0 risks 0/0 on patches without foreground.
        ignore_index: target value of voxels that count in no term (may lie outside ``0..C-1``). One-hot targets: a
            class index ignores that class's voxels, any other number ignores the voxels that belong to no class.
        deep_supervision_weights: one factor per scale, finest first, used as given; ``None`` for 1, 1/2, 1/4, ...
            divided by their sum.
        finest_weights: in its place, for networks of any number of scales: factors of the finest scales, used as
            given. Scales beyond them count 0, and a network with fewer scales takes the first factors.

    Raises:
        ValueError: a factor, weight, exponent or smoothing term is negative or not finite, or weights of scales are
            given twice.

    References:
        Liu et al., "nnY-Net: Swin-NeXt with Cross-Attention for 3D Medical Images Segmentation", arXiv 2501.01406,
        paragraph on DiceFocalCELoss; Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4-5;
        Milletari et al., "V-Net", 3DV 2016, section 3.

    Example:
        >>> logits, label = torch.randn(2, 5, 16, 16, 16), torch.randint(5, (2, 1, 16, 16, 16))
        >>> DiceFocalCELoss(to_onehot_y=True)(logits, label).shape
        torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        lambda_ce: float = 1.0,
        weight: Sequence[float] | None = None,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: int | None = None,
        deep_supervision_weights: Sequence[float] | None = None,
        finest_weights: Sequence[float] | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.lambda_dice = _not_negative("lambda_dice", lambda_dice)
        self.lambda_focal = _not_negative("lambda_focal", lambda_focal)
        self.lambda_ce = _not_negative("lambda_ce", lambda_ce)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.gamma = _not_negative("gamma", gamma)
        self.batch = batch
        self.smooth_nr = _not_negative("smooth_nr", smooth_nr)
        self.smooth_dr = _not_negative("smooth_dr", smooth_dr)
        self.ignore_index = ignore_index
        self.scale_weights = None
        if deep_supervision_weights is not None:
            self.scale_weights = [_not_negative("deep_supervision_weights", w) for w in deep_supervision_weights]
        if None not in (deep_supervision_weights, finest_weights):
            raise ValueError("deep_supervision_weights and finest_weights are both given, expected one of them.")
        self.finest_weights = [_not_negative("finest_weights", w) for w in finest_weights or ()]
        weights = None if weight is None else torch.tensor([_not_negative("weight", w) for w in weight])
        self.register_buffer("weight", weights, persistent=False)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the loss of one prediction, or of one per scale.

        Target values are checked on the CPU only: on a GPU the check would wait for the device at every step, and
        an index outside ``0..C-1`` stops the program there anyway (device-side assert in ``gather``).

        Args:
            logits: (B, C, *spatial) with C >= 2, any float dtype; or a list of them, finest first. Coarser scales
                are compared with the target sampled at its nearest voxels (torch's ``nearest-exact``).
            target: (B, 1, *spatial) class indices with ``to_onehot_y``, else (B, C, *spatial) of 0 and 1.

        Returns:
            Scalar loss, float32 (float64 for float64 logits).

        Raises:
            ValueError: shapes, number of classes, weights or target values do not fit.
        """
        scales = [_plain(x) for x in ([logits] if isinstance(logits, Tensor) else logits)]
        if not scales:
            raise ValueError("got an empty list of logits, expected one tensor per scale, finest first.")
        for scale in scales:
            _check_logits(scale, scales[0], self.weight)
        index = self._index(_plain(target), scales[0])
        total = scales[0].new_zeros((), dtype=compute_dtype(scales[0]))
        for factor, scale in zip(self._factors(len(scales)), scales, strict=True):
            total = total + factor * self._one_scale(scale, _nearest(index, scale.shape[2:]))
        return total

    def _factors(self, n: int) -> list[float]:
        """Factors of n scales, finest first."""
        if n == 1:
            return [1.0]
        if self.finest_weights:
            return [*self.finest_weights, *[0.0] * n][:n]
        if self.scale_weights is None:
            return [2.0 ** (n - 1 - i) / (2**n - 1) for i in range(n)]
        if len(self.scale_weights) != n:
            raise ValueError(
                f"deep_supervision_weights has {len(self.scale_weights)} values, expected one for each of the {n} "
                "scales that the network returned."
            )
        return self.scale_weights

    def _index(self, target: Tensor, logits: Tensor) -> Tensor:
        """Class index of each voxel, ``IGNORED`` where it is to be ignored: (B, *spatial), int32."""
        classes = logits.shape[1]
        expected = (logits.shape[0], 1 if self.to_onehot_y else classes, *logits.shape[2:])
        if target.shape != expected:
            kind = "class indices (to_onehot_y=True)" if self.to_onehot_y else "a one-hot target (to_onehot_y=False)"
            raise ValueError(f"target has shape {tuple(target.shape)}, expected {expected} for {kind}.")
        if self.to_onehot_y:
            return _index_from_labels(target[:, 0], classes, self.ignore_index)
        return _index_from_onehot(target, self.ignore_index)

    def _one_scale(self, logits: Tensor, index: Tensor) -> Tensor:
        """Loss of logits (B, C, *spatial) against an index map (B, *spatial)."""
        logits, index = logits.flatten(2), index.flatten(1)  # (B, C, N), (B, N)
        masked = self.ignore_index is not None
        counts = _class_counts(index, logits)
        volume, overlap, nll, focal = ClassSums.apply(logits, index, self.gamma, masked)  # each (B, C)
        weight = torch.ones_like(volume[0]) if self.weight is None else self.weight.to(volume)  # (C,)
        first = 0 if self.include_background else 1
        if first and self.lambda_focal:  # MONAI's softmax over the foreground alone: see the class's docstring
            if logits.shape[1] == 2:
                warnings.warn("focal term is 0: one foreground class and include_background=False.", stacklevel=4)
            index = torch.where(index > 0, index - 1, IGNORED)
            focal = ClassSums.apply(logits[:, 1:], index, self.gamma, True)[3]
        elif first:
            focal = focal[:, first:]  # counts 0
        dice = self._dice(volume[:, first:], overlap[:, first:], counts[:, first:], weight[first:])
        cross_entropy = (nll * weight).sum() / (counts * weight).sum().clamp_min(torch.finfo(counts.dtype).tiny)
        focal = (focal * weight[first:]).sum() / (counts.sum() * focal.shape[1]).clamp_min(1)
        return self.lambda_dice * dice + self.lambda_focal * focal + self.lambda_ce * cross_entropy

    def _dice(self, volume: Tensor, overlap: Tensor, count: Tensor, weight: Tensor) -> Tensor:
        """Soft Dice loss from sums over voxels: predicted volume, its overlap with the target, target; each (B, C)."""
        if self.batch:
            volume, overlap, count = (x.sum(0, keepdim=True) for x in (volume, overlap, count))
        dice = (2 * overlap + self.smooth_nr) / (volume + count + self.smooth_dr)
        return ((1 - dice) * weight).mean()


def _class_counts(index: Tensor, logits: Tensor) -> Tensor:
    """Number of voxels of each class in an index map (B, N): (B, C), in the dtype of the computation."""
    classes = range(logits.shape[1])
    return torch.stack([(index == c).sum(1) for c in classes], 1).to(compute_dtype(logits))


def _nearest(index: Tensor, size: Sequence[int]) -> Tensor:
    """Sample an index map (B, *spatial) at its voxels nearest to a coarser grid, as ``nearest-exact`` does."""
    for axis, (n_in, n_out) in enumerate(zip(index.shape[1:], size, strict=True), start=1):
        if n_in != n_out:
            centres = torch.arange(n_out, device=index.device, dtype=torch.float32) + 0.5
            index = index.index_select(axis, (centres * (n_in / n_out)).long().clamp_max(n_in - 1))
    return index


def _index_from_labels(labels: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Index map (B, *spatial) from class labels of any dtype; values are checked on the CPU."""
    ignored = None if ignore_index is None else labels == ignore_index
    index = labels if ignored is None else labels.masked_fill(ignored, 0)
    if index.device.type == "cpu" and index.numel():
        low, high = (x.item() for x in index.aminmax())
        if not (low >= 0 and high < classes):
            bad = low if low < 0 else high
            raise ValueError(
                f"target holds value {bad:g}, but the logits have {classes} classes (0..{classes - 1}): remap the "
                "labels, set out_channels of the network, or ignore that value with ignore_index."
            )
        if index.is_floating_point() and (index != index.trunc()).any():
            raise ValueError(
                f"target holds value {index[index != index.trunc()][0].item():g}, expected whole class indices: "
                "resample labels with mode='nearest'."
            )
    index = index.to(torch.int32)
    return index if ignored is None else index.masked_fill_(ignored, IGNORED)


def _index_from_onehot(target: Tensor, ignore_index: int | None) -> Tensor:
    """Index map (B, *spatial) from a one-hot target (B, C, *spatial); values are checked on the CPU."""
    peak, index = target.to(torch.uint8 if target.dtype == torch.bool else target.dtype).max(1)
    ignored = None
    if ignore_index is not None:
        ignored = index == ignore_index if 0 <= ignore_index < target.shape[1] else peak == 0
    if target.device.type == "cpu":
        good = (peak == 1) & (target.count_nonzero(1) == 1)
        if not (good if ignored is None else good | ignored).all():
            raise ValueError(
                "target is not one-hot: a voxel does not have exactly one class with value 1. Pass class indices "
                "with to_onehot_y=True, or set ignore_index for voxels without a class. Soft labels are not supported."
            )
    index = index.to(torch.int32)
    return index if ignored is None else index.masked_fill_(ignored, IGNORED)


def _check_logits(logits: Tensor, finest: Tensor, weight: Tensor | None) -> None:
    """Raise ValueError unless logits are (B, C >= 2, *spatial), fit the finest scale and the class weights."""
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (B, C, *spatial) with C >= 2: set out_channels of the "
            "network to 2 or more (background and foreground)."
        )
    if logits.shape[:2] != finest.shape[:2] or logits.ndim != finest.ndim:
        raise ValueError(
            f"logits of a coarser scale have shape {tuple(logits.shape)}, "
            f"the finest {tuple(finest.shape)}: expected the same batch, classes and number of axes."
        )
    if weight is not None and len(weight) != logits.shape[1]:
        raise ValueError(
            f"weight has {len(weight)} values, but the logits have {logits.shape[1]} classes: give one weight per "
            "class, background included."
        )


def _plain(x: Tensor) -> Tensor:
    """The tensor without MONAI's MetaTensor wrapper, whose bookkeeping slows every operation."""
    return x.as_tensor() if hasattr(x, "as_tensor") else x


def _not_negative(name: str, value: float) -> float:
    """The value as a float, or ValueError when it is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}, expected a finite number >= 0.")
    return float(value)
