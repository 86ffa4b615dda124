"""Convolution modules of the fast paths against torch's, in value, gradient and layout."""

from __future__ import annotations

import copy

import pytest
import torch
from scripts.networks.speed import accelerate, convolution, layout
from scripts.networks.speed.convolution import (
    FastConv2d,
    FastConv3d,
    FastConvTranspose3d,
    Head2d,
    Head3d,
    Stem,
)
from torch import nn

LAST = torch.channels_last_3d
CONVS = {
    "small volume": nn.Conv3d(4, 6, 3, padding=1),
    "small volume, strided": nn.Conv3d(4, 6, 3, stride=2, padding=1, bias=False),
    "small volume, dilated": nn.Conv3d(4, 6, 3, padding=(2, 2, 0), dilation=(2, 2, 1)),
    "small volume, uneven": nn.Conv3d(4, 6, (1, 3, 5), padding=(0, 1, 2), stride=(1, 2, 1)),
    "patches": nn.Conv3d(4, 6, (2, 4, 4), stride=(2, 4, 4), bias=False),
    "pointwise": nn.Conv3d(4, 6, 1),
    "pointwise, strided": nn.Conv3d(4, 6, 1, stride=2, bias=False),
    "depthwise": nn.Conv3d(4, 4, 3, padding=1, groups=4),
    "depthwise, strided": nn.Conv3d(4, 4, 5, padding=2, stride=2, groups=4, bias=False),
    "grouped": nn.Conv3d(4, 6, 3, padding=1, groups=2),
    "depthwise, two kernels per channel": nn.Conv3d(4, 8, 3, padding=1, groups=4),
    "depthwise, dilated": nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=4),
    "depthwise, wide padding": nn.Conv3d(4, 4, 1, padding=2, groups=4),
    "same": nn.Conv3d(4, 6, 3, padding="same"),
    "reflected": nn.Conv3d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose3d(4, 6, 2, stride=2),
    "transposed, uneven": nn.ConvTranspose3d(4, 6, (1, 3, 2), stride=(1, 3, 2), bias=False),
    "transposed, overlapping": nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1),
    "transposed, grouped": nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2),
    "transposed, filled up": nn.ConvTranspose3d(4, 6, 2, stride=2, output_padding=1),
    "transposed depthwise": nn.ConvTranspose3d(4, 4, 3, stride=2, padding=1, groups=4),
    "transposed depthwise, filled up": nn.ConvTranspose3d(4, 4, 3, 2, padding=1, output_padding=1, groups=4),
}


def compare(conv, fast, x):
    inputs = [t.detach().requires_grad_() for t in (x, x)]
    expected, result = conv(inputs[0]), fast(inputs[1])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    for ours, theirs in [(inputs[1], inputs[0]), *zip(fast.parameters(), conv.parameters(), strict=True)]:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    return result


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("name", CONVS)
def test_modules_equal_torch(name, layout, batch):
    torch.manual_seed(0)
    conv = copy.deepcopy(CONVS[name])
    fast = accelerate(copy.deepcopy(conv))
    assert type(fast) in (FastConv3d, FastConvTranspose3d)
    x = torch.randn(batch, 4, 8, 12, 9).contiguous(memory_format=layout)
    result = compare(conv, fast, x)
    if name in ("depthwise", "pointwise", "transposed", "transposed depthwise"):  # it comes out as it went in
        assert result.is_contiguous(memory_format=layout)
    compare(conv, fast, torch.randn(batch, 4, 8, 9, 12).transpose(3, 4)[:, :, :, ::2])


PLANES = {
    "dense": nn.Conv2d(4, 6, 3, padding=1),
    "pointwise": nn.Conv2d(4, 6, 1),
    "pointwise, strided": nn.Conv2d(4, 6, 1, stride=2, bias=False),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "depthwise, strided": nn.Conv2d(4, 4, 5, padding=2, stride=2, groups=4, bias=False),
    "same": nn.Conv2d(4, 6, 1, padding="same"),
    "reflected": nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PLANES)
def test_modules_of_planes_equal_torch(name, layout):
    torch.manual_seed(0)
    conv = copy.deepcopy(PLANES[name])
    fast = accelerate(copy.deepcopy(conv))
    assert type(fast) is FastConv2d
    result = compare(conv, fast, torch.randn(2, 4, 8, 9).contiguous(memory_format=layout))
    assert result.is_contiguous(memory_format=layout)


def test_single_channels_keep_their_layout():
    x = layout.channels_last(torch.randn(2, 1, 4, 5, 6))
    for kernel in (1, 3):
        conv = nn.Conv3d(1, 6, kernel, padding=kernel // 2)
        result = compare(conv, accelerate(copy.deepcopy(conv)), x)
        assert layout.is_channels_last(result)


@pytest.mark.parametrize("name", ["small volume", "patches", "depthwise", "transposed depthwise"])
def test_a_faster_path_runs(monkeypatch, name):
    paths = []
    for cls in (convolution.OneDNNConv, convolution.DepthwiseConv, convolution.DepthwiseTransposedConv):
        apply = cls.apply
        monkeypatch.setattr(cls, "apply", lambda *arguments, apply=apply: paths.append(apply) or apply(*arguments))
    accelerate(copy.deepcopy(CONVS[name]))(torch.randn(1, 4, 8, 8, 8))
    assert len(paths) == 1


def test_large_volumes_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(convolution.OneDNNConv, "apply", lambda *arguments: pytest.fail("not torch's choice"))
    monkeypatch.setattr(convolution, "SMALL", 4 * 8 * 8 - 1)
    accelerate(nn.Conv3d(4, 2, 3))(torch.randn(1, 4, 8, 8, 8))


def test_stem():
    conv = nn.Conv3d(1, 6, 1)
    stem = copy.deepcopy(conv)
    stem.__class__ = Stem
    assert compare(conv, stem, torch.randn(2, 1, 4, 5, 6)).is_contiguous(memory_format=LAST)


@pytest.mark.parametrize(("make", "fast_class"), [(nn.Conv2d, Head2d), (nn.Conv3d, Head3d)])
def test_head(make, fast_class):
    head = make(6, 3, 1)
    fast = copy.deepcopy(head)
    fast.__class__ = fast_class
    x = torch.randn(2, 6, *(4, 5, 7)[: head.weight.ndim - 2])
    assert compare(head, fast, layout.channels_last(x)).is_contiguous()
    compare(head, fast, x)


@pytest.mark.parametrize("shape", [(4, 8, 8, 8), (0, 4, 8, 8, 8)])
def test_what_is_no_batch_of_volumes(shape):
    conv = CONVS["depthwise"]
    torch.testing.assert_close(accelerate(copy.deepcopy(conv))(torch.ones(shape)), conv(torch.ones(shape)))


def test_wrong_channels_are_refused_as_torch_does():
    with pytest.raises(RuntimeError, match="expected input.*to have 4 channels"):
        accelerate(copy.deepcopy(CONVS["depthwise"]))(torch.ones(1, 3, 8, 8, 8))
