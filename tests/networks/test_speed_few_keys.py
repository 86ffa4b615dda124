"""Attention of many queries over few keys against the same written out in double precision."""

from __future__ import annotations

import pytest
import torch
from scripts.networks.speed import few_keys
from scripts.networks.speed.few_keys import FewKeysAttention, slabs


def plain(q, k, v, bias, size, scale, kept, gain):
    scores = q @ k.mT
    if bias is not None:
        rows, columns = (n // cells for n, cells in zip(size, bias.shape[1:3], strict=True))
        bias = bias.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
        scores = scores + bias.flatten(1, 2)
    weights = (scores * scale).softmax(-1)
    return (weights if kept is None else weights * kept * gain) @ v


def close(result, expected):
    assert result.shape == expected.shape
    assert (result - expected).norm() <= 3e-6 * expected.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("grid", [None, (2, 2), (4, 1), (8, 2)])
@pytest.mark.parametrize("chunk", [30, 100, 100000])  # parts of a row of cells, several rows, all at once
def test_equals_plain_attention(monkeypatch, grid, dropout, chunk):
    monkeypatch.setattr(few_keys, "CHUNK", chunk)
    torch.manual_seed(0)
    size, heads, keys, channels = (8, 2), 2, 3, 5
    shapes = [(2, heads, 16, channels), (2, heads, keys, channels), (2, heads, keys, channels)]
    tensors = [torch.randn(shape) for shape in shapes]
    tensors.append(None if grid is None else torch.randn(heads, *grid, keys))
    single = [None if t is None else t.clone().requires_grad_() for t in tensors]
    double = [None if t is None else t.double().requires_grad_() for t in tensors]
    kept = torch.rand(2, heads, 16, keys) >= dropout if dropout else None
    monkeypatch.setattr(few_keys, "draw", lambda shape, p: (kept, 1 / (1 - p)))
    result = FewKeysAttention.apply(*single, size, 0.7, dropout)
    expected = plain(*double, size, 0.7, kept, 1 / (1 - dropout))
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient.double())
    close(result, expected)
    for ours, theirs in zip(single, double, strict=True):
        if ours is not None:
            close(ours.grad, theirs.grad)


def test_takes_any_layout():
    torch.manual_seed(0)
    joint = torch.randn(2, 7, 3, 4)  # (B, N, parts, heads * d)
    q = joint[:, :, 1].unflatten(-1, (2, 2)).transpose(1, 2)
    k, v = torch.randn(2, 5, 2, 2).transpose(1, 2), torch.randn(2, 2, 2, 5).mT
    result = FewKeysAttention.apply(q, k, v, None, (7, 1), 1.0, 0.0)
    close(result, plain(q, k, v, None, (7, 1), 1.0, None, 1.0))
    assert result.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("chunk", [1, 24, 60, 10**6])
@pytest.mark.parametrize(("size", "grid"), [((12, 6), (4, 2)), ((7, 1), (7, 1)), ((6, 4), (1, 4))])
def test_slabs_cover_the_image_once(monkeypatch, size, grid, chunk):
    monkeypatch.setattr(few_keys, "CHUNK", chunk)
    found = list(slabs(size, grid, 3))
    pixels = torch.arange(size[0] * size[1])
    assert torch.equal(torch.cat([pixels[slab.queries] for slab in found]), pixels)
    cells = torch.arange(grid[0]).repeat_interleave(size[0] // grid[0])[:, None].expand(*size).flatten()
    for slab in found:
        rows, tall, across, wide = slab.shape
        assert (across, wide) == (grid[1], size[1] // grid[1])
        seen = torch.arange(grid[0])[slab.cells]
        assert torch.equal(seen.repeat_interleave(tall * across * wide), cells[slab.queries])
        assert len(seen) == rows


def test_second_derivative_fails_clearly():
    q = torch.randn(1, 1, 2, 2, requires_grad=True)
    out = FewKeysAttention.apply(q, q, q, None, (2, 1), 1.0, 0.0)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
