"""The MedNeXt decoder against MONAI's MedNeXt."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.mednext_block import MedNeXtUpBlock
from monai.networks.nets.mednext import MedNeXt
from scripts.networks import MedNeXtDecoder
from scripts.networks.mednext import UpBlock


def build(**changes) -> MedNeXtDecoder:
    torch.manual_seed(0)
    arguments = {"spatial_dims": 2, "channels": [4, 6, 8], "out_channels": 3, "blocks": 1, "deep_supervision": True}
    return MedNeXtDecoder(**{**arguments, **changes})


def features(channels, sizes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, *s, generator=generator) for c, s in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_up_block_equals_monai(spatial_dims, kernel_size):
    theirs = MedNeXtUpBlock(8, 4, 3, kernel_size, use_residual_connection=True, dim=f"{spatial_dims}d")
    ours = UpBlock(
        spatial_dims=spatial_dims,
        in_channels=8,
        out_channels=4,
        stride=(2,) * spatial_dims,
        kernel_size=kernel_size,
        expansion_ratio=3,
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, *(4, 3, 2)[:spatial_dims])
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_decoder_of_monai_mednext(spatial_dims):
    torch.manual_seed(0)
    theirs = MedNeXt(
        spatial_dims=spatial_dims,
        init_filters=4,
        out_channels=3,
        decoder_expansion_ratio=(3, 2),
        bottleneck_expansion_ratio=4,
        kernel_size=3,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=(1, 1),
        blocks_bottleneck=2,
        blocks_up=(1, 2),
    ).train()
    ours = build(
        spatial_dims=spatial_dims, channels=[4, 8, 16], blocks=[2, 1, 2], expansion_ratio=[2, 3, 4], kernel_size=3
    )
    parts = {"bottleneck": "stages.2", "dec_stages.0": "stages.1", "dec_stages.1": "stages.0"}
    parts |= {"up_blocks.0": "ups.1", "up_blocks.1": "ups.0", "out_0.conv_out": "heads.0"}
    parts |= {"out_blocks.0.conv_out": "heads.2", "out_blocks.1.conv_out": "heads.1"}
    state = {
        new + key.removeprefix(old): value.transpose(0, 1) if new.startswith("heads") and "weight" in key else value
        for key, value in theirs.state_dict().items()
        for old, new in parts.items()
        if key.startswith(old + ".")
    }
    ours.load_state_dict(state)
    x = torch.randn(1, 1, *(8,) * spatial_dims)
    maps, hidden = [], theirs.stem(x)
    for stage, down in zip(theirs.enc_stages, theirs.down_blocks, strict=True):
        maps.append(stage(hidden))
        hidden = down(maps[-1])
    for ours_at, theirs_at in zip(ours([*maps, hidden]), theirs(x), strict=True):
        torch.testing.assert_close(ours_at, theirs_at, atol=1e-5, rtol=1e-4)


def test_head_at_every_scale_or_at_the_finest():
    maps = features([4, 6, 8], [(16, 8), (8, 4), (4, 2)])
    assert [tuple(y.shape) for y in build()(maps)] == [(2, 3, 16, 8), (2, 3, 8, 4), (2, 3, 4, 2)]
    assert [tuple(y.shape) for y in build(deep_supervision=False)(maps)] == [(2, 3, 16, 8)]


@pytest.mark.parametrize("strides", [[[1, 1, 1], [2, 2, 1], [4, 4, 2]], [1, 1, 4], [1, [3, 2, 1], [12, 2, 1]]])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_strides_per_axis(strides, kernel_size):
    decoder = build(spatial_dims=3, strides=strides, kernel_size=kernel_size)
    sizes = [[24 // s for s in level] for level in decoder.strides]
    logits = decoder(features([4, 6, 8], sizes))
    assert [list(y.shape[2:]) for y in logits] == sizes


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_up_block_leaves_no_gaps(stride):
    block = UpBlock(
        spatial_dims=2, in_channels=2, out_channels=2, stride=[stride] * 2, kernel_size=3, expansion_ratio=2
    )
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    kernel = block.conv1(x)
    assert kernel.shape[2:] == (4 * stride - stride + 1,) * 2
    assert (kernel - block.conv1.bias.view(1, 2, 1, 1)).abs().min() > 0


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("blocks", [0, [0, 1, 2]])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_in_every_parameter(spatial_dims, blocks, deep_supervision):
    decoder = build(spatial_dims=spatial_dims, blocks=blocks, deep_supervision=deep_supervision)
    logits = decoder(features([4, 6, 8], [(n,) * spatial_dims for n in (8, 4, 2)]))
    sum((y * torch.randn_like(y)).sum() for y in logits).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_state_dict_round_trip():
    decoder, maps = build(), features([4, 6, 8], [(8, 8), (4, 4), (2, 2)])
    torch.manual_seed(5)
    other = MedNeXtDecoder(spatial_dims=2, channels=[4, 6, 8], out_channels=3, blocks=1, deep_supervision=True)
    other.load_state_dict(decoder.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(decoder(maps), other(maps), strict=True))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4; expected 2 or 3"),
        ({"kernel_size": 4}, "kernel_size is 4; expected an odd number"),
        ({"channels": [4]}, "expected at least two levels"),
        ({"channels": [4, 0]}, "at least one channel"),
        ({"out_channels": 0}, "out_channels is 0; expected at least 1"),
        ({"blocks": [1, 1]}, r"blocks is \[1, 1\]; expected a number of at least 0, or 3"),
        ({"blocks": -1}, "blocks is -1; expected a number of at least 0"),
        ({"expansion_ratio": [2, 0, 2]}, "expansion_ratio is .* at least 1"),
        ({"strides": [1, 2]}, r"strides is \[1, 2\]; expected 3 entries"),
        ({"strides": [1, [2, 2, 2], 4]}, "each a number or 2 of them"),
        ({"strides": [1, 2, 3]}, r"\(3, 3\) is not a multiple of \(2, 2\)"),
    ],
)
def test_refuses_argument(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


def test_refuses_features():
    with pytest.raises(ValueError, match="got 2 features; expected 3"):
        build()(features([4, 6], [(8, 8), (4, 4)]))
    with pytest.raises(ValueError, match=r"single position.*divisible by \(4, 4\) and at least one axis.*twice"):
        build()(features([4, 6, 8], [(4, 4), (2, 2), (1, 1)]))
    assert len(build()(features([4, 6, 8], [(4, 8), (2, 4), (1, 2)]))) == 3
