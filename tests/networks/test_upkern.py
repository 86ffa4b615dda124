"""UpKern: large kernels from small ones, everything else as it was."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import MedNeXtDecoder, MedNeXtEncoder, SwinEncoder, YNet, load_weights, upkern, upkern_checkpoint
from torch import nn
from torch.nn import functional as F


def mednext(kernel_size, *, spatial_dims=2, seed=0, channels=(2, 4, 6), **decoder):
    torch.manual_seed(seed)
    common = {"spatial_dims": spatial_dims, "channels": list(channels), "blocks": 1, "kernel_size": kernel_size}
    return YNet(
        encoder=MedNeXtEncoder(in_channels=1, **common),
        decoder=MedNeXtDecoder(out_channels=2, **common, **decoder),
    )


def swin_next(kernel_size, seed=0):
    """One channel in: the patch embedding has the shape of depthwise kernels. A stride of 4 has wider kernels."""
    torch.manual_seed(seed)
    encoder = SwinEncoder(in_channels=1, feature_size=12, depths=[1], num_heads=[3], patch_size=[2, 2, 4])
    decoder = MedNeXtDecoder(
        channels=encoder.channels, strides=encoder.strides, out_channels=2, blocks=1, kernel_size=kernel_size
    )
    return YNet(encoder=encoder, decoder=decoder)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_kernels_are_interpolated_and_the_rest_is_copied(spatial_dims):
    small, large = mednext(3, spatial_dims=spatial_dims), mednext(5, spatial_dims=spatial_dims, seed=1)
    source = small.state_dict()
    weights = upkern(source, large)
    assert list(weights) == list(large.state_dict())
    mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    resized = [key for key in source if source[key].shape != weights[key].shape]
    assert len(resized) == 2 + 2 + 3 + 2  # encoder blocks, down blocks, decoder blocks, up blocks
    for key, value in weights.items():
        if key in resized:
            expected = F.interpolate(source[key], (5,) * spatial_dims, mode=mode, align_corners=False)
            torch.testing.assert_close(value, expected)
        else:
            assert torch.equal(value, source[key])
            assert value.data_ptr() != source[key].data_ptr()
    assert not any(torch.equal(large.state_dict()[key], weights[key]) for key in resized)
    large.load_state_dict(weights)


def test_middle_and_mean_of_a_kernel():
    layer = nn.Conv2d(1, 1, 5, groups=1)
    kernel = torch.arange(9.0).view(1, 1, 3, 3)
    wide = upkern({"weight": kernel, "bias": torch.ones(1)}, layer)["weight"]
    assert wide[0, 0, 2, 2] == kernel[0, 0, 1, 1]
    assert wide.mean() == pytest.approx(kernel.mean().item())
    assert torch.equal(wide[0, 0, 0, [0, 4]], kernel[0, 0, 0, [0, 2]])  # the border is held


def test_any_network():
    def network(side):
        return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 4, (side, side, 1), groups=4))

    weights = upkern(network(3).state_dict(), network(7))
    assert weights["2.weight"].shape == (4, 1, 7, 7, 1)
    assert "1.num_batches_tracked" in weights


def test_16_bits_stay_16_bits():
    source = {key: value.half() for key, value in mednext(3).state_dict().items()}
    assert {value.dtype for value in upkern(source, mednext(5)).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        (mednext(5), mednext(3), r"of another shape: encoder.stages.0.0.conv1.weight: file \[2, 1, 5, 5\]"),
        (mednext(3), mednext(5, channels=[2, 4, 8]), "of another shape: encoder.downs.1.conv3.weight"),
        (
            mednext(3),
            mednext(5, norm="layer", global_response_norm=True),
            "missing in the file: decoder.stages.0.0.gl",
        ),
        (mednext(3, global_response_norm=True), mednext(5), "unknown to the network: decoder.stages.0.0.global_resp_b"),
        (mednext(3), mednext(5, spatial_dims=3), r"encoder.stages.0.0.conv1.weight: file \[2, 1, 3, 3\], network"),
        (nn.Conv3d(1, 4, 3), nn.Conv3d(1, 4, 5), "of another shape: weight"),  # one channel in, yet not depthwise
        (nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 5), "of another shape: weight"),
    ],
)
def test_refuses_what_differs_in_more(source, target, match):
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        upkern(source.state_dict(), target)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("network", [mednext, swin_next])
@pytest.mark.parametrize("kernel_size", [5, 7])
def test_file_without_a_network(network, kernel_size, tmp_path):
    small, large = network(3), network(kernel_size, seed=1)
    torch.save(small.state_dict(), tmp_path / "k3.pt")
    target = tmp_path / "new" / "large.pt"
    assert upkern_checkpoint(str(tmp_path / "k3.pt"), str(target), kernel_size) == str(target)
    load_weights(large, target)
    expected = upkern(small.state_dict(), large)
    assert all(torch.equal(value, expected[key]) for key, value in large.state_dict().items())


def test_file_of_the_authors(tmp_path):
    kernels = {"down_0.conv1.weight": torch.randn(2, 1, 3, 3, 3), "stem.weight": torch.randn(2, 1, 1, 1, 1)}
    others = {"down_0.norm.weight": torch.ones(2), "down_0.conv2.weight": torch.randn(4, 2, 1, 1, 1)}
    state = kernels | others | {"down_0.conv3.weight": torch.randn(4, 4, 1, 1, 1), "dummy_tensor": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "k3.model")
    upkern_checkpoint(str(tmp_path / "k3.model"), str(tmp_path / "k5.pt"))
    written = torch.load(tmp_path / "k5.pt", weights_only=True)
    assert written.keys() == state.keys()
    assert [key for key in state if written[key].shape != state[key].shape] == ["down_0.conv1.weight"]


def test_refuses_file(tmp_path):
    source, target = str(tmp_path / "k3.pt"), str(tmp_path / "k5.pt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        upkern_checkpoint(source, target)
    torch.save(mednext(3).state_dict(), source)
    for kernel_size in (1, 3, 4):
        with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}; expected an odd number above 3"):
            upkern_checkpoint(source, target, kernel_size)
    with pytest.raises(ValueError, match="also the source"):
        upkern_checkpoint(source, str(tmp_path / "x" / ".." / "k3.pt"))
    torch.save(nn.Conv3d(1, 4, 3).state_dict(), source)
    with pytest.raises(ValueError, match="holds no MedNeXt block"):
        upkern_checkpoint(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["k3.pt"]
