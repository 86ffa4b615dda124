"""3D UX-Net."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import UXNetDecoder, UXNetEncoder, YNet
from scripts.networks.ux_net import UXBlock
from torch.nn import functional as F


def encoder(**changes) -> UXNetEncoder:
    torch.manual_seed(0)
    return UXNetEncoder(
        **{"spatial_dims": 2, "in_channels": 2, "channels": [4, 6], "depths": [1, 2], "kernel_size": 5} | changes
    )


def decoder(**changes) -> UXNetDecoder:
    torch.manual_seed(0)
    arguments = {"spatial_dims": 2, "channels": [2, 4, 6], "out_channels": 3, "feature_size": 5, "hidden_size": 8}
    return UXNetDecoder(**arguments | changes)


def network(**changes) -> YNet:
    return YNet(encoder=encoder(**changes), decoder=decoder(**changes))


@pytest.mark.parametrize(("spatial_dims", "strides"), [(2, None), (3, None), (3, [1, [2, 2, 1], [4, 4, 1]])])
def test_shapes_and_gradient_in_every_parameter(spatial_dims, strides):
    net = network(spatial_dims=spatial_dims, strides=strides).train()
    size = [16, 8, 8][:spatial_dims]
    x = torch.randn(2, 2, *size)
    features = net.encode(x)
    assert torch.equal(features[0], x)
    for feature, channels, stride in zip(features, net.encoder.channels, net.encoder.strides, strict=True):
        assert feature.shape == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    logits = net(x)
    assert logits.shape == (2, 3, *size)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_block_transforms_each_channel_by_itself_but_for_the_norm(spatial_dims):
    torch.manual_seed(0)
    block = UXBlock(spatial_dims=spatial_dims, channels=4, kernel_size=5, layer_scale=0.5)
    x = torch.randn(2, 4, *(6,) * spatial_dims)
    depthwise, norm, expand, _, compress = block.layers
    y = [F.conv2d, F.conv3d][spatial_dims - 2](x, depthwise.weight, depthwise.bias, padding=2, groups=4)
    y = F.layer_norm(y.movedim(1, -1), (4,), eps=1e-6)
    w1, b1 = expand.weight.view(4, 4), expand.bias.view(4, 4)
    w2 = compress.weight.view(4, 4)
    y = (F.gelu(y[..., None] * w1 + b1) * w2).sum(-1) + compress.bias
    torch.testing.assert_close(block(x), x + 0.5 * y.movedim(-1, 1), atol=1e-5, rtol=1e-5)
    assert norm.eps == 1e-6


def test_size_of_the_paper():
    with torch.device("meta"):
        parts = [UXNetEncoder(in_channels=1), UXNetDecoder(out_channels=5)]
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count == 53_006_069
    assert round(count / 1e6, 1) == 53.0


def test_stochastic_depth_grows_and_is_off_in_eval():
    rates = [
        getattr(block.drop_path, "drop_prob", 0) for stage in encoder(drop_path_rate=0.4).stages for block in stage
    ]
    assert rates == pytest.approx([0, 0.2, 0.4])
    x = torch.randn(1, 2, 16, 16)
    for dropping, always in zip(encoder(drop_path_rate=0.9).eval()(x), encoder()(x), strict=True):
        assert torch.equal(dropping, always)


def test_state_dict_round_trip_and_determinism():
    net, x = network().eval(), torch.randn(1, 2, 16, 16)
    plain = {"spatial_dims": 2, "channels": [4, 6]}
    other = YNet(encoder=UXNetEncoder(**plain, in_channels=2, depths=[1, 2], kernel_size=5), decoder=decoder()).eval()
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (encoder, {"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        (encoder, {"in_channels": 0}, "in_channels is 0; expected at least 1"),
        (encoder, {"channels": [4], "depths": [1]}, "expected at least two levels"),
        (encoder, {"depths": [1]}, r"depths is \[1\]; expected 2 numbers"),
        (encoder, {"depths": [0, 1]}, "expected 2 numbers from 1 on"),
        (encoder, {"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        (encoder, {"drop_path_rate": 1.0}, "drop_path_rate is 1.0; expected a probability"),
        (encoder, {"strides": [1, 4, 8]}, "once or twice the one before"),
        (decoder, {"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        (decoder, {"channels": [4]}, "expected at least two levels"),
        (decoder, {"out_channels": 0}, "out_channels is 0; expected at least 1"),
        (decoder, {"feature_size": 0}, "feature_size is 0; expected at least 1"),
        (decoder, {"hidden_size": 0}, "hidden_size is 0; expected at least 1"),
        (decoder, {"strides": [1, 2]}, "expected 3 entries"),
    ],
)
def test_refuses_argument(part, changes, match):
    with pytest.raises(ValueError, match=match):
        part(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(16, 10\); each axis must be divisible by \(4, 4\)"):
        encoder()(torch.zeros(1, 2, 16, 10))
    with pytest.raises(ValueError, match="single position"):
        network()(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()([torch.zeros(1, 4, 8, 8)] * 2)
