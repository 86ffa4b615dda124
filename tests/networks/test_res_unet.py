"""Residual-encoder U-Net."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetUpBlock
from scripts.networks import ResidualEncoder, UNetDecoder, YNet
from scripts.networks.res_unet import NORM, ResidualBlock
from torch.nn import functional as F

CHANNELS = [4, 8, 8]


def encoder(**changes) -> ResidualEncoder:
    torch.manual_seed(0)
    return ResidualEncoder(**{"spatial_dims": 2, "in_channels": 2, "channels": CHANNELS, "blocks": [1, 2, 2]} | changes)


def decoder(**changes) -> UNetDecoder:
    torch.manual_seed(0)
    return UNetDecoder(**{"spatial_dims": 2, "channels": CHANNELS, "out_channels": 3} | changes)


def network(**changes) -> YNet:
    return YNet(encoder=encoder(**changes), decoder=decoder(deep_supervision=True, **changes), deep_supervision=True)


@pytest.mark.parametrize(
    ("spatial_dims", "strides"), [(2, None), (3, None), (3, [1, [2, 2, 1], [4, 4, 1]]), (2, [1, 1, 2])]
)
def test_shapes_and_gradient_in_every_parameter(spatial_dims, strides):
    net = network(spatial_dims=spatial_dims, strides=strides).train()
    size = [16, 8, 8][:spatial_dims]
    x = torch.randn(2, 2, *size)
    for feature, channels, stride in zip(net.encode(x), net.encoder.channels, net.encoder.strides, strict=True):
        assert feature.shape == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    logits = net(x)
    for scale, stride in zip(logits, net.encoder.strides[:-1], strict=True):
        assert scale.shape == (2, 3, *(n // s for n, s in zip(size, stride, strict=True)))
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("out_channels", [4, 8])
def test_shortcut_averages(out_channels):
    torch.manual_seed(0)
    block = ResidualBlock(spatial_dims=3, in_channels=4, out_channels=out_channels, stride=(2, 2, 1))
    x = torch.randn(2, 4, 8, 8, 4)
    expected = F.avg_pool3d(x, (2, 2, 1))
    if out_channels != 4:
        expected = F.instance_norm(F.conv3d(expected, block.conv3[1].weight))
    y = F.leaky_relu(F.instance_norm(F.conv3d(x, block.conv1.conv.weight, stride=(2, 2, 1), padding=1)), 0.01)
    expected = expected + F.instance_norm(F.conv3d(y, block.conv2.conv.weight, padding=1))
    torch.testing.assert_close(block(x), F.leaky_relu(expected, 0.01), atol=1e-5, rtol=1e-5)


def test_two_convolutions_are_monais_up_block():
    ours = decoder(convolutions=2)
    theirs = UnetUpBlock(2, 8, 4, 3, 1, 2, norm_name=NORM, trans_bias=True)
    keys = {f"{i}.{ours}": theirs.format(i + 1) for i in (0, 1) for ours, theirs in NAMES.items()}
    weights = {
        ".".join(["conv_block", keys[key.removeprefix("conv_block.")]]) if "conv_block" in key else key: tensor
        for key, tensor in ours.ups[0].state_dict().items()
    }
    theirs.load_state_dict(weights)
    x, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours.ups[0](x, skip), theirs(x, skip))


NAMES = {"conv.weight": "conv{}.conv.weight", "adn.N.weight": "norm{}.weight", "adn.N.bias": "norm{}.bias"}


def test_size_of_the_paper():
    with torch.device("meta"):
        parts = [
            ResidualEncoder(in_channels=1),
            UNetDecoder(channels=[32, 64, 128, 256, 320, 320], out_channels=14, deep_supervision=True),
        ]
    count = sum(p.numel() for part in parts for p in part.parameters())
    biases = 2 * (32 + 3 * 64 + 4 * 128 + 6 * 256 + 12 * 320) + 32 + sum([32, 64, 128, 256, 320])
    assert count == 102_346_374
    assert round((count + biases) / 1e6, 1) == 102.4  # nnU-Net's convolutions have biases


def test_state_dict_round_trip_and_determinism():
    net, x = network().eval(), torch.randn(1, 2, 16, 16)
    other = YNet(encoder=ResidualEncoder(spatial_dims=2, in_channels=2, channels=CHANNELS, blocks=[1, 2, 2]),
                 decoder=decoder(deep_supervision=True), deep_supervision=True).eval()  # fmt: skip
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
        (encoder, {"blocks": [1, 1]}, r"blocks is \[1, 1\]; expected 3 numbers"),
        (encoder, {"blocks": [0, 1, 1]}, "expected 3 numbers from 1 on"),
        (encoder, {"strides": [2, 4, 8]}, "expected 1 at first"),
        (encoder, {"strides": [1, 2]}, "expected 3 entries"),
        (encoder, {"strides": [1, 4, 8]}, "once or twice the one before"),
        (decoder, {"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        (decoder, {"channels": [4, 0]}, "at least one channel"),
        (decoder, {"out_channels": 0}, "out_channels is 0; expected at least 1"),
        (decoder, {"convolutions": 0}, "convolutions is 0; expected at least 1"),
        (decoder, {"strides": [1, 3, 6]}, "once or twice the one before"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(16, 10\); each axis must be divisible by \(4, 4\)"):
        encoder()(torch.zeros(1, 2, 16, 10))
    with pytest.raises(ValueError, match="single position"):
        encoder()(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()([torch.zeros(1, 4, 8, 8)] * 2)
