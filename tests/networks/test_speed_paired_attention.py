"""Paired attention on the fast path against `EPA` itself."""

from __future__ import annotations

import copy

import pytest
import torch
from scripts.networks import SeparateProjections, SharedProjection, SumBranches, UnbiasedProjection
from scripts.networks.epa import EPA, ConcatBranches
from scripts.networks.speed import accelerate, paired_attention
from scripts.networks.speed.paired_attention import FastEPA


def build(**changes):
    torch.manual_seed(0)
    return EPA(tokens=13, channels=8, projected=5, num_heads=2, **changes)


def compare(epa, fast, x):
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, result = epa(inputs[0]), fast(inputs[1])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient)
    for ours, theirs in [(inputs[1], inputs[0]), *zip(fast.parameters(), epa.parameters(), strict=True)]:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [ConcatBranches, SumBranches])
@pytest.mark.parametrize("projection", [SharedProjection, SeparateProjections, UnbiasedProjection])
def test_equals_the_plain_class(projection, merge):
    epa = build(projection=projection, merge=merge, dropout=0.0)
    fast = accelerate(copy.deepcopy(epa))
    assert type(fast) is FastEPA
    compare(epa, fast, torch.randn(2, 13, 8))
    compare(epa.eval(), fast.eval(), torch.randn(1, 13, 8))
    compare(epa, fast, torch.zeros(1, 13, 8))  # norms of 0


def test_dropout_only_while_training(monkeypatch):
    fast, x = accelerate(build(dropout=0.5)), torch.randn(1, 13, 8)
    assert not torch.equal(fast(x), fast(x))
    assert torch.equal(fast.eval()(x), fast(x))


def test_hooks_inside_are_served(monkeypatch):
    monkeypatch.setattr(paired_attention.FewKeysAttention, "apply", lambda *arguments: pytest.fail("not plain"))
    fast, seen = accelerate(build()), []
    fast.dropout.register_forward_hook(lambda *arguments: seen.append(True))
    fast(torch.randn(1, 13, 8))
    assert seen
