"""Convolutions where torch's choice of kernel is a bad one, as subclasses of torch's modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .conditions import applies, call
from .depthwise import DepthwiseConv, DepthwiseTransposedConv
from .layout import is_channels_last

SMALL = 20480  # of a single image, torch gives oneDNN only those with more values than this, not counting the last axis


class OneDNNConv(Function):
    """Convolution of `(B, C, *spatial)` by oneDNN, whatever torch would have chosen."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, dilation
        return torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Tensors in oneDNN's own wrapping are what makes torch leave the choice of the kernel to it
        wrapped = gradient.to_mkldnn(), x.to_mkldnn()
        no_padding, mask = [0] * (x.ndim - 2), [needs_x, needs_weight, False]
        dx, dw, _ = torch.ops.aten.convolution_backward(
            *wrapped, weight, None, *ctx.options, False, no_padding, 1, mask
        )
        dx, dw = (t.to_dense() if t is not None and t.is_mkldnn else t for t in (dx, dw))
        return dx, dw, gradient.sum([0, *range(2, x.ndim)]) if needs_bias else None, None, None, None


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Convolution with a kernel of one position, as a product of matrices; the output has its channels last."""
    positions = x.movedim(1, -1)[(slice(None), *(slice(None, None, s) for s in stride))]  # (B, *spatial / stride, C)
    return F.linear(positions, weight.flatten(1), bias).movedim(-1, 1)


def enlarge(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution of volumes whose stride is its kernel; the output has its channels last."""
    kernel = weight.shape[2:]
    positions = F.linear(x.movedim(1, -1), weight.permute(2, 3, 4, 1, 0).flatten(0, 3))  # (B, D, H, W, k * k * k * O)
    blocks = positions.unflatten(-1, (*kernel, -1)).permute(0, 1, 4, 2, 5, 3, 6, 7)  # (B, D, k, H, k, W, k, O)
    y = blocks.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return (y if bias is None else y + bias).movedim(-1, 1)


class FastConv2d(nn.Conv2d):
    """`Conv2d` that, between channels-last maps, has quick depthwise passes and products of matrices."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if takes(self, x) and is_channels_last(x):
            if is_depthwise(self):
                return call(DepthwiseConv.apply, x, self.weight, self.bias, self.stride, self.padding)
            if is_pointwise(self):
                return call(pointwise, x, self.weight, self.bias, self.stride)
        return super().forward(x)


class FastConv3d(nn.Conv3d):
    """`Conv3d` with a quick depthwise backward pass, oneDNN for small single volumes, and products of matrices."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if takes(self, x):
            if is_depthwise(self):
                y = call(DepthwiseConv.apply, x, self.weight, self.bias, self.stride, self.padding)
                return y if is_channels_last(x) else y.contiguous()
            if is_pointwise(self) and is_channels_last(x):
                return call(pointwise, x, self.weight, self.bias, self.stride)
            if self.groups == 1 and len(x) == 1 and math.prod(x.shape[:-1]) <= SMALL and not is_pointwise(self):
                options = self.stride, self.padding, self.dilation
                return call(OneDNNConv.apply, x, self.weight, self.bias, *options)
        return super().forward(x)


class FastConvTranspose3d(nn.ConvTranspose3d):
    """`ConvTranspose3d` with quick depthwise passes, and products of matrices where nothing overlaps."""

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # noqa: D102
        if output_size is None and fits(self, x) and not any(self.output_padding):
            if is_depthwise(self):
                y = call(DepthwiseTransposedConv.apply, x, self.weight, self.bias, self.stride, self.padding)
                return y if is_channels_last(x) else y.contiguous()
            if has_no_overlaps(self) and is_channels_last(x):
                return call(enlarge, x, self.weight, self.bias)
        return super().forward(x, output_size)


class Stem(nn.Conv3d):
    """Convolution with a kernel of one position whose output has its channels last, for what comes next."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if takes(self, x) and is_pointwise(self):
            return call(pointwise, x, self.weight, self.bias, self.stride)
        return super().forward(x)


class _Head:
    """Pointwise convolution whose output has its channels first, as losses like them; stands before torch's class."""

    def forward(self, x: Tensor) -> Tensor:
        if takes(self, x) and is_pointwise(self) and is_channels_last(x):
            return call(pointwise, x, self.weight, self.bias, self.stride).contiguous()
        return super().forward(x)


class Head2d(_Head, nn.Conv2d):
    """`Conv2d` that ends a chain of channels-last layers."""


class Head3d(_Head, nn.Conv3d):
    """`Conv3d` that ends a chain of channels-last layers."""


def fits(conv: nn.Module, x: Tensor) -> bool:
    """Whether `x` is a batch for this convolution that the faster paths may take."""
    batch = x.ndim == conv.weight.ndim and x.shape[1] == conv.in_channels and x.numel() > 0
    return batch and applies(x, conv.weight, conv.bias)


def takes(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether `x` fits a convolution with zeros around."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and fits(conv, x)


def is_depthwise(conv: nn.Module) -> bool:
    """Whether a convolution has one kernel per channel, which `DepthwiseConv` can turn around."""
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and set(conv.dilation) == {1}
        and all(p < k for p, k in zip(conv.padding, conv.kernel_size, strict=True))
    )


def is_pointwise(conv: nn.Module) -> bool:
    """Whether a convolution maps each position by itself."""
    return conv.groups == 1 and set(conv.kernel_size) == {1} and set(conv.padding) == {0}


def has_no_overlaps(conv: nn.Module) -> bool:
    """Whether each position of a transposed convolution fills a block of its own."""
    alone = conv.kernel_size == conv.stride and set(conv.padding) == {0} and set(conv.dilation) == {1}
    return alone and conv.groups == 1
