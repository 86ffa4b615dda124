"""Depthwise convolutions of the fast paths against torch's, in value and in every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from scripts.networks.speed.depthwise import DepthwiseConv, DepthwiseTransposedConv, weight_gradient
from torch.nn import functional as F

PLAIN = {
    (DepthwiseConv, 2): F.conv2d,
    (DepthwiseConv, 3): F.conv3d,
    (DepthwiseTransposedConv, 2): F.conv_transpose2d,
    (DepthwiseTransposedConv, 3): F.conv_transpose3d,
}


def compare(function, x, kernel, stride, padding, *, with_bias=True):
    """Check a function on an image against torch's in double precision."""
    channels, axes = x.shape[1], x.ndim - 2
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(channels, 1, *kernel, generator=generator)
    bias = torch.randn(channels, generator=generator) if with_bias else None
    single = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    double = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    result = function.apply(*single, stride, padding)
    expected = PLAIN[function, axes](*double, stride=stride, padding=padding, groups=channels)
    gradient = torch.randn(expected.shape, generator=generator)
    result.backward(gradient)
    expected.backward(gradient.double())
    close(result, expected)
    for ours, theirs in zip(single, double, strict=True):
        if ours is not None:
            assert ours.grad.shape == theirs.grad.shape
            close(ours.grad, theirs.grad)


def close(result, expected):
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("function", [DepthwiseConv, DepthwiseTransposedConv])
@pytest.mark.parametrize("axes", [2, 3])
def test_equals_torch(function, axes):
    for kernel, stride, batch in itertools.product((1, 3, 5, 7), (1, 2, 3), (1, 2)):
        x = torch.randn(batch, 8, *(7, 9, 10)[-axes:], generator=torch.Generator().manual_seed(0))
        compare(function, x, [kernel] * axes, (stride,) * axes, (kernel // 2,) * axes)


@pytest.mark.parametrize("function", [DepthwiseConv, DepthwiseTransposedConv])
def test_equals_torch_where_axes_differ(function):
    x = torch.randn(2, 3, 6, 8, 5)
    compare(function, x, (1, 3, 5), (1, 2, 1), (0, 1, 2))
    compare(function, x, (3, 5, 3), (2, 1, 3), (1, 0, 1), with_bias=False)
    compare(function, x, (5, 3, 4), (1, 1, 2), (0, 0, 1))


@pytest.mark.parametrize("function", [DepthwiseConv, DepthwiseTransposedConv])
def test_takes_any_layout(function):
    base = torch.randn(2, 6, 8, 6, 4)
    cases = [
        base.contiguous(memory_format=torch.channels_last_3d),
        base.transpose(2, 4),
        base[:, ::2, 1:, ::2],
        base[:1].expand(3, -1, -1, -1, -1),
    ]
    for x in cases:
        compare(function, x, (3, 3, 3), (1, 1, 1), (1, 1, 1))


def test_single_channel_and_single_plane():
    compare(DepthwiseConv, torch.randn(2, 1, 5, 4, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1))
    compare(DepthwiseConv, torch.randn(1, 4, 1, 1, 1), (5, 5, 5), (1, 1, 1), (2, 2, 2))
    compare(DepthwiseConv, torch.randn(1, 4, 1, 2, 1), (5, 5, 5), (2, 2, 2), (2, 2, 2))


def test_asks_only_for_the_gradients_that_are_needed():
    x, weight = torch.randn(1, 4, 4, 4, 4), torch.randn(4, 1, 3, 3, 3, requires_grad=True)
    DepthwiseConv.apply(x, weight, None, (1, 1, 1), (1, 1, 1)).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_second_derivative_fails_clearly():
    x, weight = torch.randn(1, 2, 4, 4, 4, requires_grad=True), torch.randn(2, 1, 3, 3, 3, requires_grad=True)
    y = DepthwiseConv.apply(x, weight, None, (1, 1, 1), (1, 1, 1))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_weight_gradient_skips_planes_that_never_meet():
    x, gradient = torch.randn(1, 2, 1, 4, 4), torch.randn(1, 2, 1, 4, 4)
    result = weight_gradient(x, gradient, torch.Size((2, 1, 5, 3, 3)), (1, 1, 1), (2, 1, 1))
    assert result[:, :, 2].abs().min() > 0
    assert result[:, :, [0, 1, 3, 4]].abs().max() == 0


@pytest.mark.parametrize("function", [DepthwiseConv, DepthwiseTransposedConv])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_kernels_wider_than_the_image(function, width):
    for kernel, stride in itertools.product((7, 9), (1, 2)):
        x = torch.randn(1, 4, 4, 3, width, generator=torch.Generator().manual_seed(0))
        compare(function, x, [kernel] * 3, (stride,) * 3, (kernel // 2,) * 3)
