"""nnU-Net's residual-encoder U-Net: residual stages on the way down, one convolution per level on the way up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution
from monai.networks.blocks.dynunet_block import UnetResBlock, UnetUpBlock
from monai.networks.layers import Conv, Pool
from torch import Tensor, nn

from .levels import (
    check_channels,
    check_count,
    check_image,
    check_not_single,
    check_positive,
    check_spatial_dims,
    level_strides,
)

NORM = ("instance", {"affine": True})
ACT = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})


class ResidualBlock(UnetResBlock):
    """MONAI's residual block with the shortcut of ResNet-D, which averages where the block strides.

    Without a stride it is MONAI's `UnetResBlock`. With one, MONAI's shortcut skips over positions; this one averages
    them, and has a 1x1 convolution only where the number of channels changes.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride per axis.

    References:
        He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019, section 4.
    """

    def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, 3, stride, norm_name=NORM, act_name=ACT)
        if max(stride) == 1:
            return
        self.conv3 = Pool[Pool.AVG, spatial_dims](kernel_size=tuple(stride), stride=tuple(stride))
        if in_channels == out_channels:
            self.norm3 = nn.Identity()
        else:
            conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1, bias=False)
            self.conv3 = nn.Sequential(self.conv3, conv)


class ResidualEncoder(nn.Module):
    """Encoder of nnU-Net's ResEnc presets: a convolution, then stages of residual blocks, each strided by its first.

    ResEnc M, L and XL are this one network; they differ in the patch, batch and number of levels that fit their memory.
    With `UNetDecoder`, one input channel, six levels and 14 classes it has 102.35 M parameters (ResEnc L: 102.4 M),
    0.01 M fewer than nnU-Net's, whose convolutions have biases that the normalisation after them removes.

    All lists name one entry per level, finest first.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of each feature.
        strides: stride of each feature, as one number or one per axis, 1 at first; None: 1, 2, 4, ...
        blocks: number of residual blocks of each level.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Isensee et al., "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation",
        MICCAI 2024, arXiv:2404.09556, section 2 and the authors' package dynamic_network_architectures.

    Example:
        >>> import torch
        >>> from scripts.networks import ResidualEncoder
        >>> encoder = ResidualEncoder(spatial_dims=2, in_channels=1, channels=[4, 8, 8], blocks=[1, 1, 2])
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 16))]
        [(1, 4, 16, 16), (1, 8, 8, 8), (1, 8, 4, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[int | Sequence[int]] | None = None,
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, in_channels=in_channels)
        if len(blocks) != len(channels) or min(blocks) < 1:
            raise ValueError(f"blocks is {list(blocks)}; expected {len(channels)} numbers from 1 on, one per level.")
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        self.divisor = self.strides[-1]
        if set(self.strides[0]) != {1}:
            raise ValueError(f"strides is {strides}; expected 1 at first: the finest feature is at full resolution.")
        self.stem = _convolution(spatial_dims, in_channels, channels[0])
        steps = [self.strides[0], *halvings(self.strides)]
        widths = [channels[0], *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(
                        spatial_dims=spatial_dims,
                        in_channels=width if block else before,
                        out_channels=width,
                        stride=self.strides[0] if block else step,
                    )
                    for block in range(n)
                )
            )
            for before, width, step, n in zip(widths, channels, steps, blocks, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *spatial)`, every axis divisible by `divisor`.

        Returns:
            Features `(B, channels[i], *spatial / strides[i])`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
            check_not_single([n // d for n, d in zip(x.shape[2:], self.divisor, strict=True)], self.divisor)
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class UNetDecoder(nn.Module):
    """Decoder of nnU-Net: transposed convolutions, concatenated skips, a few convolutions and a head at every level.

    All lists name one entry per level, finest first, as the encoder returns its features.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis; None: 1, 2, 4, ...
        convolutions: number of convolutions of each level: 1 in the ResEnc presets, 2 in nnU-Net's plain U-Net.
        deep_supervision: True has a head at every level but the coarsest, False at the finest one only.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Isensee et al., arXiv:2404.09556, section 2.

    Example:
        >>> import torch
        >>> from scripts.networks import UNetDecoder
        >>> decoder = UNetDecoder(spatial_dims=2, channels=[4, 8, 8], out_channels=3, deep_supervision=True)
        >>> features = [torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]
        >>> [tuple(y.shape) for y in decoder(features)]
        [(1, 3, 16, 16), (1, 3, 8, 8)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int],
        out_channels: int,
        strides: Sequence[int | Sequence[int]] | None = None,
        convolutions: int = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, out_channels=out_channels, convolutions=convolutions)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        self.deep_supervision = deep_supervision
        self.ups = nn.ModuleList()
        for fine, coarse, step in zip(channels, channels[1:], halvings(self.strides), strict=False):
            up = UnetUpBlock(spatial_dims, coarse, fine, 3, 1, step, norm_name=NORM, trans_bias=True)
            widths = [2 * fine, *[fine] * convolutions]
            up.conv_block = nn.Sequential(*(_convolution(spatial_dims, n, m) for n, m in pairwise(widths)))
            self.ups.append(up)
        self.heads = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](width, out_channels, kernel_size=1)
            for width in (channels[:-1] if deep_supervision else channels[:1])
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial / strides[i])` of every head, finest first.

        Raises:
            ValueError: if the number of features is wrong.
        """
        check_count(features, self.channels)
        x = features[-1]
        maps = []
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x, features[level])
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]  # coarser maps may have no head


def halvings(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Factor per axis between each level and the next coarser one, which must be 1 or 2."""
    steps = [tuple(c // f for f, c in zip(fine, coarse, strict=True)) for fine, coarse in pairwise(strides)]
    if any(factor not in (1, 2) for step in steps for factor in step):
        raise ValueError(
            f"strides is {list(strides)}; expected each entry to be once or twice the one before per axis."
        )
    return steps


def check_levels(spatial_dims: int, channels: Sequence[int], **sizes: int) -> None:
    """Check what the encoders and decoders have in common.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature, at least two.
        sizes: named numbers that must be at least 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_spatial_dims(spatial_dims)
    check_channels(channels)
    check_positive(**sizes)


def _convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return Convolution(spatial_dims, in_channels, out_channels, bias=False, norm=NORM, act=ACT, adn_ordering="NA")
