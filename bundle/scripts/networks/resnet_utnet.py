"""ResNet50-UNet and ResNet-UTNet: the ResNet of TransUNet, a convolutional decoder, and attention on the features."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .levels import (
    check_channels,
    check_count,
    check_image,
    check_not_single,
    check_planes,
    check_positive,
    grey_or_colour,
    least_batch,
    level_strides,
)
from .utnet_attention import AttentionBlock, AttentionOptions, check_heads, check_levels, per_level, resize
from .utnet_blocks import ConvUp

LEVELS = 4
GROUPS = 32


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose kernels are brought to mean 0 and variance 1 before use.

    References:
        Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        arXiv:1903.10520.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, in_channels, H, W)`."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Bottleneck(nn.Module):
    """Residual bottleneck of group-normalised, standardised convolutions, as in Big Transfer's ResNet.

    Args:
        in_channels: channels of the input.
        channels: hidden channels, a multiple of 32; the output has four times as many.
        stride: of the 3x3 convolution; where it or the channels change, the shortcut is a normalised 1x1 one.

    References:
        Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning", ECCV 2020, section 3.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = StandardizedConv2d(in_channels, channels, kernel_size=1, bias=False)
        self.gn1 = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.conv2 = StandardizedConv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.gn2 = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.conv3 = StandardizedConv2d(channels, out_channels, kernel_size=1, bias=False)
        self.gn3 = nn.GroupNorm(GROUPS, out_channels, eps=1e-6)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = self.gn_proj = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = StandardizedConv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.gn_proj = nn.GroupNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, 4 * channels, H / stride, W / stride)`, rounded up."""
        y = self.relu(self.gn1(self.conv1(x)))
        y = self.relu(self.gn2(self.conv2(y)))
        return self.relu(self.gn_proj(self.downsample(x)) + self.gn3(self.conv3(y)))


class ResNetEncoder(nn.Module):
    """ResNet of TransUNet as an encoder, with attention blocks on the features that are named.

    It returns four levels, of strides 2, 4, 8 and 16. The pooling after the first is without padding, which loses the
    last row and column; zeros stand in for them in the skip, as in the authors' code.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image. A single one is repeated to the three that pretrained weights expect; an
            encoder for three is also given images of one.
        feature_size: channels of the finest level, a multiple of 32; the others have 4, 8 and 16 times as many.
        block_units: bottlenecks of the three coarser levels; (3, 4, 9) is the ResNet50 of TransUNet.
        attention_levels: levels (0 is the finest, 3 the coarsest) with attention blocks on top; none: ResNet50-UNet.
        num_blocks: attention blocks of each level that has attention; one number or one per level.
        num_heads: attention heads; one number or one per level, at most the channels of the level.
        reduce_size: side r of the grid to which keys and values are reduced.
        projection: how they are reduced, "interp" or "maxpool".
        rel_pos: learned relative positions; the image must then be divisible by stride * r at levels with attention.
        attn_drop: dropout of the attention weights, in [0, 1).
        proj_drop: dropout of the output of the attention, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", arXiv:2102.04306,
        section 3.2; Gao et al., "UTNet", arXiv:2107.00781, section 3.

    Example:
        >>> import torch
        >>> from scripts.networks import ResNetEncoder
        >>> encoder = ResNetEncoder(in_channels=1, feature_size=32, block_units=[1, 1, 1])
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 32, 64))]
        [(32, 16, 32), (128, 8, 16), (256, 4, 8), (512, 2, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int,
        feature_size: int = 64,
        block_units: Sequence[int] = (3, 4, 9),
        attention_levels: Sequence[int] = (),
        num_blocks: int | Sequence[int] = 1,
        num_heads: int | Sequence[int] = 4,
        reduce_size: int = 8,
        projection: str = "interp",
        rel_pos: bool = True,
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
    ) -> None:
        super().__init__()
        check_planes(spatial_dims)
        check_positive(in_channels=in_channels)
        if feature_size < 1 or feature_size % GROUPS:
            raise ValueError(f"feature_size is {feature_size}; expected a multiple of {GROUPS}.")
        if len(block_units) != LEVELS - 1 or min(block_units) < 1:
            raise ValueError(f"block_units is {list(block_units)}; expected three numbers of at least 1.")
        options = AttentionOptions(
            reduce_size=reduce_size, projection=projection, rel_pos=rel_pos, attn_drop=attn_drop, proj_drop=proj_drop
        )
        attention = check_levels("attention_levels", attention_levels, 0, LEVELS - 1)
        blocks = per_level("num_blocks", num_blocks, LEVELS)
        heads = per_level("num_heads", num_heads, LEVELS)
        self.in_channels = in_channels
        self.channels = (feature_size, *(feature_size * 4 * 2**i for i in range(LEVELS - 1)))
        self.strides = tuple((2 ** (level + 1),) * 2 for level in range(LEVELS))
        self.divisor = (math.lcm(16, *(2 ** (i + 1) * reduce_size for i in attention if rel_pos)),) * 2
        check_heads(heads, self.channels, attention)
        inputs = 3 if in_channels == 1 else in_channels
        conv = StandardizedConv2d(inputs, feature_size, kernel_size=7, stride=2, padding=3, bias=False)
        norm = nn.GroupNorm(GROUPS, feature_size, eps=1e-6)
        self.root = nn.Sequential(OrderedDict(conv=conv, gn=norm, relu=nn.ReLU(inplace=True)))

        def stage(index: int) -> nn.Sequential:
            hidden = feature_size * 2**index
            first = Bottleneck(self.channels[index], hidden, stride=1 if index == 0 else 2)
            return nn.Sequential(first, *(Bottleneck(4 * hidden, hidden) for _ in range(block_units[index] - 1)))

        self.stages = nn.ModuleList(stage(index) for index in range(LEVELS - 1))
        self.least_batch = least_batch(self.stages[-1])
        self.attention = nn.ModuleList(
            nn.Sequential(
                *(
                    AttentionBlock(width, heads[level], options)
                    for _ in range(blocks[level] if level in attention else 0)
                )
            )
            for level, width in enumerate(self.channels)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, H, W)`, where `in_channels` is 3 also `(B, 1, H, W)`, both axes divisible by
                `divisor`; in batches of one, at least one of them twice as large as 16.

        Returns:
            Features `(B, channels[i], H / 2**(i + 1), W / 2**(i + 1))`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            self._check_image(x)
        finest = self.root(grey_or_colour(x, self.root.conv.in_channels))
        x = self.stages[0](F.max_pool2d(finest, kernel_size=3, stride=2))  # one row and column short
        features = [finest, F.pad(x, (0, 1, 0, 1))]
        for stage in self.stages[1:]:
            x = stage(x)
            features.append(x)
        return [attention(feature) for attention, feature in zip(self.attention, features, strict=True)]

    def _check_image(self, x: Tensor) -> None:
        check_image(grey_or_colour(x, self.in_channels), self.in_channels, self.divisor)
        stride = self.strides[-1]
        coarsest = [n // s for n, s in zip(x.shape[2:], stride, strict=True)]
        check_not_single(coarsest, stride, batch=len(x), least_batch=self.least_batch)


class ResNetUNetDecoder(nn.Module):
    """Convolutional decoder of ResNet50-UNet: one residual block per level, logits from the upsampled finest map.

    Args:
        spatial_dims: 2.
        channels: channels of each feature, finest first.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis; None: 2, 4, 8, ...

    Attributes:
        deep_supervision: False; the only head is at full resolution.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Gao et al., "UTNet", arXiv:2107.00781, section 3 (its baseline ResNet50-UNet).

    Example:
        >>> import torch
        >>> from scripts.networks import ResNetUNetDecoder
        >>> decoder = ResNetUNetDecoder(channels=[4, 8], out_channels=3)
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8)])]
        [(1, 3, 32, 32)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int],
        out_channels: int,
        strides: Sequence[int | Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        check_planes(spatial_dims)
        check_channels(channels)
        check_positive(out_channels=out_channels)
        strides = [2 ** (level + 1) for level in range(len(channels))] if strides is None else strides
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        self.deep_supervision = False
        self.ups = nn.ModuleList(
            ConvUp(coarse, fine, blocks=1) for fine, coarse in zip(channels, channels[1:], strict=False)
        )
        self.head = nn.Conv2d(channels[0], out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], H / strides[i], W / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, H, W)`, the only entry of the list.

        Raises:
            ValueError: if the number of features is wrong.
        """
        if not torch.jit.is_tracing():
            check_count(features, self.channels)
        x = features[-1]
        for up, skip in zip(reversed(self.ups), reversed(features[:-1]), strict=True):
            x = up(x, skip)
        size = [n * stride for n, stride in zip(x.shape[2:], self.strides[0], strict=True)]
        return [self.head(resize(x, size))]
