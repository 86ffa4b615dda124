"""UTNet's blocks on the fast path against the same blocks on torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from scripts.networks.speed import accelerate, grid_attention
from scripts.networks.utnet_attention import (
    AttentionBlock,
    AttentionOptions,
    AttentionUpsampling,
    CrossAttention,
    SelfAttention,
)
from scripts.networks.utnet_blocks import ConvUp, ResidualBlock
from torch import nn

OPTIONS = AttentionOptions(reduce_size=2, attn_drop=0.0, proj_drop=0.0)
NO_POSITION = AttentionOptions(reduce_size=3, rel_pos=False, attn_drop=0.0, proj_drop=0.0)
FINE, COARSE = (2, 8, 6, 8), (2, 12, 3, 4)
BLOCKS = {
    "residual": (ResidualBlock(8, 8), [FINE]),
    "residual, wider": (ResidualBlock(8, 6), [FINE]),
    "residual, strided": (ResidualBlock(8, 6, stride=2), [FINE]),
    "residual, one channel": (ResidualBlock(1, 6), [(2, 1, 6, 8)]),
    "up": (ConvUp(12, 8), [COARSE, FINE]),
    "attention": (SelfAttention(8, 2, OPTIONS), [FINE]),
    "attention, a cell for each pixel": (SelfAttention(8, 2, OPTIONS), [(2, 8, 2, 2)]),
    "attention without positions": (SelfAttention(8, 2, NO_POSITION), [FINE]),
    "attention with channels left over": (SelfAttention(8, 3, OPTIONS), [FINE]),
    "cross-attention": (CrossAttention(12, 8, 2, OPTIONS), [FINE, COARSE]),
    "attention block": (AttentionBlock(8, 2, OPTIONS), [FINE]),
    "attention that upsamples": (AttentionUpsampling(12, 8, 2, OPTIONS), [COARSE, FINE]),
}


def run(block, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = block(*inputs)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    gradients = {f"input {i}": x.grad for i, x in enumerate(inputs)}
    gradients |= {name: p.grad for name, p in block.named_parameters()}
    return y.detach(), gradients


def compare(block, fast, inputs):
    (expected, theirs), (result, ours) = run(block, inputs), run(fast, inputs)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    total = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()  # some gradients are only rounding
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6 * total, name
    for (name, p), q in zip(block.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=name)
    return result


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_equal_their_plain_class(name, layout):
    torch.manual_seed(0)
    block, shapes = BLOCKS[name]
    block = copy.deepcopy(block)
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    fast = accelerate(copy.deepcopy(block))
    assert type(fast) is grid_attention.BLOCKS[type(block)]
    assert list(fast.state_dict()) == list(block.state_dict())
    inputs = [torch.randn(shape).contiguous(memory_format=layout) for shape in shapes]
    compare(block, fast, inputs)
    result = compare(block.eval(), fast.eval(), inputs)
    assert result.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(fast(*inputs), result, rtol=1e-4, atol=1e-5)


def test_running_statistics_may_change_between_passes():
    block = accelerate(ResidualBlock(4, 4))
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    (block(x) + block(x)).sum().backward()  # the second pass changes what the first one's layers hold
    assert block.bn1.num_batches_tracked == 2


@pytest.mark.parametrize("name", ["maxpool", "hook", "no momentum"])
def test_what_is_not_known_stays_plain(monkeypatch, name):
    monkeypatch.setattr(grid_attention.FewKeysAttention, "apply", lambda *arguments: pytest.fail("not plain"))
    projection = "maxpool" if name == "maxpool" else "interp"
    block = SelfAttention(8, 2, AttentionOptions(reduce_size=2, projection=projection, attn_drop=0.0, proj_drop=0.0))
    fast, seen = accelerate(copy.deepcopy(block)), []
    if name == "hook":
        fast.to_out.pointwise.register_forward_hook(lambda *arguments: seen.append(True))
    if name == "no momentum":
        block, fast = ResidualBlock(8, 8), accelerate(ResidualBlock(8, 8))
        fast.load_state_dict(block.state_dict())
        block.bn1.momentum = fast.bn1.momentum = None
        monkeypatch.setattr(grid_attention, "batch_norm_act", lambda *arguments: pytest.fail("not plain"))
    compare(block, fast, [torch.randn(FINE)])
    assert bool(seen) == (name == "hook")


def test_dropout_only_while_training():
    options = AttentionOptions(reduce_size=2, attn_drop=0.5, proj_drop=0.5)
    fast, x = accelerate(SelfAttention(8, 2, options)), torch.randn(FINE)
    y = fast(x)
    assert not torch.equal(fast(x), y)
    assert (y == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(fast.eval()(x), fast(x))


def test_wrong_channels_are_refused_as_torch_does():
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements"):
        accelerate(ResidualBlock(4, 4))(torch.ones(1, 3, 8, 8))
