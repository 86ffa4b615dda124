"""The Y as a whole: every fusion with the Swin encoder and the MedNeXt decoder, as users run it."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from scripts.networks import (
    AddFusion,
    ConcatFusion,
    CrossAttentionFusion,
    MedNeXtDecoder,
    NoFusion,
    SwinEncoder,
    YNet,
)
from torch import nn
from torch.nn import functional as F

FEATURES = 5
FUSIONS = [NoFusion, AddFusion, ConcatFusion, CrossAttentionFusion]
CLINICAL_FUSIONS = FUSIONS[1:]


def build(spatial_dims=2, fusion=NoFusion, *, deep_supervision=False, dropout=0.0, out_channels=3, **clinical) -> YNet:
    """Smallest Swin-NeXt: two stages, total stride 8."""
    torch.manual_seed(0)
    encoder = SwinEncoder(
        spatial_dims=spatial_dims,
        in_channels=1,
        feature_size=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=2,
        stem_channels=4,
    )
    if fusion is not NoFusion:
        clinical = {"channels": 32, "clinical_features": FEATURES, "spatial_dims": spatial_dims, **clinical}
    decoder = MedNeXtDecoder(
        spatial_dims=spatial_dims,
        channels=[4, 8, 16, 32],
        out_channels=out_channels,
        blocks=1,
        deep_supervision=deep_supervision,
    )
    return YNet(
        encoder=encoder,
        decoder=decoder,
        fusion=fusion(**clinical),
        deep_supervision=deep_supervision,
        dropout=dropout,
    )


def image(spatial_dims=2, batch=2, size=16) -> torch.Tensor:
    return torch.randn(batch, 1, *(size,) * spatial_dims, generator=torch.Generator().manual_seed(1))


def vector(rows=2) -> torch.Tensor:
    clinical = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(2))
    clinical[0, 1] = math.nan
    return clinical


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_shapes(spatial_dims, fusion):
    net, x = build(spatial_dims, fusion, deep_supervision=True), image(spatial_dims)
    logits = net.train()(x, vector())
    assert [tuple(y.shape) for y in logits] == [(2, 3, *(16 // s,) * spatial_dims) for s in (1, 2, 4, 8)]
    mask = net.eval()(x, vector())
    assert mask.shape == (2, 3, *x.shape[2:])


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_in_every_parameter(spatial_dims, fusion, deep_supervision):
    net = build(spatial_dims, fusion, deep_supervision=deep_supervision).train()
    logits = net(image(spatial_dims), vector())
    logits = logits if deep_supervision else [logits]
    sum(F.cross_entropy(y, torch.zeros_like(y[:, 0], dtype=torch.long)) for y in logits).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("conv1.bias"):  # instance normalisation follows: its gradient is zero by construction
            assert parameter.grad.abs().max() > 1e-8, name


def test_deep_supervision_only_while_training():
    net, x = build(deep_supervision=True), image()
    assert isinstance(net.train()(x), list)
    net.eval()
    scales = net.decoder(net.encode(x))
    assert len(scales) == 4
    assert torch.equal(net(x), scales[0])
    assert isinstance(build(deep_supervision=False).train()(x), torch.Tensor)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_state_dict_round_trip_and_determinism(fusion):
    net, x, clinical = build(3, fusion).eval(), image(3), vector()
    other = build(3, fusion).eval()
    nn.init.normal_(other.decoder.heads[0].weight)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x, clinical), other(x, clinical))
    assert torch.equal(net(x, clinical), net(x, clinical))


@pytest.mark.parametrize("fusion", CLINICAL_FUSIONS)
def test_unknown_clinical_variables(fusion):
    net, x, clinical = build(2, fusion).eval(), image(), vector()
    nothing = net(x, torch.full((2, FEATURES), math.nan))
    assert torch.equal(net(x), nothing)
    assert torch.equal(net(x, None), nothing)
    for known in range(FEATURES + 1):
        partial = clinical.clone()
        partial[:, known:] = math.nan
        assert net(x, partial).isfinite().all()
    assert not torch.allclose(net(x, torch.ones(1, FEATURES)), nothing, atol=1e-5)
    assert not torch.allclose(net(x, torch.ones(1, FEATURES)), net(x, -torch.ones(1, FEATURES)), atol=1e-5)


@pytest.mark.parametrize("fusion", CLINICAL_FUSIONS)
def test_one_row_serves_every_window(fusion):
    net, x, clinical = build(2, fusion).eval(), image(batch=4), vector(1)
    assert torch.equal(net(x, clinical), net(x, clinical.repeat(4, 1)))
    one_by_one = torch.cat([net(window, clinical) for window in x.split(1)])
    torch.testing.assert_close(net(x, clinical), one_by_one, atol=1e-5, rtol=1e-4)


def test_without_fusion_clinical_variables_change_nothing():
    net, x = build().eval(), image()
    assert torch.equal(net(x), net(x, vector()))
    assert isinstance(YNet(encoder=net.encoder, decoder=net.decoder).fusion, NoFusion)


def test_any_size_is_served_or_refused():
    net = build(2, CrossAttentionFusion).eval()
    for height in range(8, 33):
        for width in (8, 16, 24, 30):
            x = torch.randn(1, 1, height, width)
            if height % 8 or width % 8:
                with pytest.raises(ValueError, match=r"divisible by \(8, 8\)"):
                    net(x)
            elif height == width == 8:
                with pytest.raises(ValueError, match=r"single position.*divisible by \(8, 8\)"):
                    net(x)
            else:
                assert net(x).shape == (1, 3, height, width)


def test_dropout_is_channelwise_and_only_in_training():
    net, x = build(3, AddFusion, dropout=0.5), image(3)
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    dropped = net.encode(x)[1]
    whole_channels = dropped.flatten(2).eq(0).all(2)
    assert 0.2 < whole_channels.float().mean() < 0.8
    assert torch.equal(dropped.flatten(2).eq(0).any(2), whole_channels)
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2])
def test_refuses_dropout(dropout):
    with pytest.raises(ValueError, match=f"dropout is {dropout}; expected a probability"):
        build(dropout=dropout)


def test_refuses_parts_that_do_not_fit():
    net = build()
    with pytest.raises(ValueError, match=r"decoder.channels \(4, 8, 16\) do not fit.*\(4, 8, 16, 32\)"):
        YNet(encoder=net.encoder, decoder=MedNeXtDecoder(spatial_dims=2, channels=[4, 8, 16], out_channels=2))
    decoder = MedNeXtDecoder(spatial_dims=2, channels=[4, 8, 16, 32], strides=[1, 2, 4, 4], out_channels=2)
    with pytest.raises(ValueError, match="decoder.strides .* do not fit"):
        YNet(encoder=net.encoder, decoder=decoder)
    with pytest.raises(ValueError, match="fusion.channels is 16.*set fusion.channels to 32"):
        YNet(encoder=net.encoder, decoder=net.decoder, fusion=AddFusion(channels=16, clinical_features=2))
    with pytest.raises(ValueError, match="deep_supervision is True in the network but False in its decoder"):
        YNet(encoder=net.encoder, decoder=net.decoder, deep_supervision=True)


def test_takes_meta_tensors():
    net, x = build(3, CrossAttentionFusion).eval(), image(3)
    torch.testing.assert_close(torch.as_tensor(net(MetaTensor(x), vector())), net(x, vector()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("fusion", FUSIONS)
def test_torchscript(fusion):
    net, x, clinical = build(2, fusion).eval(), image(), vector()
    with torch.no_grad():
        traced = torch.jit.trace(net, (x, clinical), check_trace=False)
        torch.testing.assert_close(traced(x, clinical), net(x, clinical))
        unknown = torch.full_like(clinical, math.nan)
        torch.testing.assert_close(traced(x, unknown), net(x, None))
        three = image(batch=3)
        torch.testing.assert_close(traced(three, clinical[:1]), net(three, clinical[:1]))
        without = torch.jit.trace(net, (x,), check_trace=False)
        torch.testing.assert_close(without(x), net(x))


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    net = build(2, CrossAttentionFusion, drop_variable=0.0, drop_vector=0.0).train()
    x, clinical = image(), vector()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(net(x, clinical).square().mean(), list(net.parameters()))
    gradients = torch.autograd.grad(compiled(x, clinical).square().mean(), list(net.parameters()))
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_mixed_precision(fusion):
    net, x, clinical = build(3, fusion), image(3), vector()
    net.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, clinical)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), net(x, clinical), atol=0.1, rtol=0.1)
    net.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x, None).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("fusion", CLINICAL_FUSIONS)
def test_clinical_variables_decide_the_mask(fusion):
    """Two blobs; the first clinical variable says which one is the lesion. Only a working fusion can learn it."""
    net = build(2, fusion, out_channels=2, drop_variable=0.0, drop_vector=0.1).train()
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:10, 1:6] = x[..., 4:10, 10:15] = 1
    left = torch.zeros(1, 16, 16, dtype=torch.long)
    left[:, 4:10, 1:6] = 1
    label = torch.cat([left, left.flip(2)])
    clinical = torch.full((2, FEATURES), math.nan)
    clinical[:, 0] = torch.tensor([-1.0, 1.0])
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        loss = F.cross_entropy(net(x.expand(2, -1, -1, -1), clinical), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    net.eval()
    mask = net(x.expand(2, -1, -1, -1), clinical).argmax(1)
    overlap = 2 * (mask * label).sum((1, 2)) / (mask.sum((1, 2)) + label.sum((1, 2)))
    assert losses[-1] < 0.5 * losses[0]
    assert overlap.min() > 0.9, overlap
    assert net(x).isfinite().all()
