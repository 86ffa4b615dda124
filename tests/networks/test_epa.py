"""Paired attention of UNETR++ against its formula, and the block around it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scripts.networks import EPABlock, SeparateProjections, SharedProjection, SumBranches, UnbiasedProjection
from scripts.networks.epa import EPA, ConcatBranches
from torch.utils.flop_counter import FlopCounterMode

BLOCKS = {
    "shared": EPABlock,
    "separate": partial(EPABlock, convolutions=2, projection=SeparateProjections),
    "sum": partial(EPABlock, projection=UnbiasedProjection, merge=SumBranches),
}


def plain_attention(epa, x):
    """Paired attention, one token and one head at a time in thought: no fused or reordered operation."""
    batch, tokens, channels = x.shape
    d = channels // epa.num_heads
    parts = (x @ epa.qkvv.weight.T).reshape(batch, tokens, 4, epa.num_heads, d)
    q, k, v_channel, v_spatial = parts.permute(2, 0, 3, 4, 1)  # (B, heads, d, N) each
    if isinstance(epa.projection, UnbiasedProjection):
        key, value = k @ epa.projection.matrix, v_spatial @ epa.projection.matrix
    else:
        shared = isinstance(epa.projection, SharedProjection)
        first, second = [epa.projection.both] * 2 if shared else [epa.projection.keys, epa.projection.values]
        key, value = first(k), second(v_spatial)  # (B, heads, d, P)
    q, k = (y / y.square().sum(-1, keepdim=True).sqrt() for y in (q, k))
    over_tokens = (q.transpose(2, 3) @ key * epa.spatial_temperature).softmax(-1)  # (B, heads, N, P)
    spatial = torch.einsum("bhnp,bhdp->bdhn", over_tokens, value).reshape(batch, tokens, channels)
    over_channels = (q @ k.transpose(2, 3) * epa.channel_temperature).softmax(-1)  # (B, heads, d, d)
    channel = torch.einsum("bhde,bhen->bnhd", over_channels, v_channel).reshape(batch, tokens, channels)
    if isinstance(epa.merge, SumBranches):
        return spatial + channel
    return torch.cat([epa.merge.spatial(spatial), epa.merge.channel(channel)], -1)


@pytest.mark.parametrize("merge", [ConcatBranches, SumBranches])
@pytest.mark.parametrize("projection", [SharedProjection, SeparateProjections, UnbiasedProjection])
def test_attention_equals_the_formula(projection, merge):
    torch.manual_seed(0)
    epa = EPA(tokens=30, channels=12, projected=5, num_heads=3, projection=projection, merge=merge).double().eval()
    with torch.no_grad():
        for temperature in (epa.spatial_temperature, epa.channel_temperature):
            temperature.uniform_(0.5, 3)
    x = torch.randn(2, 30, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 30, 12, dtype=torch.float64)
    inputs = [x, *epa.parameters()]
    got, expected = epa(x), plain_attention(epa, x)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad((y * weight).sum(), inputs) for y in (got, expected)]
    torch.testing.assert_close(*gradients)


def test_attention_drops_out_in_training_only():
    torch.manual_seed(0)
    epa = EPA(tokens=12, channels=8, projected=4, dropout=0.5)
    x = torch.randn(1, 12, 8)
    assert not torch.equal(epa(x), epa(x))
    assert torch.equal(epa.eval()(x), epa(x))


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block_traces_and_compiles(block):
    torch.manual_seed(0)
    net = block(tokens=24, channels=8, projected=4).eval()
    x = torch.randn(2, 8, 2, 3, 4)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.jit.trace(net, x[:1], check_trace=False)(x), expected)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), expected)


def test_fused_attention_is_counted():
    net = EPA(tokens=64, channels=8, projected=16, num_heads=2, projection=UnbiasedProjection, merge=SumBranches)
    counts = []
    for device in ("cpu", "meta"):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net.to(device).eval()(torch.zeros(3, 64, 8, device=device))
        counts.append(counter.get_total_flops())
    maps = 64 * 8 * 4 * 8 + 2 * 64 * 16 * 8  # values and keys, projections
    assert counts[0] == counts[1] == 2 * 3 * (maps + 2 * 64 * 16 * 8 + 2 * 64 * 8 * 4)
