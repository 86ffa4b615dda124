"""ViT encoder and UNETR decoder."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import MedNeXtDecoder, SwinEncoder, UNETRDecoder, ViTEncoder, YNet


def vit(**changes) -> ViTEncoder:
    torch.manual_seed(0)
    arguments = {
        "spatial_dims": 2,
        "in_channels": 2,
        "img_size": [16, 32],
        "feature_size": 4,
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_layers": 4,
        "num_heads": 3,
        "taps": [0, 1, 2],
    }
    return ViTEncoder(**{**arguments, **changes})


def decoder(**changes) -> UNETRDecoder:
    torch.manual_seed(0)
    arguments = {
        "spatial_dims": 2,
        "channels": [1, 8, 12],
        "out_channels": 3,
        "feature_size": 6,
        "blocks": [True, False, True],
    }
    return UNETRDecoder(**{**arguments, **changes})


def features(spatial_dims=2, sizes=(16, 8, 4), channels=(1, 8, 12)) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, *(n,) * spatial_dims) for c, n in zip(channels, sizes, strict=True)]


def gradients_are_there(module: torch.nn.Module, outputs: list[torch.Tensor]) -> None:
    torch.manual_seed(2)
    sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
    for name, parameter in module.named_parameters():
        if "norm_cross_attn" in name:
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("spatial_dims", "size", "taps"), [(2, [16, 32], [0, 1, 2]), (3, [16, 8, 8], [0, 2]), (3, 16, [0, 1, 2])]
)
def test_channels_and_strides_say_what_comes(spatial_dims, size, taps):
    encoder = vit(spatial_dims=spatial_dims, img_size=size, taps=taps).eval()
    size = [size] * spatial_dims if isinstance(size, int) else size
    x = torch.randn(2, 2, *size)
    maps = encoder(x)
    assert torch.equal(maps[0], x)
    assert encoder.channels == (2, *(4 * 2**i for i in range(1, len(taps) + 1)), 12)
    assert [f.shape[1] for f in maps] == list(encoder.channels)
    for feature, strides in zip(maps, encoder.strides, strict=True):
        assert list(feature.shape[2:]) == [n // s for n, s in zip(size, strides, strict=True)]


@pytest.mark.parametrize("options", [{}, {"conv_block": False}, {"res_block": False}, {"qkv_bias": True}])
def test_gradient_in_every_parameter_of_vit(options):
    encoder = vit(**options)
    gradients_are_there(encoder, encoder(torch.randn(2, 2, 16, 32)))


@pytest.mark.parametrize("options", [{}, {"res_block": False}, {"norm_name": ["group", {"num_groups": 2}]}])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_in_every_parameter_of_decoder(spatial_dims, options):
    net = decoder(spatial_dims=spatial_dims, **options)
    logits = net(features(spatial_dims))
    assert [tuple(y.shape) for y in logits] == [(2, 3, *(16,) * spatial_dims)]
    gradients_are_there(net, logits)


@pytest.mark.parametrize("strides", [[1, 2, 8], [[1, 1, 1], [2, 2, 1], [4, 4, 2]], [2, 4, 8]])
def test_strides_per_axis(strides):
    net = decoder(spatial_dims=3, strides=strides)
    sizes = [[16 // s for s in level] for level in net.strides]
    maps = [torch.randn(1, c, *n) for c, n in zip([1, 8, 12], sizes, strict=True)]
    assert list(net(maps)[0].shape[2:]) == sizes[0]


def test_state_dict_round_trip_and_determinism():
    net, maps = decoder(), features()
    torch.manual_seed(5)
    other = UNETRDecoder(spatial_dims=2, channels=[1, 8, 12], out_channels=3, feature_size=6, blocks=[1, 0, 1])
    assert not torch.equal(net(maps)[0], other(maps)[0])
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(maps)[0], other(maps)[0])
    encoder, x = vit().eval(), torch.randn(1, 2, 16, 32)
    assert all(torch.equal(a, b) for a, b in zip(encoder(x), encoder(x), strict=True))


def test_parts_of_the_same_strides_combine():
    swin = SwinEncoder(
        spatial_dims=2, in_channels=2, feature_size=8, depths=[1, 1, 1], num_heads=[2] * 3, stem_channels=0
    )
    vision = vit(img_size=32)
    assert swin.strides == vision.strides
    x = torch.randn(1, 2, 32, 32)
    for encoder in (swin, vision):
        up = UNETRDecoder(spatial_dims=2, channels=encoder.channels, out_channels=3, feature_size=4, blocks=[True] * 5)
        convolutions = MedNeXtDecoder(spatial_dims=2, channels=encoder.channels, out_channels=3, blocks=1)
        for part in (up, convolutions):
            assert YNet(encoder=encoder, decoder=part)(x).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        ({"taps": []}, r"taps is \[\]; expected increasing block indices from 0 to 3"),
        ({"taps": [1, 0, 2]}, "expected increasing block indices"),
        ({"taps": [0, 1, 4]}, "expected increasing block indices from 0 to 3"),
        ({"taps": [-1, 0, 1]}, "expected increasing block indices"),
        ({"img_size": 24}, r"img_size is 24; expected one number or 2 of them, divisible by \(16, 16\)"),
        ({"img_size": [16, 16, 16]}, "expected one number or 2 of them"),
        ({"img_size": 0}, "img_size is 0"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"feature_size": 0}, "feature_size is 0; expected at least 1"),
        ({"mlp_dim": 0}, "mlp_dim is 0; expected at least 1"),
        ({"num_heads": 5}, "num_heads is 5; it must divide hidden_size, which is 12"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a probability"),
        ({"proj_type": "linear"}, "linear"),
    ],
)
def test_vit_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        vit(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        ({"channels": [4], "blocks": [True]}, "expected at least two levels"),
        ({"channels": [4, 0, 4]}, "at least one channel"),
        ({"out_channels": 0}, "out_channels is 0; expected at least 1"),
        ({"feature_size": 0}, "feature_size is 0; expected at least 1"),
        ({"blocks": [True, True]}, "expected one entry per level, 3"),
        ({"blocks": [False, True, True]}, r"finest feature has 1 channels: set blocks\[0\] to True"),
        ({"strides": [1, 2]}, r"strides is \[1, 2\]; expected 3 entries"),
        ({"strides": [1, [2, 2, 2], 4]}, "each a number or 2 of them"),
        ({"strides": [1, 2, 3]}, r"\(3, 3\) is not a multiple of \(2, 2\)"),
    ],
)
def test_decoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        decoder(**changes)


def test_refuses_image_and_features():
    with pytest.raises(ValueError, match=r"spatial size \(16, 24\); each axis must be divisible by \(16, 16\)"):
        vit()(torch.zeros(1, 2, 16, 24))
    with pytest.raises(ValueError, match=r"spatial size \(32, 32\), but .*img_size \(16, 32\)"):
        vit()(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()(features()[:2])
    with pytest.raises(ValueError, match=r"single position.*divisible by \(4, 4\) and at least one axis.*twice"):
        decoder()(features(sizes=(4, 2, 1)))
    for allowed in ({"blocks": [True, False, False]}, {"norm_name": "batch"}):
        assert decoder(**allowed)(features(sizes=(4, 2, 1)))[0].shape == (2, 3, 4, 4)
