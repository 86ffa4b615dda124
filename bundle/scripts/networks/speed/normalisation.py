"""Instance normalisation of channels-last maps together with what follows it: a sum and a leaky ReLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from .layout import channels_last, chunks, empty, rows

activation_gradient = torch.ops.aten.leaky_relu_backward.grad_input
leaky_relu_ = torch.ops.aten.leaky_relu_


class NormAct(Function):
    """`leaky_relu(instance_norm(x) + residual)` of maps `(B, C, *spatial)`, 2D or 3D; a slope of 1 leaves the sum."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: FunctionCtx,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        eps: float,
        slope: float,
    ) -> Tensor:
        x = channels_last(x)
        out = empty(x, x.shape[1], x.shape[2:])
        added = None if residual is None else rows(channels_last(residual))
        ctx.statistics = [statistics(positions, eps) for positions in rows(x)]
        for image, (positions, (mean, inverse_std)) in enumerate(zip(rows(x), ctx.statistics, strict=True)):
            factor = inverse_std if scale is None else scale * inverse_std
            offset = -mean * factor if shift is None else shift - mean * factor
            for part in chunks(positions, x.shape[1]):
                y = torch.addcmul(offset, positions[part], factor, out=rows(out)[image, part])
                if added is not None:
                    y.add_(added[image, part])
                if slope != 1:
                    leaky_relu_(y, slope)
        ctx.save_for_backward(x, scale, out if slope != 1 else None)
        ctx.slope = slope
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
        d_scale, d_shift = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
        for image, (mean, inverse_std) in enumerate(ctx.statistics):
            positions, g, d, into = (rows(t)[image] for t in (x, gradient, before, dx))
            total, correlated = torch.zeros_like(mean), torch.zeros_like(mean)
            for part in chunks(positions, 2 * len(mean)):
                if out is not None:
                    activation_gradient(g[part], rows(out)[image, part], ctx.slope, True, grad_input=d[part])
                total += d[part].sum(0)
                correlated += (positions[part] - mean).mul_(d[part]).sum(0)
            correlated *= inverse_std
            factor, slope, constant = gradient_terms(mean, inverse_std, scale, total, correlated, len(positions))
            for part in chunks(positions, 2 * len(mean)):
                torch.mul(d[part], factor, out=into[part]).addcmul_(positions[part], slope).add_(constant)
            d_scale += correlated
            d_shift += total
        d_scale, d_shift = d_scale if needs_scale else None, d_shift if needs_shift else None
        return dx, d_scale, d_shift, before if needs_residual else None, None, None


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


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and one over the standard deviation, of each channel of an image `(P, C)`, which is read once."""
    parts = [_part_statistics(x[part]) for part in chunks(x, x.shape[1])]
    counts, means, squares = (torch.stack(values) for values in zip(*parts, strict=True))  # (parts, 1 or C)
    mean = (counts * means).sum(0) / len(x)
    variance = (counts * (means - mean).square() + squares).sum(0) / len(x)
    return mean, (variance + eps).rsqrt_()


def _part_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of positions, mean of each channel, and sum of its squared distances from it."""
    mean = x.mean(0)
    return torch.tensor([len(x)]), mean, (x - mean).square_().sum(0)
