"""MedNeXt's bottleneck and blocks on the fast paths against the same blocks on torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from scripts.networks.mednext_blocks import Block, DownBlock, UpBlock
from scripts.networks.speed import accelerate, layout
from scripts.networks.speed.bottleneck import Bottleneck
from torch.nn import functional as F

OURS = {"kernel_size": 3, "expansion_ratio": 2}


def plain(x, residual, eps, scale, shift, expand, expand_bias, compress, compress_bias):
    conv = F.conv3d if x.ndim == 5 else F.conv2d
    hidden = F.gelu(conv(F.group_norm(x, x.shape[1], scale, shift, eps), expand, expand_bias))
    y = conv(hidden, compress, compress_bias)
    return y if residual is None else y + residual


def close(result, expected, tolerance=3e-6):
    assert result.shape == expected.shape
    assert (result - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_bottleneck(monkeypatch, axes, batch, with_residual, mean):
    monkeypatch.setattr(layout, "CHUNK", 500)  # several chunks, the last one smaller
    torch.manual_seed(0)
    point = [1] * axes
    layers = [torch.randn(4) + 1, torch.randn(4), torch.randn(8, 4, *point), torch.randn(8), torch.randn(6, 8, *point)]
    tensors = [torch.randn(batch, 4, *(5, 9, 7)[-axes:]) + mean, *layers, torch.randn(6)]
    residual = torch.randn(batch, 6, *(5, 9, 7)[-axes:]) if with_residual else None
    single = [t.clone().requires_grad_() for t in tensors]
    double = [t.double().requires_grad_() for t in tensors]
    residuals = [
        None if residual is None else residual.clone().to(t).detach().requires_grad_()
        for t in (torch.float32, torch.float64)
    ]
    result = Bottleneck.apply(single[0], residuals[0], 1e-5, *single[1:])
    expected = plain(double[0], residuals[1], 1e-5, *double[1:])
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    tolerance = 3e-6 if mean == 0 else 3e-5  # float32 holds no more of a value of 20 +- 1
    close(result, expected, tolerance)
    for ours, theirs in zip(single, double, strict=True):
        close(ours.grad, theirs.grad, tolerance)
    if with_residual:
        close(residuals[0].grad, residuals[1].grad)


BLOCKS = {
    "block": lambda axes: Block(spatial_dims=axes, channels=6, **OURS),
    "block without residual": lambda axes: Block(spatial_dims=axes, channels=6, residual=False, **OURS),
    "down": lambda axes: DownBlock(spatial_dims=axes, in_channels=6, out_channels=8, stride=[2] * axes, **OURS),
    "down, uneven": lambda axes: DownBlock(
        spatial_dims=axes, in_channels=6, out_channels=8, stride=[2, 1, 4][:axes], residual=False, **OURS
    ),
    "up": lambda axes: UpBlock(spatial_dims=axes, in_channels=6, out_channels=4, stride=[2] * axes, **OURS),
    "up, uneven": lambda axes: UpBlock(
        spatial_dims=axes, in_channels=6, out_channels=4, stride=[2, 1, 4][:axes], residual=False, **OURS
    ),
    "MONAI's": lambda axes: MedNeXtBlock(6, 6, 2, 5, dim=f"{axes}d"),
    "MONAI's down": lambda axes: MedNeXtDownBlock(6, 8, 2, 3, use_residual_connection=True, dim=f"{axes}d"),
    "MONAI's up": lambda axes: MedNeXtUpBlock(6, 4, 2, 5, use_residual_connection=True, dim=f"{axes}d"),
}
PLAIN_ONLY = {
    "layer norm": Block(spatial_dims=3, channels=6, norm="layer", **OURS),
    "response norm": Block(spatial_dims=3, channels=6, global_response_norm=True, **OURS),
}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_equal_their_plain_class(name, axes):
    torch.manual_seed(0)
    block = BLOCKS[name](axes)
    fast = accelerate(copy.deepcopy(block))
    assert isinstance(fast, type(block))
    assert type(fast) is not type(block)
    compare(block, fast, torch.randn(2, 6, *(4, 6, 8)[:axes]))
    assert fast(torch.randn(1, 6, *(4, 6, 8)[:axes])).movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("name", PLAIN_ONLY)
def test_other_norms_stay_plain(name):
    block = PLAIN_ONLY[name]
    compare(block, accelerate(copy.deepcopy(block)), torch.randn(2, 6, 4, 4, 4))


def compare(block, fast, x):
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, result = block(inputs[0]), fast(inputs[1])
    close(result, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    close(inputs[1].grad, inputs[0].grad)
    for (name, theirs), ours in zip(block.named_parameters(), fast.parameters(), strict=True):
        if name != "conv1.bias" or block.norm.__class__.__name__ != "GroupNorm":  # its gradient is 0 but for rounding
            close(ours.grad, theirs.grad, 1e-5)


def test_hooks_inside_a_block_are_served():
    block = accelerate(Block(spatial_dims=2, channels=4, **OURS))
    seen = []
    block.norm.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    block(torch.randn(1, 4, 6, 6))
    assert seen == [(1, 4, 6, 6)]


def test_wrong_channels_are_refused_as_torch_does():
    block = accelerate(Block(spatial_dims=2, channels=4, **OURS))
    with pytest.raises(RuntimeError, match="channels"):
        block(torch.randn(1, 5, 6, 6))
