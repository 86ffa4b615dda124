"""nnFormer."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.swin_unetr import WindowAttention
from scripts.networks import NNFormerDecoder, NNFormerEncoder, YNet
from scripts.networks.nnformer import SkipAttentionBlock, SkipWindowAttention

ENCODER = {
    "spatial_dims": 2,
    "in_channels": 2,
    "channels": [4, 6, 8],
    "strides": [[4, 2], [8, 4], [16, 8]],
    "depths": [2, 2, 1],
    "num_heads": [2, 3, 2],
    "window_size": [2, 3, 2],
    "drop_path_rate": 0.0,
}


def encoder(**changes) -> NNFormerEncoder:
    torch.manual_seed(0)
    return NNFormerEncoder(**ENCODER | changes)


def decoder(**changes) -> NNFormerDecoder:
    torch.manual_seed(0)
    lists = {name: ENCODER[name][:-1] for name in ("depths", "num_heads", "window_size")}
    shared = {name: ENCODER[name] for name in ("spatial_dims", "channels", "strides", "drop_path_rate")}
    return NNFormerDecoder(**shared | lists | {"out_channels": 3} | changes)


def network(deep_supervision=True, **changes) -> YNet:
    return YNet(
        encoder=encoder(**changes),
        decoder=decoder(**changes, deep_supervision=deep_supervision),
        deep_supervision=deep_supervision,
    )


@pytest.mark.parametrize(
    ("strides", "size"), [([[4, 2], [8, 4], [16, 8]], [32, 32]), ([[2, 2, 1], [4, 4, 1], [8, 8, 2]], [16, 16, 4])]
)
def test_shapes_and_gradient_in_every_parameter(strides, size):
    net = network(spatial_dims=len(size), strides=strides).train()
    x = torch.randn(2, 2, *size)
    for feature, channels, stride in zip(net.encode(x), net.encoder.channels, strides, strict=True):
        assert feature.shape == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    logits = net(x)
    for scale, stride in zip(logits, strides[:-1], strict=True):
        assert scale.shape == (2, 3, *(n * t // s for n, t, s in zip(size, strides[0], stride, strict=True)))
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("window", [[3, 3], [2, 3, 2]])
def test_attention_to_itself_is_monais_with_queries_as_they_are(window):
    torch.manual_seed(0)
    ours = SkipWindowAttention(dim=6, num_heads=2, window_size=window)
    theirs = WindowAttention(6, 2, window, qkv_bias=True)
    theirs.load_state_dict(
        ours.state_dict()
        | {
            "qkv.weight": torch.cat([torch.eye(6), ours.qkv.weight]),
            "qkv.bias": torch.cat([torch.zeros(6), ours.qkv.bias]),
        }
    )
    for positions in (torch.tensor(window).prod(), 4):  # a full window and one that a small map cuts off
        x = torch.randn(5, positions, 6)
        outputs = ours(x, x), theirs(x, None)
        torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-5)
        gradients = [
            torch.autograd.grad(y.square().sum(), net.relative_position_bias_table)[0]
            for y, net in zip(outputs, (ours, theirs), strict=True)
        ]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_skip_attention_stays_in_its_window():
    torch.manual_seed(0)
    block = SkipAttentionBlock(dim=4, num_heads=2, window_size=[2, 4]).eval()
    x, skip = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)  # padded to 6 x 8
    y = block(x, skip)
    assert y.shape == x.shape
    changed = skip.clone()
    changed[0, 0, 3, 5] += 1  # one channel: all together would leave with the norm
    differs = (block(x, changed) - y).abs().amax((0, 1)) > 0
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(differs, expected)


def test_stochastic_depth_grows_and_is_off_in_eval():
    net = encoder(drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0) for stage in net.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    up = decoder(drop_path_rate=0.3)
    pairs = zip(up.skips, up.stages, strict=True)
    rates = [getattr(b.drop_path, "drop_prob", 0) for skip, stage in pairs for b in [skip, *stage.blocks]]
    assert rates == pytest.approx(DECODER_RATES)
    assert all(any(block.shift_size) for stage in up.stages for block in stage.blocks)
    x = torch.randn(1, 2, 32, 16)
    for dropping, always in zip(net.eval()(x), encoder().eval()(x), strict=True):
        assert torch.equal(dropping, always)


DECODER_RATES = [0.2, 0.3, 0, 0.1]  # as in the authors' code, the finest level drops most


def test_size_of_the_paper():
    strides = [[2, 4, 4], [4, 8, 8], [8, 16, 16], [16, 32, 32]]
    with torch.device("meta"):
        parts = [
            NNFormerEncoder(in_channels=1, strides=strides),
            NNFormerDecoder(out_channels=14, strides=strides, deep_supervision=True),
        ]
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count == 150_054_210
    assert count == pytest.approx(150.5e6, rel=0.004)


def test_state_dict_round_trip_and_determinism():
    net, x = network().eval(), torch.randn(1, 2, 32, 16)
    other = YNet(
        encoder=NNFormerEncoder(**ENCODER), decoder=decoder(deep_supervision=True), deep_supervision=True
    ).eval()
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (encoder, {"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        (encoder, {"in_channels": 0}, "in_channels is 0; expected at least 1"),
        (encoder, {"channels": [4]}, "expected at least two levels"),
        (encoder, {"depths": [1, 1]}, r"depths is \[1, 1\]; expected 3 numbers"),
        (encoder, {"window_size": [0, 1, 1]}, "window_size is .*; expected 3 numbers from 1 on"),
        (encoder, {"num_heads": [2, 4, 2]}, r"num_heads\[1\] is 4; it must divide the channels of that level, 6"),
        (encoder, {"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected a probability"),
        (encoder, {"strides": [3, 6, 12]}, r"strides\[0\] is \(3, 3\); expected 1, 2 or 4"),
        (encoder, {"strides": [1, 4, 8]}, "once or twice the one before"),
        (encoder, {"strides": [1, 2]}, "expected 3 entries"),
        (decoder, {"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        (decoder, {"out_channels": 0}, "out_channels is 0; expected at least 1"),
        (decoder, {"num_heads": [2, 4]}, r"num_heads\[1\] is 4; it must divide"),
        (decoder, {"depths": [1, 1, 1]}, "expected 2 numbers"),
        (decoder, {"strides": [2, 8, 16]}, "once or twice the one before"),
        (decoder, {"drop_path_rate": -0.1}, "drop_path_rate is -0.1; expected a probability"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(16, 12\); each axis must be divisible by \(16, 8\)"):
        encoder()(torch.zeros(1, 2, 16, 12))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()([torch.zeros(1, 4, 8, 8)] * 2)
