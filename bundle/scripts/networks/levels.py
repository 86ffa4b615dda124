"""What encoders and decoders say about their levels, and what they refuse: one set of words for all networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm


def level_strides(
    strides: Sequence[int | Sequence[int]] | None, levels: int, spatial_dims: int
) -> tuple[tuple[int, ...], ...]:
    """Stride of each level per axis, each a multiple of the one before.

    Args:
        strides: one entry per level, finest first, each a number or one per axis; None: 1, 2, 4, ...
        levels: number of levels.
        spatial_dims: number of axes.

    Raises:
        ValueError: if there are more or fewer, or one is not a multiple of the one before.
    """
    strides = [2**level for level in range(levels)] if strides is None else strides
    full = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in strides)
    if len(full) != levels or any(len(s) != spatial_dims or min(s) < 1 for s in full):
        raise ValueError(
            f"strides is {strides}; expected {levels} entries (one per level), each a number or {spatial_dims} of them."
        )
    for fine, coarse in pairwise(full):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(f"strides is {strides}; {coarse} is not a multiple of {fine} on every axis.")
    return full


def steps(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Factors per axis between each level and the next coarser one."""
    return [tuple(c // f for f, c in zip(fine, coarse, strict=True)) for fine, coarse in pairwise(strides)]


def per_axis(name: str, value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Expand a positive number to one per axis, or check that a list has one per axis."""
    values = (value,) * spatial_dims if isinstance(value, int) else tuple(value)
    if len(values) != spatial_dims or min(values) < 1:
        raise ValueError(f"{name} is {value}; expected a positive number, or {spatial_dims} of them.")
    return values


def per_level(name: str, value: int | Sequence[int], levels: int, *, minimum: int) -> list[int]:
    """Expand a number of at least `minimum` to one per level, or check that a list has one per level."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels or min(values) < minimum:
        raise ValueError(f"{name} is {value}; expected a number of at least {minimum}, or {levels} (one per level).")
    return values


def check_spatial_dims(spatial_dims: int) -> None:
    """Refuse anything but planes and volumes."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}; expected 2 or 3.")


def check_planes(spatial_dims: int) -> None:
    """Refuse anything but planes."""
    if spatial_dims != 2:
        raise ValueError(f"spatial_dims is {spatial_dims}; this network is for planes: write 2, and 2D patches.")


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1, by their names."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1.")


def check_rates(**rates: float) -> None:
    """Refuse probabilities of dropout outside of [0, 1), by their names."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}; expected a probability in [0, 1).")


def check_channels(channels: Sequence[int]) -> None:
    """Refuse fewer than two levels, and levels without channels."""
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels is {list(channels)}; expected at least two levels of at least one channel.")


def check_count(features: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Refuse another number of features than there are levels."""
    if len(features) != len(channels):
        raise ValueError(f"got {len(features)} features; expected {len(channels)}, one per entry of channels.")


def check_image(x: Tensor, in_channels: int, divisor: Sequence[int]) -> None:
    """Refuse an image that an encoder cannot take.

    Args:
        x: the image; expected `(B, in_channels, *spatial)`.
        in_channels: channels of the image.
        divisor: what each spatial axis must be divisible by.

    Raises:
        ValueError: naming what came and what was expected.
    """
    if x.ndim != 2 + len(divisor) or x.shape[1] != in_channels:
        raise ValueError(
            f"image has shape {tuple(x.shape)}; expected (B, {in_channels}, *spatial) with {len(divisor)} spatial axes."
        )
    spatial = tuple(x.shape[2:])
    if any(size == 0 or size % d for size, d in zip(spatial, divisor, strict=True)):
        raise ValueError(
            f"image has spatial size {spatial}; each axis must be divisible by {tuple(divisor)}. Pad the image or "
            "choose another patch size."
        )


def grey_or_colour(x: Tensor, in_channels: int) -> Tensor:
    """Repeat images of one channel `(B, 1, *spatial)` where a network expects three (RGB); others stay as they are."""
    if in_channels != 3 or (not torch.jit.is_tracing() and (x.ndim < 3 or x.shape[1] not in (1, 3))):
        return x
    return x.expand(-1, 3, *[-1] * (x.ndim - 2))


def fixed_size(img_size: int | Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Expand the size of every image to one number per axis, and check that it is divisible."""
    size = (img_size,) * len(divisor) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != len(divisor) or any(n < d or n % d for n, d in zip(size, divisor, strict=True)):
        raise ValueError(
            f"img_size is {img_size}; expected one number or {len(divisor)} of them, divisible by {tuple(divisor)}. "
            "Set patch_size to such a size."
        )
    return size


def check_fixed_image(x: Tensor, in_channels: int, divisor: Sequence[int], img_size: Sequence[int]) -> None:
    """Refuse an image that an encoder for images of one size cannot take."""
    check_image(x, in_channels, divisor)
    if tuple(x.shape[2:]) != tuple(img_size):
        raise ValueError(
            f"image has spatial size {tuple(x.shape[2:])}, but the network is made for img_size {tuple(img_size)}: cut "
            "or pad the image to windows of that size (patch_size)."
        )


def least_batch(module: nn.Module) -> float:
    """How many images a module must get at once to take maps of a single position.

    Torch refuses to normalise a single value, which would erase it: instance normalisation refuses maps of a single
    position at any batch size, group normalisation with a group per channel only where there is also a single image.

    Args:
        module: any module.

    Returns:
        1, 2 or infinity.
    """
    parts = list(module.modules())
    if any(isinstance(part, _InstanceNorm) for part in parts):
        return math.inf
    return 2 if any(isinstance(part, nn.GroupNorm) and part.num_groups == part.num_channels for part in parts) else 1


def check_not_single(
    coarsest: Sequence[int], stride: Sequence[int], *, batch: int = 1, least_batch: float = math.inf
) -> None:
    """Refuse a coarsest map of a single position where torch refuses to normalise it.

    Args:
        coarsest: its spatial size.
        stride: its stride per axis.
        batch: number of images.
        least_batch: number of images from which on a single position is allowed, as `least_batch` says.

    Raises:
        ValueError: if it has one position.
    """
    if math.prod(coarsest) < 2 and batch < least_batch:
        raise ValueError(
            f"the coarsest feature map has spatial size {tuple(coarsest)}: a single position, which normalisation "
            f"would erase. Each axis of the image must be divisible by {tuple(stride)} and at least one axis at least "
            "twice that."
        )
