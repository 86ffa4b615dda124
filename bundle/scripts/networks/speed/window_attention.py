"""Swin's window attention without its matrices of scores in memory, and with its masks made once.

Windows are taken a few at a time, so that their scores stay in the processor's cache; the backward pass computes them
again. Of the windows of a shifted grid only those at the end of an axis hold parts that must not see each other: all
windows at the end of the same axes share one mask, and the others need none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from monai.networks.nets.swin_unetr import BasicLayer, WindowAttention, get_window_size
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from .conditions import applies, call, watched

CHUNK = 2**19  # scores at a time: 2 MiB
HIDDEN = -100.0  # what MONAI adds to a score that must not count
NOTHING = -60.0  # exponent of a weight too small to matter next to others; far smaller ones are denormal, hence slow
attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class WindowMasks:
    """Masks of a shifted grid of windows.

    Args:
        grid: number of windows per axis.
        window: positions of a window per axis.
        shift: of the grid per axis, in positions; 0 where it is not shifted.
    """

    def __init__(self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> None:
        indices = torch.arange(torch.Size(grid).numel()).view(*grid)
        self.windows: list[Tensor] = []  # indices of the windows of each mask
        self.masks: list[Tensor | None] = []  # (N, N), None where all see all
        ends = [(slice(None, -1), slice(-1, None)) if s else (slice(None),) for s in shift]
        for which in itertools.product(*ends):
            chosen = indices[which].flatten()
            if len(chosen):
                self.windows.append(chosen)
                last = [w == slice(-1, None) for w in which]
                self.masks.append(_mask(window, [s * at_end for s, at_end in zip(shift, last, strict=True)]))

    def dense(self, like: Tensor) -> Tensor:
        """Mask of every window, `(windows, N, N)`, as MONAI's modules take it."""
        count = sum(len(windows) for windows in self.windows)
        size = next(len(mask) for mask in self.masks if mask is not None)
        out = like.new_zeros(count, size, size)
        for windows, mask in zip(self.windows, self.masks, strict=True):
            if mask is not None:
                out[windows.to(like.device)] = mask.to(out)
        return out


def _mask(window: Sequence[int], shift: Sequence[int]) -> Tensor | None:
    """What to add to the scores of a window `(N, N)` whose last `shift` positions of each axis come from elsewhere."""
    if not any(shift):
        return None
    parts = torch.zeros(*window, dtype=torch.long)
    for axis, (size, s) in enumerate(zip(window, shift, strict=True)):
        foreign = torch.arange(size) >= size - s
        parts = 2 * parts + foreign.view(-1, *[1] * (len(window) - axis - 1))
    parts = parts.flatten()
    return torch.where(parts[:, None] == parts, 0.0, HIDDEN)


window_masks = lru_cache(maxsize=32)(WindowMasks)


class Attention(Function):
    """Attention within windows.

    Takes queries, keys and values `(B * windows, N, 3 * C)`, the position bias `(heads, N, N)` and masks; returns
    `(B * windows, N, C)`.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx, qkv: Tensor, bias: Tensor, masks: WindowMasks | None, scale: float
    ) -> Tensor:
        out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        sums = qkv.new_empty(len(qkv), *bias.shape[:2])  # logarithm of the sum of each row of scores
        for windows, mask in _groups(masks, len(qkv)):
            added = bias if mask is None else bias + mask
            q, k, v = _heads(qkv[windows], 3, len(bias))
            y, total = attend(q, k, v, attn_mask=added[None], scale=scale)
            out[windows] = y.transpose(1, 2).flatten(2)
            sums[windows] = total
        ctx.save_for_backward(qkv, bias, out, sums)
        ctx.masks, ctx.scale = masks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        qkv, bias, out, sums = ctx.saved_tensors
        d_qkv, d_bias = torch.empty_like(qkv), torch.zeros_like(bias)
        step = max(1, CHUNK // bias.numel())
        for group, mask in _groups(ctx.masks, len(qkv)):
            added = bias if mask is None else bias + mask
            for windows in group.split(step):
                parts = _heads(qkv[windows], 3, len(bias)).contiguous()
                q, k, v = (t.flatten(0, 1) for t in parts)  # (B * heads, N, d) each
                y, g = (_heads(t[windows], 1, len(bias))[0].flatten(0, 1) for t in (out, gradient))
                start = added if len(windows) == 1 else added.repeat(len(windows), 1, 1)
                scores = torch.baddbmm(start, q, k.mT, alpha=ctx.scale)
                weights = scores.sub_(sums[windows].flatten(0, 1)[..., None]).clamp_(min=NOTHING).exp_()
                d_scores = torch.bmm(g, v.mT).sub_((g * y).sum(-1, keepdim=True)).mul_(weights)
                for window in d_scores.unflatten(0, (-1, len(bias))):
                    d_bias.add_(window)
                d = torch.stack((d_scores @ k * ctx.scale, d_scores.mT @ q * ctx.scale, weights.mT @ g))
                d_qkv[windows] = d.unflatten(1, (-1, len(bias))).permute(1, 3, 0, 2, 4).flatten(2)
        return d_qkv, d_bias, None, None


def _heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """Split `(B, N, parts * C)` to `(parts, B, heads, N, C / heads)`."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def _groups(masks: WindowMasks | None, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Indices of the windows of all images that share a mask, with that mask."""
    if masks is None:
        yield torch.arange(count), None
        return
    per_image = sum(len(windows) for windows in masks.windows)
    starts = torch.arange(0, count, per_image)[:, None]
    for windows, mask in zip(masks.windows, masks.masks, strict=True):
        yield (starts + windows).flatten(), mask


class FastWindowAttention(WindowAttention):
    """Faster `WindowAttention` of MONAI."""

    def forward(self, x: Tensor, mask: Tensor | WindowMasks | None) -> Tensor:  # noqa: D102
        parameters = (self.relative_position_bias_table, *self.qkv.parameters(), *self.proj.parameters())
        dropped = self.attn_drop.training and self.attn_drop.p > 0
        plainly = isinstance(mask, Tensor) or dropped or not applies(x, *parameters)
        if plainly or any(map(watched, (self.softmax, self.attn_drop))):
            return super().forward(x, mask.dense(x) if isinstance(mask, WindowMasks) else mask)
        return call(self._forward, x, mask)

    def _forward(self, x: Tensor, masks: WindowMasks | None) -> Tensor:
        n = x.shape[1]
        index = self.relative_position_index[:n, :n]
        bias = self.relative_position_bias_table[index.flatten()].T.unflatten(1, (n, n))  # (heads, N, N)
        x = Attention.apply(self.qkv(x), bias.contiguous(), masks, self.scale)
        return self.proj_drop(self.proj(x))


class FastBasicLayer(BasicLayer):
    """Faster `BasicLayer` of MONAI: it looks its masks up."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.use_hyena or not applies(x):
            return super().forward(x)
        window, shift = get_window_size(x.shape[2:], self.window_size, self.shift_size)
        grid = tuple(-(-n // w) for n, w in zip(x.shape[2:], window, strict=True))
        masks = window_masks(grid, window, shift) if any(shift) else None
        x = x.movedim(1, -1)  # (B, *spatial, C)
        for block in self.blocks:
            x = block(x, masks)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.movedim(-1, 1)
