"""Dropout from 16 random bits: the right share, unbiased, repeatable."""

from __future__ import annotations

import pytest
import torch
from scripts.networks.speed.dropout import draw, dropout


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
def test_share_and_scale(probability):
    torch.manual_seed(0)
    kept, scale = draw((3, 333, 101), probability)
    assert kept.dtype == torch.bool
    assert kept.shape == (3, 333, 101)
    share = kept.float().mean().item()
    assert share == pytest.approx(1 - probability, abs=4 * (probability * (1 - probability) / kept.numel()) ** 0.5)
    assert scale == pytest.approx(1 / (1 - probability), rel=1e-3)


def test_entries_are_independent():
    torch.manual_seed(0)
    kept = draw((4, 10000), 0.5)[0].float() - 0.5
    for shift in range(1, 9):  # neighbours come from the same 64 bits
        assert abs((kept[:, shift:] * kept[:, :-shift]).mean()) < 4 * 0.25 / 40000**0.5


def test_repeats_with_the_seed_and_only_then():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(draw((100,), 0.5)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(layout):
    torch.manual_seed(0)
    x = torch.ones(2, 3, 8, 9).contiguous(memory_format=layout).requires_grad_()
    y = dropout(x, 0.25)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert y.is_contiguous(memory_format=layout)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert dropout(x, 0.0) is x


def test_any_strides():
    x = torch.ones(4, 6, 5).transpose(1, 2)[:, ::2]
    assert dropout(x, 0.5).shape == x.shape


def test_almost_everything_dropped():
    kept, scale = draw((1000,), 0.999999)
    assert kept.sum() < 10
    assert scale == 2**16
