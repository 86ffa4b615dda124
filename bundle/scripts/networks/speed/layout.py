"""The memory layout that the fast paths share: the channels of a position next to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
CHUNK = 2**17  # values that the fast paths work on at a time: 512 KiB, which stays in a core's cache
ROW = 1024  # values of a row that vector instructions take at a stretch; few channels alone would be too short for them


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of `(B, C, *spatial)` lie next to each other in memory, and only so."""
    if x.shape[1] == 1:  # as `channels_last` has it
        return x.stride(1) == 1 < x[0].numel()
    return x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim]) and not x.is_contiguous()


def channels_last(x: Tensor) -> Tensor:
    """`(B, C, *spatial)` with its channels next to each other in memory; a copy only where they are not."""
    if x.shape[1] == 1:  # both layouts at once, of which torch would take it for the other one
        return x.contiguous().flatten(1, 2).unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim])


def empty(like: Tensor, channels: int, spatial: Sequence[int]) -> Tensor:
    """New tensor `(B, channels, *spatial)` of this layout, of the batch size of `like`."""
    return like.new_empty((like.shape[0], *spatial, channels)).movedim(-1, 1)


def rows(x: Tensor) -> Tensor:
    """View of a channels-last `(B, C, *spatial)` as a matrix of positions and channels per image, `(B, P, C)`."""
    return x.movedim(1, -1).flatten(1, -2)


def group_size(positions: int, channels: int) -> int:
    """Number of positions that `grouped` puts in a row: a power of two that divides `positions`."""
    return math.gcd(positions, 2 ** max(0, (ROW // channels).bit_length() - 1))


def grouped(x: Tensor, group: int) -> Tensor:
    """View of positions and channels `(P, C)` with several positions in a row, `(P / group, group * C)`."""
    return x.view(-1, group * x.shape[1])


def chunks(positions: Tensor, width: int) -> list[slice]:
    """Slices of the rows of a matrix, each of about `CHUNK` values at `width` values a row."""
    step = max(1, CHUNK // width)
    step -= step % 64 if step > 64 else 0  # so that chunks of positions can be grouped
    return [slice(start, start + step) for start in range(0, len(positions), step)]
