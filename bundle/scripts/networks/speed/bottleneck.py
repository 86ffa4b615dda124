"""MedNeXt's inverted bottleneck in one piece: instance normalisation, expansion, GELU, compression.

The normalisation divides each channel of each image by a number, which can as well divide the weights of the expansion.
Positions then pass through in chunks that stay in the processor's cache, and the hidden layer, the widest tensor of the
network, is never written to memory: the backward pass computes it again, chunk by chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .layout import channels_last, chunks, empty, group_size, grouped, rows
from .normalisation import gradient_terms, statistics

gelu_ = torch.ops.aten.gelu_
gelu_backward = torch.ops.aten.gelu_backward


class Layers(NamedTuple):
    """Parameters of the normalisation `(C,)`, the expansion `(H, C)`, `(H,)` and the compression `(O, H)`, `(O,)`."""

    scale: Tensor
    shift: Tensor
    expand: Tensor
    expand_bias: Tensor
    compress: Tensor
    compress_bias: Tensor

    def expansion(self, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
        """Weights `(H, C)` and bias `(H,)` of the expansion of an image of which only the means are taken away."""
        return self.expand * (self.scale * inverse_std), torch.addmv(self.expand_bias, self.expand, self.shift)


class Bottleneck(Function):
    """`compress(gelu(expand(instance_norm(x)))) + residual` of maps `(B, C, *spatial)`, 2D or 3D, channels last."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, residual: Tensor | None, eps: float, *layers: Tensor) -> Tensor:  # noqa: D102
        x = channels_last(x)
        layers = Layers(*(p.flatten(1) if p.ndim > 2 else p for p in layers))  # kernels (H, C, 1, 1, 1) -> (H, C)
        moments = (statistics(positions) for positions in rows(x))
        ctx.statistics = [(mean, (variance + eps).rsqrt_()) for mean, variance in moments]
        out = empty(x, len(layers.compress), x.shape[2:])
        into, added = rows(out), None if residual is None else rows(channels_last(residual))
        for image, (positions, (mean, inverse_std)) in enumerate(zip(rows(x), ctx.statistics, strict=True)):
            weight, bias = layers.expansion(inverse_std)
            for part in chunks(positions, len(weight)):
                y = into[image, part]
                hidden = gelu_(torch.addmm(bias, _centred(positions[part], mean), weight.T))
                torch.addmm(layers.compress_bias, hidden, layers.compress.T, out=y)
                if added is not None:
                    y.add_(added[image, part])
        ctx.save_for_backward(x, *layers)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, *layers = ctx.saved_tensors
        layers = Layers(*layers)
        gradient = channels_last(gradient)
        dx = empty(x, x.shape[1], x.shape[2:])
        total = Layers(*(torch.zeros_like(p) for p in layers))
        for *maps, moments in zip(rows(x), rows(gradient), rows(dx), ctx.statistics, strict=True):
            _image_gradient(*maps, *moments, layers, total)
        point = [1] * (x.ndim - 2)
        expand, compress = total.expand.unflatten(1, (-1, *point)), total.compress.unflatten(1, (-1, *point))
        return (
            dx,
            gradient if ctx.needs_input_grad[1] else None,
            None,
            *total._replace(expand=expand, compress=compress),
        )


def _image_gradient(
    x: Tensor, gradient: Tensor, dx: Tensor, mean: Tensor, inverse_std: Tensor, layers: Layers, total: Layers
) -> None:
    """Backward pass of one image `(P, C)`: puts the gradient of `x` into `dx`, adds those of the layers to `total`."""
    weight, bias = layers.expansion(inverse_std)
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for part in chunks(x, 2 * len(weight)):
        g, centred = gradient[part], _centred(x[part], mean)
        hidden = torch.addmm(bias, centred, weight.T)
        total.compress.addmm_(g.T, F.gelu(hidden))
        d_hidden = gelu_backward(g @ layers.compress, hidden)
        d_weight.addmm_(d_hidden.T, centred)
        d_bias.add_(d_hidden.sum(0))
        torch.mm(d_hidden, weight, out=dx[part])
    summed, correlated = layers.expand.T @ d_bias, (layers.expand * d_weight).sum(0) * inverse_std
    factor, slope, constant = gradient_terms(mean, inverse_std, layers.scale, summed, correlated, len(x))
    group = group_size(*x.shape)
    positions, into = grouped(x, group), grouped(dx, group)
    slope, constant = slope.repeat(group), constant.repeat(group)
    for part in chunks(positions, len(slope)):
        into[part].addcmul_(positions[part], slope).add_(constant)
    total.scale.add_(correlated)
    total.shift.add_(summed)
    total.expand.add_(d_weight * factor).addr_(d_bias, layers.shift)
    total.expand_bias.add_(d_bias)
    total.compress_bias.add_(gradient.sum(0))


def _centred(positions: Tensor, mean: Tensor) -> Tensor:
    """Positions `(P, C)` without their mean."""
    group = group_size(*positions.shape)
    return (grouped(positions, group) - mean.repeat(group)).view_as(positions)
