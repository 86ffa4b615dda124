"""MONAI's blocks of U-Nets on the fast path against the same blocks on torch's."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from scripts.networks.speed import accelerate, layout
from scripts.networks.speed.normalisation import batch_norm_act, instance_norm_act
from scripts.networks.speed.residual import FastUnetBasicBlock, FastUnetResBlock
from torch import nn
from torch.nn import functional as F

AFFINE = ("instance", {"affine": True})


def close(result, expected, tolerance=3e-6):
    assert result.shape == expected.shape
    assert (result - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("slope", [0.01, 0.0, 1.0])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_instance_norm_act(monkeypatch, axes, slope, affine, with_residual):
    monkeypatch.setattr(layout, "CHUNK", 200)  # several chunks, the last one smaller
    torch.manual_seed(0)
    shape = (2, 4, *(5, 8, 6)[-axes:])
    tensors = [torch.randn(shape) + 1, *([torch.randn(4), torch.randn(4)] if affine else [None, None])]
    tensors.append(torch.randn(shape) if with_residual else None)
    single = [None if t is None else t.clone().requires_grad_() for t in tensors]
    double = [None if t is None else t.double().requires_grad_() for t in tensors]
    norm = SimpleNamespace(weight=single[1], bias=single[2], eps=1e-5)
    result = instance_norm_act(norm, single[0], single[3], slope)
    x, scale, shift, residual = double
    expected = F.instance_norm(x, weight=scale, bias=shift, eps=1e-5)
    expected = F.leaky_relu(expected if residual is None else expected + residual, slope)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    close(result, expected)
    for ours, theirs in zip(single, double, strict=True):
        if ours is not None:
            close(ours.grad, theirs.grad)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.01, 0.0, 1.0])
@pytest.mark.parametrize("with_residual", [False, True])
def test_batch_norm_act(training, slope, with_residual):
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(4).train(training)
    for values in (*theirs.parameters(), *theirs.buffers()):
        values.data = torch.ones_like(values) if values.ndim == 0 else torch.rand(4) + 0.5
    ours = copy.deepcopy(theirs)
    inputs = [[torch.randn(2, 4, 5, 6) for _ in range(1 + with_residual)]]
    inputs.append([x.clone() for x in inputs[0]])
    for x in (*inputs[0], *inputs[1]):
        x.requires_grad_()
    expected = F.leaky_relu(theirs(inputs[0][0]) + (inputs[0][1] if with_residual else 0), slope)
    result = batch_norm_act(ours, inputs[1][0], inputs[1][1] if with_residual else None, slope)
    close(result, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    for x, y in zip((*inputs[1], *ours.parameters()), (*inputs[0], *theirs.parameters()), strict=True):
        close(x.grad, y.grad, 1e-5)
    for x, y in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("norm", ["instance", AFFINE, "batch"])
@pytest.mark.parametrize("channels", [(1, 4), (4, 4)])
@pytest.mark.parametrize("block", [UnetBasicBlock, UnetResBlock])
def test_blocks_equal_monai(block, channels, norm):
    torch.manual_seed(0)
    theirs = block(3, *channels, kernel_size=3, stride=1, norm_name=norm)
    fast = accelerate(copy.deepcopy(theirs))
    assert isinstance(fast, (FastUnetBasicBlock, FastUnetResBlock))
    x = torch.randn(2, channels[0], 6, 8, 5)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, result = theirs(inputs[0]), fast(inputs[1])
    close(result, expected)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    close(inputs[1].grad, inputs[0].grad, 1e-5)
    for (name, p), q in zip(theirs.named_parameters(), fast.parameters(), strict=True):
        if channels[0] > 1 or "conv3" not in name:  # the norm takes the only weight out: its gradient is rounding
            assert (q.grad - p.grad).norm() <= 1e-5 * p.grad.norm() + 1e-6, name
    assert result.movedim(1, -1).is_contiguous()
    for (name, p), q in zip(theirs.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=name)


@pytest.mark.parametrize("shape", [(2, 4, 1, 1, 1), (4, 6, 8, 5)])
def test_what_monai_refuses_is_refused(shape):
    block = UnetResBlock(3, 4, 4, kernel_size=3, stride=1, norm_name="instance")
    refused = []
    for network in (block, accelerate(copy.deepcopy(block))):
        with pytest.raises((ValueError, RuntimeError)) as error:
            network(torch.randn(*shape[:1], *shape[1:]) if len(shape) == 5 else torch.randn(1, 1, *shape[1:]))
        refused.append(str(error.value))
    assert refused[0] == refused[1]


def test_hooks_inside_a_block_are_served():
    block = accelerate(UnetResBlock(3, 2, 4, kernel_size=3, stride=1, norm_name="instance"))
    seen = []
    for name, layer in block.named_children():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    block(torch.randn(1, 2, 4, 4, 4))
    assert {"conv1", "conv2", "conv3", "norm1", "norm2", "norm3", "lrelu"} == set(seen)
