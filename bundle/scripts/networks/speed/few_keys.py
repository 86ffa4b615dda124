"""Attention of many queries over few keys, with a bias by position and dropout, slab by slab.

Queries are taken some at a time, so that their scores stay in the processor's cache; the backward pass computes them
again, and of the dropout only a mask is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from .dropout import draw

CHUNK = 2**17  # scores at a time: 512 KiB
softmax_gradient = torch.ops.aten._softmax_backward_data


class Slab(NamedTuple):
    """Some rows of pixels: the queries, the rows of the bias that they look at, and how the pixels share these."""

    queries: slice
    cells: slice
    shape: tuple[int, int, int, int]  # (rows of cells, rows of pixels in each, cells in a row, pixels in each)


class FewKeysAttention(Function):
    """`dropout(softmax(scale * (q @ k.T + bias))) @ v` for each head.

    Takes queries `(B, heads, H * W, d)`, keys and values `(B, heads, P, d)`, a bias `(heads, h, w, P)` for the cells of
    a grid that divides the image, or None, the size `(H, W)`, the scale and the probability of dropout; returns
    `(B, heads, H * W, d)`, in memory `(B, H * W, heads, d)`.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        size: Sequence[int],
        scale: float,
        dropout: float,
    ) -> Tensor:
        grid = (size[0], 1) if bias is None else bias.shape[1:3]
        ctx.slabs = list(slabs(size, grid, q.shape[1] * k.shape[2]))
        kept, ctx.gain = draw((*q.shape[:3], k.shape[2]), dropout) if dropout else (None, 1.0)
        bias = None if bias is None else bias * scale
        values = v * ctx.gain
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
        for image in range(len(q)):
            for slab in ctx.slabs:
                weights = _weights(q[image], k[image], bias, scale, slab)
                if kept is not None:
                    weights.mul_(kept[image, :, slab.queries])
                out[image, :, slab.queries] = weights @ values[image]
        ctx.save_for_backward(q, k, values, bias, kept)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        q, k, values, bias, kept = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(values)
        d_bias = None if bias is None else torch.zeros_like(bias)
        for image in range(len(q)):
            for slab in ctx.slabs:
                here = (image, slice(None), slab.queries)
                weights, g = _weights(q[image], k[image], bias, ctx.scale, slab), gradient[here]
                d_weights = g @ values[image].mT
                used = weights
                if kept is not None:
                    used = weights * kept[here]
                    d_weights.mul_(kept[here])
                dv[image] += used.mT @ g
                d_scores = softmax_gradient(d_weights, weights, -1, torch.float32)
                if d_bias is not None:
                    d_bias[:, slab.cells] += d_scores.unflatten(1, slab.shape).sum((2, 4))
                dq[here] = d_scores @ k[image]
                dk[image] += d_scores.mT @ q[here]
        d_bias = None if d_bias is None else d_bias * ctx.scale
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv.mul_(ctx.gain), d_bias, None, None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, slab: Slab) -> Tensor:
    """Attention weights `(heads, n, P)` of the queries of a slab."""
    q = q[:, slab.queries]
    if bias is None:
        scores = (q @ k.mT).mul_(scale)
    else:
        start = bias[:, slab.cells, None, :, None].expand(-1, *slab.shape, -1)  # (heads, h, H / h, w, W / w, P)
        scores = start.clone(memory_format=torch.contiguous_format).flatten(1, 4).baddbmm_(q, k.mT, alpha=scale)
    return scores.softmax(-1)


def slabs(size: Sequence[int], grid: Sequence[int], width: int) -> Iterator[Slab]:
    """Divide an image into slabs of about `CHUNK` scores.

    Args:
        size: of the image, `(H, W)`.
        grid: cells of the bias, which divide the image.
        width: scores of each pixel.

    Yields:
        The slabs: several rows of cells each, or a part of one.
    """
    (height, columns), tall = size, size[0] // grid[0]
    wanted = max(1, CHUNK // (width * columns))
    step = wanted - wanted % tall if wanted > tall else next(n for n in range(wanted, 0, -1) if tall % n == 0)
    for first in range(0, height, step):
        last = min(height, first + step)
        cells = slice(first // tall, -(-last // tall))
        count = cells.stop - cells.start
        yield Slab(
            queries=slice(first * columns, last * columns),
            cells=cells,
            shape=(count, (last - first) // count, grid[1], columns // grid[1]),
        )
