"""Depthwise convolutions whose backward pass does not crawl.

oneDNN, which torch calls on CPUs, is quick at three things when channels come last in memory: a depthwise convolution
forward, and in 2D the gradient of its weights for kernels of up to three columns. The others fall back to dense
convolutions of each channel. So here

- the gradient of the input is a convolution forward with the kernel turned around, of the gradient with zeros between
  its values where there is a stride;
- the gradient of the weights of a volume is a sum over its planes, and that of a wide kernel is put together from
  groups of three columns;
- a transposed convolution is the one's gradient, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .layout import channels_last, empty

COLUMNS = 3  # widest kernel of oneDNN's quick weight gradient
CONVOLUTIONS = {1: F.conv2d, 2: F.conv2d, 3: F.conv3d}


class DepthwiseConv(Function):
    """Depthwise convolution of `(B, C, *spatial)`, 2D or 3D, with zeros around; the output has channels last."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return convolve(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        gradient = channels_last(gradient)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = transpose(gradient, weight, None, ctx.stride, ctx.padding, x.shape[2:]) if needs_x else None
        dw = weight_gradient(x, gradient, weight.shape, ctx.stride, ctx.padding) if needs_weight else None
        return dx, dw, _bias_gradient(gradient) if needs_bias else None, None, None


class DepthwiseTransposedConv(Function):
    """Depthwise transposed convolution of `(B, C, *spatial)`, 2D or 3D; the output has channels last."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
        return transpose(x, weight, bias, stride, padding, [(n - 1) * s + k - 2 * p for n, k, s, p in sizes])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        gradient = channels_last(gradient)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = convolve(gradient, weight, None, ctx.stride, ctx.padding) if needs_x else None
        dw = weight_gradient(gradient, x, weight.shape, ctx.stride, ctx.padding) if needs_weight else None
        return dx, dw, _bias_gradient(gradient) if needs_bias else None, None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Depthwise convolution of a channels-last `(B, C, *spatial)` with `(C, 1, *kernel)`."""
    return CONVOLUTIONS[x.ndim - 2](x, weight, bias, stride, padding, 1, len(weight))


def transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """Transposed depthwise convolution to `(B, C, *size)`: zeros between the values, and the kernel turned around."""
    kernel, axes = weight.shape[2:], list(range(2, x.ndim))
    if any(s > 1 for s in stride):
        sizes = [n + 2 * p - k + 1 for n, k, p in zip(size, kernel, padding, strict=True)]
        places = (slice(None, (n - 1) * s + 1, s) for n, s in zip(x.shape[2:], stride, strict=True))
        spread = empty(x, x.shape[1], sizes).zero_()
        spread[(..., *places)] = x
        x = spread
    around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    return convolve(x, weight.flip(axes), bias, [1] * len(axes), around)


def weight_gradient(
    x: Tensor, gradient: Tensor, shape: torch.Size, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient of the weights of a depthwise convolution.

    Args:
        x: what was convolved, channels last, `(B, C, *spatial)`.
        gradient: that of the result, channels last.
        shape: of the weights, `(C, 1, *kernel)`.
        stride: of the convolution per axis.
        padding: of the convolution per axis.

    Returns:
        `(C, 1, *kernel)`.
    """
    width = shape[-1]
    if width <= COLUMNS:
        return _columns_gradient(x, gradient, shape, stride, padding)
    parts = []
    for column in range(0, width, COLUMNS):
        columns = min(COLUMNS, width - column)
        start = column - padding[-1]
        stop = start + stride[-1] * (gradient.shape[-1] - 1) + columns
        met = x[..., max(0, start) : max(0, stop)]  # by this group, with zeros around
        if met.numel():
            met = F.pad(met.movedim(1, -1), (0, 0, max(0, -start), max(0, stop - x.shape[-1]))).movedim(-1, 1)
            parts.append(_columns_gradient(met, gradient, (*shape[:-1], columns), stride, (*padding[:-1], 0)))
        else:
            parts.append(x.new_zeros(*shape[:-1], columns))
    return torch.cat(parts, dim=-1)


def _columns_gradient(
    x: Tensor, gradient: Tensor, shape: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`weight_gradient` of a kernel of few columns."""
    if x.ndim == 4:
        return _plane_gradient(x, gradient, shape[2:], stride, padding)
    total = x.new_zeros(shape)
    (step, *stride), (before, *padding) = stride, padding
    for image, g in zip(x.transpose(1, 2), gradient.transpose(1, 2), strict=True):  # (D, C, H, W) each
        for tap in range(shape[2]):  # plane i of the gradient meets plane step * i + offset of the image
            offset = tap - before
            first, last = max(0, -(offset // step)), min(len(g), (len(image) - 1 - offset) // step + 1)
            if first < last:
                met = image[step * first + offset : step * (last - 1) + offset + 1 : step]
                total[:, :, tap] += _plane_gradient(met, g[first:last], shape[3:], stride, padding)
    return total


def _plane_gradient(
    x: Tensor, gradient: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """`weight_gradient` of planes `(B, C, H, W)`."""
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, *kernel)  # only its shape matters
    mask = [False, True, False]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], channels, mask
    )[1]


def _bias_gradient(gradient: Tensor) -> Tensor:
    return gradient.sum([0, *range(2, gradient.ndim)])
