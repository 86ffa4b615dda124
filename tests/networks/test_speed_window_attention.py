"""Swin's window attention on the fast path against MONAI's."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging, WindowAttention, compute_mask
from scripts.networks.speed import accelerate, window_attention
from scripts.networks.speed.window_attention import FastBasicLayer, FastWindowAttention, WindowMasks


@pytest.mark.parametrize(
    ("dims", "window", "shift"),
    [
        ((8, 8, 8), (4, 4, 4), (2, 2, 2)),
        ((14, 7, 21), (7, 7, 7), (3, 0, 3)),
        ((6, 12), (3, 4), (1, 2)),
        ((8, 4), (4, 4), (2, 0)),
    ],
)
def test_masks_equal_monai(dims, window, shift):
    grid = [n // w for n, w in zip(dims, window, strict=True)]
    masks = WindowMasks(grid, window, shift)
    assert torch.equal(masks.dense(torch.zeros(1)), compute_mask(list(dims), window, shift, "cpu"))
    assert len(masks.masks) == 2 ** sum(s > 0 for s in shift)


def build(spatial_dims=3, *, shifted=True, depth=2, **changes) -> BasicLayer:
    torch.manual_seed(0)
    layer = BasicLayer(
        dim=8,
        depth=depth,
        num_heads=2,
        window_size=(4,) * spatial_dims,
        drop_path=[0.0] * depth,
        qkv_bias=True,
        **changes,
    )
    for block in layer.blocks:
        torch.nn.init.normal_(block.attn.relative_position_bias_table)  # large enough to be seen
    return layer


def compare(layer, fast, x):
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, result = layer(inputs[0]), fast(inputs[1])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    pairs = [("input", *inputs)]
    pairs += [(n, p, q) for (n, p), q in zip(layer.named_parameters(), fast.parameters(), strict=True)]
    for name, theirs, ours in pairs:
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("chunk", [1, 2**20])
@pytest.mark.parametrize("shape", [(1, 8, 8, 8, 8), (2, 8, 7, 4, 10), (2, 8, 3, 3, 2), (2, 8, 8, 12), (1, 8, 4, 6)])
def test_layer_equals_monai(monkeypatch, shape, chunk):
    monkeypatch.setattr(window_attention, "CHUNK", chunk)
    layer = build(len(shape) - 2, downsample=PatchMerging)
    fast = accelerate(copy.deepcopy(layer))
    assert isinstance(fast, FastBasicLayer)
    assert isinstance(fast.blocks[0].attn, FastWindowAttention)
    compare(layer, fast, torch.randn(shape))


def test_checkpointing_and_projection_dropout():
    layer = build(use_checkpoint=True, drop=0.0)
    compare(layer, accelerate(copy.deepcopy(layer)), torch.randn(1, 8, 8, 8, 8))


def test_dropped_attention_is_monais():
    layer = build(attn_drop=0.5)
    fast = accelerate(copy.deepcopy(layer))
    x = torch.randn(1, 8, 8, 8, 8)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(fast(x), expected)
    torch.testing.assert_close(fast.eval()(x), layer.eval()(x), rtol=1e-5, atol=1e-5)


def test_attention_alone_takes_monais_masks():
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, (2, 2, 2), qkv_bias=True)
    fast = accelerate(copy.deepcopy(attention))
    x, mask = torch.randn(8, 8, 8), compute_mask([4, 4, 4], (2, 2, 2), (1, 1, 1), "cpu")
    torch.testing.assert_close(fast(x, mask), attention(x, mask))
    torch.testing.assert_close(fast(x, None), attention(x, None), rtol=1e-5, atol=1e-5)


def test_far_away_scores_have_no_gradient_and_cost_no_time():
    attention = window_attention.Attention
    qkv = torch.randn(1, 4, 6, requires_grad=True)
    bias = torch.zeros(1, 4, 4)
    bias[0, :, 3] = -1e4
    bias.requires_grad_()
    attention.apply(qkv, bias, None, 1.0).square().sum().backward()
    assert bias.grad[0, :, 3].abs().max() < 1e-20
    assert torch.isfinite(qkv.grad).all()
