"""TransUNet's encoder and decoder."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import (
    ImageEncoder,
    MedNeXtEncoder,
    ResNetEncoder,
    ResNetUNetDecoder,
    TransUNetDecoder,
    TransUNetEncoder,
    UTNetEncoder,
    YNet,
)

TRANSFORMER = {"hidden_size": 12, "mlp_dim": 16, "num_layers": 2, "num_heads": 3}


def encoder(in_channels=1, **changes) -> TransUNetEncoder:
    torch.manual_seed(0)
    backbone = ResNetEncoder(in_channels=in_channels, feature_size=32, block_units=[1, 1, 1])
    return TransUNetEncoder(**{"backbone": backbone, "img_size": [32, 64], **TRANSFORMER, **changes})


def decoder(**changes) -> TransUNetDecoder:
    torch.manual_seed(0)
    arguments = {"channels": [4, 6, 8], "out_channels": 3, "widths": [4, 4, 6, 8]}
    return TransUNetDecoder(**{**arguments, **changes})


def features(spatial_dims=2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, *(n,) * spatial_dims) for c, n in zip([4, 6, 8], [8, 4, 2], strict=True)]


def gradients_are_there(module: torch.nn.Module, outputs: list[torch.Tensor]) -> None:
    torch.manual_seed(2)
    sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        # a constant added to all keys changes no softmax
        assert name.endswith("key.bias") or parameter.grad.abs().max() > 0, name


def test_channels_and_strides_say_what_comes():
    net = encoder().eval()
    maps = net(torch.randn(2, 1, 32, 64))
    assert [f.shape[1] for f in maps] == list(net.channels) == [32, 128, 256, 12]
    for feature, strides in zip(maps, net.strides, strict=True):
        assert list(feature.shape[2:]) == [n // s for n, s in zip([32, 64], strides, strict=True)]


def test_gradient_in_every_parameter():
    net = encoder()
    down = TransUNetDecoder(channels=net.channels, out_channels=3, widths=[4, 4, 6, 6, 8])
    whole = YNet(encoder=net, decoder=down)
    logits = whole(torch.randn(2, 1, 32, 64))
    assert logits.shape == (2, 3, 32, 64)
    gradients_are_there(whole, [logits])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("skips", [0, 1, None])
def test_uses_the_coarser_skips_first(spatial_dims, skips):
    net, maps = decoder(spatial_dims=spatial_dims, skips=skips), features(spatial_dims)
    for feature in maps:
        feature.requires_grad_()
    logits = net(maps)
    assert [tuple(y.shape) for y in logits] == [(2, 3, *(16,) * spatial_dims)]
    gradients_are_there(net, logits)
    used = [feature.grad is not None for feature in maps]
    assert used == {0: [False, False, True], 1: [False, True, True], None: [True, True, True]}[skips]


def test_transformer_on_other_backbones():
    plain = TransUNetEncoder(backbone=ImageEncoder(in_channels=2), img_size=[16, 32], patch_size=16, **TRANSFORMER)
    assert (plain.channels, plain.strides) == ((12,), ((16, 16),))
    net = YNet(
        encoder=plain, decoder=TransUNetDecoder(channels=[12], out_channels=3, strides=[16], widths=[4, 4, 4, 4, 8])
    )
    logits = net(torch.randn(2, 2, 16, 32))
    assert logits.shape == (2, 3, 16, 32)
    gradients_are_there(net, [logits])
    hybrid = TransUNetEncoder(
        backbone=UTNetEncoder(in_channels=1, feature_size=4, attention_levels=[]), img_size=32, **TRANSFORMER
    )
    up = TransUNetDecoder(channels=hybrid.channels, out_channels=3, strides=hybrid.strides, widths=[4] * 5)
    assert YNet(encoder=hybrid, decoder=up)(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)


def test_volumes():
    backbone = MedNeXtEncoder(in_channels=1, channels=[4, 4, 8], expansion_ratio=2, blocks=1)
    net = TransUNetEncoder(backbone=backbone, img_size=[8, 4, 8], **TRANSFORMER)
    up = TransUNetDecoder(spatial_dims=3, channels=net.channels, out_channels=2, strides=net.strides, widths=[4, 4, 8])
    assert YNet(encoder=net, decoder=up)(torch.zeros(1, 1, 8, 4, 8)).shape == (1, 2, 8, 4, 8)


def test_parts_of_the_same_strides_combine():
    net = encoder()
    down = ResNetUNetDecoder(channels=net.channels, out_channels=3, strides=net.strides)
    assert YNet(encoder=net, decoder=down)(torch.zeros(1, 1, 32, 64)).shape == (1, 3, 32, 64)
    assert net.strides == net.backbone.strides


def test_repeats_one_channel_for_three():
    net, x = encoder(in_channels=3).eval(), torch.randn(1, 1, 32, 64)
    assert all(torch.equal(a, b) for a, b in zip(net(x), net(x.repeat(1, 3, 1, 1)), strict=True))


def test_state_dict_round_trip_and_determinism():
    net, x = encoder().eval(), torch.randn(1, 1, 32, 64)
    torch.manual_seed(5)
    backbone = ResNetEncoder(in_channels=1, feature_size=32, block_units=[1, 1, 1])
    other = TransUNetEncoder(backbone=backbone, img_size=[32, 64], **TRANSFORMER).eval()
    with torch.no_grad():
        assert not torch.equal(net(x)[-1], other(x)[-1])
        other.load_state_dict(net.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))
    up, maps = decoder().eval(), features()
    assert torch.equal(up(maps)[0], up(maps)[0])


def test_dropout_of_tokens_and_attention():
    x = torch.randn(1, 1, 32, 64)
    for rates in ({"dropout_rate": 0.5}, {"dropout_rate": 0.0, "attention_dropout_rate": 0.5}):
        net = encoder(**rates)
        assert not torch.equal(net(x)[-1], net(x)[-1])
    net = encoder(dropout_rate=0.0)
    assert torch.equal(net(x)[-1], net(x)[-1])


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_to_one_graph(autocast):
    torch._dynamo.reset()
    up = TransUNetDecoder(channels=[12], out_channels=3, strides=[4], widths=[4, 4, 8])
    net = TransUNetEncoder(backbone=ImageEncoder(in_channels=1), img_size=8, patch_size=4, **TRANSFORMER)
    net, x = YNet(encoder=net, decoder=up).eval(), torch.randn(1, 1, 8, 8)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(compiled(x), net(x))
        assert net(x).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"img_size": 24}, r"img_size is 24; expected one number or 2 of them, divisible by \(16, 16\)"),
        ({"img_size": 0}, "img_size is 0"),
        ({"img_size": [32, 32, 32]}, "expected one number or 2 of them"),
        ({"patch_size": 0}, "patch_size is 0; expected at least 1"),
        ({"mlp_dim": 0}, "mlp_dim is 0; expected at least 1"),
        ({"num_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"num_heads": 5}, "num_heads is 5; it must divide hidden_size, which is 12"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a probability"),
        ({"attention_dropout_rate": -0.1}, "attention_dropout_rate is -0.1; expected a probability"),
    ],
)
def test_encoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        encoder(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; expected 2 or 3"),
        ({"channels": []}, r"channels is \[\]; expected a positive number per feature"),
        ({"channels": [4, 0, 8]}, "expected a positive number per feature"),
        ({"out_channels": 0}, "out_channels is 0; expected at least 1"),
        ({"widths": [4, 4, 6]}, "expected 4 positive numbers, for strides 1 to 8"),
        ({"widths": [4, 0, 6, 8]}, "expected 4 positive numbers"),
        ({"skips": 3}, "skips is 3; expected 0 to 2"),
        ({"skips": -1}, "skips is -1; expected 0 to 2"),
        ({"strides": [2, 4]}, "expected 3 entries"),
        ({"strides": [2, 4, 12]}, "expected increasing powers of 2, the same for all axes"),
        ({"strides": [2, [4, 2], 8]}, "expected increasing powers of 2, the same for all axes"),
        ({"strides": [4, 4, 8]}, "expected increasing powers of 2"),
    ],
)
def test_decoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        decoder(**changes)


def test_image_encoder_refuses_argument():
    with pytest.raises(ValueError, match="in_channels is 0; expected at least 1"):
        ImageEncoder(in_channels=0)
    with pytest.raises(ValueError, match="spatial_dims is 4; expected 2 or 3"):
        ImageEncoder(spatial_dims=4, in_channels=1)


def test_refuses_image_and_features():
    net = encoder()
    with pytest.raises(ValueError, match=r"spatial size \(32, 63\); each axis must be divisible by \(16, 16\)"):
        net(torch.zeros(1, 1, 32, 63))
    with pytest.raises(ValueError, match=r"spatial size \(64, 64\), but the network is made for img_size \(32, 64\)"):
        net(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"expected \(B, 1, \*spatial\)"):
        net(torch.zeros(1, 3, 32, 64))
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        decoder()(features()[:2])
