"""Swin-Unet's encoder and decoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from scripts.networks import MedNeXtDecoder, SwinUNetDecoder, SwinUNetEncoder, YNet
from scripts.networks.swin_unet_blocks import MASKED, SwinBlock, SwinOptions

BLOCKS = {"img_size": [16, 32], "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}


def encoder(**changes) -> SwinUNetEncoder:
    torch.manual_seed(0)
    return SwinUNetEncoder(**{"in_channels": 1, "feature_size": 8, "patch_size": 4, **BLOCKS, **changes})


def decoder(**changes) -> SwinUNetDecoder:
    torch.manual_seed(0)
    return SwinUNetDecoder(**{"channels": [8, 16], "out_channels": 3, **BLOCKS, **changes})


def network(**changes) -> YNet:
    return YNet(encoder=encoder(**changes), decoder=decoder(**changes))


def gradients_are_there(module: torch.nn.Module, outputs: list[torch.Tensor]) -> None:
    torch.manual_seed(2)
    sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_channels_and_strides_say_what_comes():
    net = encoder().eval()
    maps = net(torch.randn(2, 1, 16, 32))
    assert net.channels == (8, 16)
    assert [f.shape[1] for f in maps] == [8, 16]
    for feature, strides in zip(maps, net.strides, strict=True):
        assert list(feature.shape[2:]) == [n // s for n, s in zip([16, 32], strides, strict=True)]


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": False, "qk_scale": 0.3, "mlp_ratio": 2.0, "window_size": 7}, {"use_checkpoint": True}],
)
def test_gradient_in_every_parameter(options):
    net = network(**options, drop_path_rate=0.0)
    logits = net(torch.randn(2, 1, 16, 32))
    assert logits.shape == (2, 3, 16, 32)
    gradients_are_there(net, [logits])


def test_gradient_in_every_parameter_of_the_embedding():
    net = encoder(absolute_positions=True, patch_norm=False, drop_path_rate=0.0)
    gradients_are_there(net, net(torch.randn(2, 1, 16, 32)))


def test_checkpointing_changes_no_number():
    x, results = torch.randn(1, 1, 16, 32), []
    for use_checkpoint in (False, True):
        net = network(use_checkpoint=use_checkpoint, drop_path_rate=0.0)
        logits = net(x)
        logits.square().mean().backward()
        results.append((logits, *(p.grad for p in net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("resolution", "side"), [((8, 12), 4), ((6, 9), 3), ((4, 6), 2)])
def test_shifted_windows_mask_what_is_far(resolution, side):
    block = SwinBlock(2, 1, resolution, True, 0.0, SwinOptions(window_size=side))
    shift = side // 2
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in resolution), indexing="ij"))
    grid = torch.roll(grid, (-shift, -shift), dims=(1, 2))  # where each token of the shifted map comes from
    corners = itertools.product(*(range(0, n, side) for n in resolution))
    for mask, (row, column) in zip(block.attn_mask, corners, strict=True):
        tokens = grid[:, row : row + side, column : column + side].flatten(1)  # (2, N)
        far = ((tokens[:, :, None] - tokens[:, None]).abs() >= side).any(dim=0)
        assert torch.equal(mask, far * MASKED)


def test_windows_as_large_as_the_map_are_not_shifted():
    blocks = decoder(window_size=4, depths=[2, 1]).stages[0]
    assert [block.shift for block in blocks] == [0, 0]
    assert blocks[1].attn_mask is None
    assert [block.shift for block in decoder().stages[0]] == [0, 1]


def test_stochastic_depth_grows_over_the_encoder():
    rates = {"depths": [2, 3], "drop_path_rate": 0.4}
    blocks = [block for stage in encoder(**rates).stages for block in stage]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [block.drop_path.drop_prob for block in decoder(**rates).stages[0]] == pytest.approx([0.0, 0.1])


def test_other_strides_and_parts_combine():
    net = encoder(patch_size=2, img_size=16)
    up = decoder(img_size=16, strides=net.strides)
    x = torch.zeros(1, 1, 16, 16)
    assert YNet(encoder=net, decoder=up)(x).shape == (1, 3, 16, 16)
    net = encoder(patch_size=1, img_size=16)
    convolutions = MedNeXtDecoder(spatial_dims=2, channels=net.channels, out_channels=3, blocks=1)
    assert YNet(encoder=net, decoder=convolutions)(x).shape == (1, 3, 16, 16)
    up = decoder(strides=[[2, 4], [4, 16]], img_size=[16, 64])
    assert up([torch.zeros(1, 8, 8, 16), torch.zeros(1, 16, 4, 4)])[0].shape == (1, 3, 16, 64)


def test_repeats_one_channel_for_three():
    net, x = encoder(in_channels=3).eval(), torch.randn(1, 1, 16, 32)
    assert all(torch.equal(a, b) for a, b in zip(net(x), net(x.repeat(1, 3, 1, 1)), strict=True))
    one = encoder(in_channels=1).eval()
    assert torch.equal(one(x)[-1], net(x)[-1])


def test_state_dict_round_trip_and_determinism():
    net, x = network().eval(), torch.randn(2, 1, 16, 32)
    torch.manual_seed(5)
    other = YNet(
        encoder=SwinUNetEncoder(in_channels=1, feature_size=8, **BLOCKS),
        decoder=SwinUNetDecoder(channels=[8, 16], out_channels=3, **BLOCKS),
    ).eval()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        assert not torch.equal(net(x), other(x))
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(x), other(x))
        torch.testing.assert_close(net(x)[1:], net(x[1:]))  # the windows of two images stay apart


COMMON = [
    ({"spatial_dims": 3}, "spatial_dims is 3; this network is for planes"),
    ({"img_size": [16, 20]}, r"img_size is \[16, 20\]; expected one number or 2 of them, divisible by \(8, 8\)"),
    ({"img_size": 24}, r"its \(3, 3\) tokens at stride \(8, 8\) are not divisible into windows of 2"),
    ({"window_size": 0}, "window_size is 0; expected at least 1"),
    ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0; expected a positive number"),
    ({"drop_rate": 1.0}, "drop_rate is 1.0; expected a probability"),
    ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1; expected a probability"),
    ({"depths": [2, 0]}, r"depths is \[2, 0\]; expected at least one block for each of 2 levels"),
    ({"num_heads": [2]}, r"num_heads is \[2\]; expected one number per level"),
    ({"num_heads": [3, 4]}, r"num_heads is \[3, 4\]; expected one number per level that divides its width, \[8, 16\]"),
]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *COMMON,
        ({"depths": []}, r"depths is \[\]; expected at least one block"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"feature_size": 0}, "feature_size is 0; expected at least 1"),
        ({"patch_size": 0}, "patch_size is 0; expected at least 1"),
    ],
)
def test_encoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        encoder(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *COMMON,
        ({"channels": [8]}, "expected at least two levels"),
        ({"out_channels": 0}, "out_channels is 0; expected at least 1"),
        ({"depths": [2]}, r"depths is \[2\]; expected at least one block for each of 2 levels"),
        ({"strides": [4]}, "expected 2 entries"),
        ({"strides": [4, 6]}, r"\(6, 6\) is not a multiple of \(4, 4\)"),
    ],
)
def test_decoder_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        decoder(**changes)


def test_refuses_image_and_features():
    net = encoder()
    with pytest.raises(ValueError, match=r"spatial size \(16, 31\); each axis must be divisible by \(8, 8\)"):
        net(torch.zeros(1, 1, 16, 31))
    with pytest.raises(ValueError, match=r"spatial size \(32, 32\), but the network is made for img_size \(16, 32\)"):
        net(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="got 1 features; expected 2"):
        decoder()([torch.zeros(1, 8, 4, 8)])
    with pytest.raises(ValueError, match=r"features have spatial sizes .*; expected \(\(4, 8\), \(2, 4\)\)"):
        decoder()([torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 2, 2)])
