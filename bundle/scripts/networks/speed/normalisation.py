"""Normalisation of channels-last maps together with what follows it: a sum and a leaky ReLU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from .layout import channels_last, chunks, empty, group_size, grouped, rows

Moments = tuple[Tensor, Tensor]
activation_gradient = torch.ops.aten.leaky_relu_backward.grad_input
leaky_relu_ = torch.ops.aten.leaky_relu_


class NormAct(Function):
    """`leaky_relu(scale * (x - mean) / std + shift + residual)` of channels-last maps; a slope of 1 leaves the sum.

    Takes `x` and the residual `(B, C, *spatial)`, the scale and the shift `(C,)`, each but `x` or None; and of each
    image, or once for all of them, the moments. Unless these are fixed they are those of `x`, and have a gradient.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        moments: Sequence[Moments],
        fixed: bool,
        slope: float,
    ) -> Tensor:
        out = empty(x, x.shape[1], x.shape[2:])
        group, maps = _matrices((x, out, residual), len(moments))
        for (positions, into, added), (mean, inverse_std) in zip(maps, moments, strict=True):
            factor = inverse_std if scale is None else scale * inverse_std
            offset = -mean * factor if shift is None else shift - mean * factor
            factor, offset = factor.repeat(group), offset.repeat(group)
            for part in chunks(positions, len(factor)):
                y = torch.addcmul(offset, positions[part], factor, out=into[part])
                if added is not None:
                    y.add_(added[part])
                if slope != 1:
                    leaky_relu_(y, slope)
        ctx.save_for_backward(x, scale, out if slope != 1 else None)
        ctx.moments, ctx.fixed, ctx.slope = moments, fixed, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, scale, out = ctx.saved_tensors
        gradient = channels_last(gradient)
        _, needs_scale, needs_shift, needs_residual = ctx.needs_input_grad[:4]
        dx = empty(x, x.shape[1], x.shape[2:])
        before = gradient  # gradient before the activation
        if out is not None:
            before = empty(x, x.shape[1], x.shape[2:]) if needs_residual else dx
        d_scale, d_shift = x.new_zeros(2, x.shape[1])
        group, maps = _matrices((x, gradient, before, dx, out), len(ctx.moments))
        for (positions, g, d, into, y), (mean, inverse_std) in zip(maps, ctx.moments, strict=True):
            total, correlated = positions.new_zeros(2, group * len(mean))
            means = mean.repeat(group)
            for part in chunks(positions, 2 * len(means)):
                if y is not None:
                    activation_gradient(g[part], y[part], ctx.slope, True, grad_input=d[part])
                total += d[part].sum(0)
                correlated += (positions[part] - means).mul_(d[part]).sum(0)
            total, correlated = (t.view(group, -1).sum(0) for t in (total, correlated))
            correlated *= inverse_std
            d_scale += correlated
            d_shift += total
            count = positions.numel() // len(mean)
            terms = gradient_terms(mean, inverse_std, scale, total, correlated, count)
            factor, slope, constant = (term.repeat(group) for term in terms)
            for part in chunks(positions, 2 * len(means)):
                torch.mul(d[part], factor, out=into[part])
                if not ctx.fixed:
                    into[part].addcmul_(positions[part], slope).add_(constant)
        d_scale, d_shift = d_scale if needs_scale else None, d_shift if needs_shift else None
        return dx, d_scale, d_shift, before if needs_residual else None, None, None, None


def instance_norm_act(
    norm: nn.InstanceNorm2d | nn.InstanceNorm3d, x: Tensor, residual: Tensor | None, slope: float
) -> Tensor:
    """`leaky_relu(norm(x) + residual)` of maps `(B, C, *spatial)`; a slope of 1 leaves the sum."""
    if math.prod(x.shape[2:]) == 1:
        return norm(x)  # it says what is wrong
    x, residual = channels_last(x), None if residual is None else channels_last(residual)
    moments = [(mean, (variance + norm.eps).rsqrt()) for mean, variance in map(statistics, rows(x.detach()))]
    return NormAct.apply(x, norm.weight, norm.bias, residual, moments, False, slope)


def batch_norm_act(norm: nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    """`leaky_relu(norm(x) + residual)` of maps `(B, C, *spatial)`; a slope of 1 leaves the sum."""
    count = x.numel() // x.shape[1]
    if x.shape[1] != norm.num_features or (norm.training and count == 1):
        return norm(x)  # it says what is wrong
    x, residual = channels_last(x), None if residual is None else channels_last(residual)
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = statistics(rows(x.detach()).flatten(0, 1))
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    moments = [(mean.clone(), (variance + norm.eps).rsqrt())]
    return NormAct.apply(x, norm.weight, norm.bias, residual, moments, not norm.training, slope)


def is_standard_batch_norm(norm: nn.Module) -> bool:
    """Whether `batch_norm_act` knows all that a layer does."""
    plain = type(norm) in (nn.BatchNorm2d, nn.BatchNorm3d)
    return plain and norm.affine and norm.track_running_stats and norm.momentum is not None


def _matrices(maps: Sequence[Tensor | None], parts: int) -> tuple[int, Iterator[tuple[Tensor | None, ...]]]:
    """Maps `(B, C, *spatial)` as matrices of rows that hold several positions each.

    Args:
        maps: channels-last maps of one shape, or None.
        parts: into how many matrices their batch is divided.

    Returns:
        Number of positions in a row, and for each part a matrix `(positions / number, number * C)` of each map.
    """
    width = maps[0].shape[1]
    group = group_size(maps[0].numel() // width // parts, width)
    shape = parts, -1, group * width
    views = [[None] * parts if t is None else t.movedim(1, -1).view(shape) for t in maps]
    return group, zip(*views, strict=True)


def gradient_terms(
    mean: Tensor, inverse_std: Tensor, scale: Tensor | None, total: Tensor, correlated: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of what was normalised, as `factor * g + slope * x + constant` of the gradient `g` of the result.

    Args:
        mean: of each channel, `(C,)` as all others.
        inverse_std: one over the standard deviation of each channel.
        scale: of each channel after the normalisation; None: 1.
        total: sum of `g` over the positions.
        correlated: sum over the positions of the product of `g` and the normalised map.
        count: number of positions.

    Returns:
        The three terms, each `(C,)`. The last two are what the mean and the deviation, which depend on all positions,
        add to each.
    """
    factor = inverse_std if scale is None else scale * inverse_std
    slope = factor * inverse_std * correlated / -count
    return factor, slope, factor * total / -count - slope * mean


def statistics(x: Tensor) -> Moments:
    """Mean and variance of each channel of positions `(P, C)`, which are read once."""
    group, channels = group_size(*x.shape), x.shape[1]
    positions = grouped(x, group)
    parts = [_part_statistics(positions[part]) for part in chunks(positions, positions.shape[1])]
    counts, means, squares = (torch.stack(values) for values in zip(*parts, strict=True))  # (parts, 1 or group * C)
    counts = counts.repeat_interleave(group, dim=0)
    means, squares = means.view(-1, channels), squares.view(-1, channels)  # (parts * group, C)
    mean = (counts * means).sum(0) / len(x)
    return mean, (counts * (means - mean).square() + squares).sum(0) / len(x)


def _part_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of rows, mean of each column, and sum of its squared distances from it."""
    mean = x.mean(0)
    return torch.tensor([len(x)]), mean, (x - mean).square_().sum(0)
