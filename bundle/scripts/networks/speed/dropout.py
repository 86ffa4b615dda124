"""Dropout whose random numbers cost little: torch draws a 64-bit number where 16 bits do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 2**16  # of a random number of 16 bits


def draw(shape: Sequence[int], probability: float) -> tuple[Tensor, float]:
    """What a dropout of this probability keeps, from torch's generator.

    Args:
        shape: of the mask.
        probability: of an entry to be dropped, in [0, 1); it is rounded to a multiple of 1 / 65536.

    Returns:
        The mask, True where an entry stays, and what those that stay are multiplied by.
    """
    count, dropped = torch.Size(shape).numel(), min(round(probability * LEVELS), LEVELS - 1)
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[:count].view(*shape) >= dropped - LEVELS // 2
    return kept, LEVELS / (LEVELS - dropped)


def dropout(x: Tensor, probability: float) -> Tensor:
    """`torch.nn.functional.dropout` in training, with other random numbers."""
    if not probability:
        return x
    kept, scale = draw(x.shape, probability)
    if not x.is_contiguous():
        kept = kept.view_as(x.movedim(1, -1)).movedim(-1, 1)  # in the order of the memory
    return (x * kept).mul_(scale)
