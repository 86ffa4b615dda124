"""MedNeXt's blocks put together from the depthwise convolution and the bottleneck of this package."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from ..mednext_blocks import Block, DownBlock, UpBlock
from .bottleneck import Bottleneck
from .conditions import applies, call, watched
from .convolution import pointwise
from .depthwise import DepthwiseConv, DepthwiseTransposedConv
from .layout import channels_last, empty


class _FastBlock:
    """Block that keeps the resolution; stands before a block's class and falls back on it."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.ndim == self.conv1.weight.ndim and x.numel() > 0
        if batch and applies(x, *self.parameters()) and self._is_standard():
            return call(self._forward, x)
        return super().forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        return self._bottleneck(self._depthwise(DepthwiseConv, x), x if self.do_res else None)

    def _depthwise(self, function: type[Function], x: Tensor) -> Tensor:
        conv = self.conv1
        return function.apply(x, conv.weight, conv.bias, conv.stride, conv.padding)

    def _bottleneck(self, x: Tensor, residual: Tensor | None) -> Tensor:
        layers = (p for layer in (self.norm, self.conv2, self.conv3) for p in (layer.weight, layer.bias))
        return Bottleneck.apply(x, residual, self.norm.eps, *layers)

    def _is_standard(self) -> bool:
        """Whether the block is made of what these steps compute, and nobody watches what they skip."""
        layers = [layer for layer in self.children() if layer is not self.act]
        return (
            isinstance(self.norm, nn.GroupNorm)
            and self.norm.num_groups == self.norm.num_channels
            and type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and not self.global_resp_norm
            and all(layer.weight is not None and layer.bias is not None for layer in layers)
            and not any(map(watched, self.children()))
        )


class _FastDownBlock(_FastBlock):
    """Block that downsamples."""

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        residual = None
        if self.resample_do_res:
            residual = pointwise(x, self.res_conv.weight, self.res_conv.bias, self.res_conv.stride)
        return self._bottleneck(self._depthwise(DepthwiseConv, x), residual)


class _FastUpBlock(_FastBlock):
    """Block that upsamples."""

    def _forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        stride = self.conv1.stride
        finer = self._bottleneck(self._depthwise(DepthwiseTransposedConv, x), None)
        missing = getattr(self, "missing", [1, 0] * len(stride))  # MONAI's block fills up in front
        coarser = bias = None
        if self.resample_do_res:
            coarser = pointwise(x, self.res_conv.weight.transpose(0, 1), None, [1] * len(stride))
            bias = self.res_conv.bias
        return Join.apply(finer, coarser, bias, stride, missing)


class Join(Function):
    """Finer map plus a coarser one at every stride-th position plus a bias, with zeros around; channels last."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        finer: Tensor,
        coarser: Tensor | None,
        bias: Tensor | None,
        stride: Sequence[int],
        missing: Sequence[int],
    ) -> Tensor:
        before, after = missing[::2][::-1], missing[1::2][::-1]  # from the last axis first
        sizes = zip(finer.shape[2:], before, after, strict=True)
        out = empty(finer, finer.shape[1], [b + n + a for n, b, a in sizes]).zero_()
        inner = (..., *(slice(b, b + n) for n, b in zip(finer.shape[2:], before, strict=True)))
        ctx.inner, ctx.spread = inner, (..., *(slice(None, None, s) for s in stride))
        if bias is None:
            out[inner] = finer
        else:
            out[inner] = finer + bias.view(-1, *[1] * len(stride))
        if coarser is not None:
            out[inner][ctx.spread] += coarser
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        _, needs_coarser, needs_bias = ctx.needs_input_grad[:3]
        inner = channels_last(gradient[ctx.inner])
        coarser = channels_last(inner[ctx.spread]) if needs_coarser else None
        return inner, coarser, inner.sum([0, *range(2, inner.ndim)]) if needs_bias else None, None, None


class FastBlock(_FastBlock, Block):
    """Faster `Block`."""


class FastDownBlock(_FastDownBlock, DownBlock):
    """Faster `DownBlock`."""


class FastUpBlock(_FastUpBlock, UpBlock):
    """Faster `UpBlock`."""


class FastMedNeXtBlock(_FastBlock, MedNeXtBlock):
    """Faster `MedNeXtBlock` of MONAI."""


class FastMedNeXtDownBlock(_FastDownBlock, MedNeXtDownBlock):
    """Faster `MedNeXtDownBlock` of MONAI."""


class FastMedNeXtUpBlock(_FastUpBlock, MedNeXtUpBlock):
    """Faster `MedNeXtUpBlock` of MONAI."""


BLOCKS = {
    Block: FastBlock,
    DownBlock: FastDownBlock,
    UpBlock: FastUpBlock,
    MedNeXtBlock: FastMedNeXtBlock,
    MedNeXtDownBlock: FastMedNeXtDownBlock,
    MedNeXtUpBlock: FastMedNeXtUpBlock,
}
