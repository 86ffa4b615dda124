"""The ResNet encoder with and without UTNet's attention, and its decoder."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import ResNetEncoder, ResNetUNetDecoder, UTNetDecoder, YNet
from scripts.networks.resnet_utnet import StandardizedConv2d
from torch.nn import functional as F

CHANNELS = (32, 128, 256, 512)


def encoder(**changes) -> ResNetEncoder:
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "feature_size": 32, "block_units": [1, 1, 1], "reduce_size": 2}
    return ResNetEncoder(**{**arguments, **changes})


def decoder(**changes) -> ResNetUNetDecoder:
    torch.manual_seed(1)
    return ResNetUNetDecoder(**{"channels": CHANNELS, "out_channels": 3, **changes})


def image(*spatial, channels=1) -> torch.Tensor:
    return torch.randn(2, channels, *(spatial or (32, 32)), generator=torch.Generator().manual_seed(2))


def assert_gradients(module):
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("changes", "divisor"),
    [
        ({}, 16),
        ({"attention_levels": [0, 3]}, 32),
        ({"attention_levels": [3], "reduce_size": 3}, 48),
        ({"attention_levels": [1, 2], "rel_pos": False, "reduce_size": 3}, 16),
    ],
)
def test_channels_strides_and_divisor_say_what_comes(changes, divisor):
    net = encoder(**changes)
    assert net.channels == CHANNELS
    assert net.strides == ((2, 2), (4, 4), (8, 8), (16, 16))
    assert net.divisor == (divisor, divisor)
    features = net(image(divisor, 2 * divisor))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, divisor // s, 2 * divisor // s) for c, (s, _) in zip(net.channels, net.strides, strict=True)
    ]


def test_zeros_stand_in_for_what_pooling_loses():
    skip = encoder()(image(32, 64))[1]
    assert skip[..., -1, :].abs().max() == 0
    assert skip[..., -1].abs().max() == 0
    assert skip[..., :-1, :-1].abs().max() > 0


def test_one_channel_is_repeated_to_three():
    grey, colour = encoder(), encoder(in_channels=3)
    colour.load_state_dict(grey.state_dict())
    x = image()
    for a, b, c in zip(grey(x), colour(x.repeat(1, 3, 1, 1)), colour(x), strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(b, c)
    assert encoder(in_channels=2).root.conv.in_channels == 2


def test_kernels_are_standardised():
    conv, x = StandardizedConv2d(2, 3, kernel_size=3, padding=1, bias=False), image(channels=2)
    weight = conv.weight.flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(conv(x), F.conv2d(x, weight.view(3, 2, 3, 3), padding=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"block_units": [2, 1, 1]},
        {"attention_levels": [0, 1, 2, 3], "num_blocks": [1, 2, 1, 1], "num_heads": [8, 4, 4, 3]},
        {"attention_levels": [2], "projection": "maxpool", "rel_pos": False, "in_channels": 2},
    ],
)
def test_gradient_in_every_parameter(changes):
    part = encoder(**changes)
    net = YNet(encoder=part, decoder=decoder()).train()
    y = net(image(64, 32, channels=part.in_channels))
    assert y.shape == (2, 3, 64, 32)
    (y * torch.randn_like(y)).sum().backward()
    assert_gradients(net)


def test_y():
    net, x = YNet(encoder=encoder(attention_levels=[1, 3]), decoder=decoder()).eval(), image()
    assert torch.equal(net(x), net(x))
    assert torch.equal(net(x), net.decoder(net.encode(x))[0])
    other = YNet(encoder=encoder(attention_levels=[1, 3]), decoder=decoder()).eval()
    torch.nn.init.zeros_(other.decoder.head.weight)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x))
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).isfinite().all()


def test_encoder_goes_with_the_attention_decoder():
    part = encoder()
    up = UTNetDecoder(channels=part.channels, strides=part.strides, out_channels=3, reduce_size=2)
    assert YNet(encoder=part, decoder=up)(image()).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (encoder, {"spatial_dims": 3}, "spatial_dims is 3; this network is for planes"),
        (encoder, {"in_channels": 0}, "in_channels is 0; expected at least 1"),
        (encoder, {"feature_size": 48}, "feature_size is 48; expected a multiple of 32"),
        (encoder, {"block_units": [1, 1]}, r"block_units is \[1, 1\]; expected three numbers"),
        (encoder, {"block_units": [1, 0, 1]}, "block_units is .* at least 1"),
        (encoder, {"attention_levels": [4]}, r"attention_levels is \[4\]; expected levels from 0 to 3"),
        (encoder, {"num_blocks": 0}, "num_blocks is 0"),
        (encoder, {"num_heads": [4, 4]}, "num_heads is .*, or 4"),
        (encoder, {"attention_levels": [0], "num_heads": 33}, "level 0 has 32 channels, fewer than 33 heads"),
        (encoder, {"projection": "mean"}, "projection is 'mean'"),
        (decoder, {"spatial_dims": 3}, "spatial_dims is 3"),
        (decoder, {"channels": [4]}, "expected at least two levels"),
        (decoder, {"out_channels": 0}, "out_channels is 0"),
        (decoder, {"strides": [2, 4]}, r"strides is \[2, 4\]; expected 4 entries"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(32, 40\); each axis must be divisible by \(16, 16\)"):
        encoder()(image(32, 40))
    with pytest.raises(ValueError, match=r"expected \(B, 3, \*spatial\) with 2 spatial axes"):
        encoder(in_channels=3)(image(channels=2))
    with pytest.raises(ValueError, match=r"expected \(B, 1, \*spatial\) with 2 spatial axes"):
        encoder()(image(channels=3))
    with pytest.raises(ValueError, match=r"single position.*divisible by \(16, 16\)"):
        encoder()(image(16, 16)[:1])
    assert encoder()(image(16, 16))[-1].shape == (2, 512, 1, 1)  # torch normalises it in larger batches
    with pytest.raises(ValueError, match="got 1 features; expected 4"):
        decoder()([image(channels=32)])
    with pytest.raises(ValueError, match="deep_supervision is True in the network but False in its decoder"):
        YNet(encoder=encoder(), decoder=decoder(), deep_supervision=True)
