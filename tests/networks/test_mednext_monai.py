"""The MedNeXt encoder and decoder against MONAI's MedNeXt, where that one is the authors'."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.mednext_block import MedNeXtDownBlock, MedNeXtUpBlock
from monai.networks.nets.mednext import MedNeXt
from scripts.networks import MedNeXtDecoder, MedNeXtEncoder
from scripts.networks.mednext_blocks import DownBlock, UpBlock


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


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_down_block_equals_monai(spatial_dims, kernel_size):
    theirs = MedNeXtDownBlock(4, 8, 3, kernel_size, use_residual_connection=True, dim=f"{spatial_dims}d")
    ours = DownBlock(
        spatial_dims=spatial_dims,
        in_channels=4,
        out_channels=8,
        stride=(2,) * spatial_dims,
        kernel_size=kernel_size,
        expansion_ratio=3,
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, *(8, 6, 4)[:spatial_dims])
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_encoder_of_monai_mednext(spatial_dims):
    torch.manual_seed(0)
    theirs = MedNeXt(
        spatial_dims=spatial_dims,
        init_filters=4,
        encoder_expansion_ratio=3,  # one for all: MONAI's down blocks take that of the finer level, the authors' not
        kernel_size=3,
        use_residual_connection=True,
        blocks_down=(1, 2),
        blocks_up=(1, 1),
    )
    ours = MedNeXtEncoder(
        spatial_dims=spatial_dims, in_channels=1, channels=[4, 8, 16], expansion_ratio=3, blocks=[1, 2]
    )
    parts = {"stem": "stem", "enc_stages": "stages", "down_blocks": "downs"}
    theirs_state = theirs.state_dict().items()
    ours.load_state_dict(
        {
            parts[(part := k.split(".")[0])] + k.removeprefix(part): v
            for k, v in theirs_state
            if k.split(".")[0] in parts
        }
    )
    x = torch.randn(1, 1, *(8,) * spatial_dims)
    hidden, expected = theirs.stem(x), []
    for stage, down in zip(theirs.enc_stages, theirs.down_blocks, strict=True):
        expected.append(stage(hidden))
        hidden = down(expected[-1])
    for ours_at, theirs_at in zip(ours(x), [*expected, hidden], strict=True):
        torch.testing.assert_close(ours_at, theirs_at)


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
    ours = MedNeXtDecoder(
        spatial_dims=spatial_dims,
        channels=[4, 8, 16],
        out_channels=3,
        blocks=[2, 1, 2],
        expansion_ratio=[2, 3, 4],
        kernel_size=3,
        deep_supervision=True,
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
