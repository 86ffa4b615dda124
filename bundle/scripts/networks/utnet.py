"""UTNet: a U-Net of pre-activation residual blocks with efficient attention in encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .utnet_attention import (
    AttentionBlock,
    AttentionOptions,
    AttentionUpsampling,
    check_heads,
    check_levels,
    per_level,
    resize,
)

LEVELS = 5


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a batch normalisation and a ReLU, around a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution; where it or the channels change, the shortcut is a pre-activated 1x1 one.

    References:
        He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, figure 4(e).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), projection)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, out_channels, H / stride, W / stride)`."""
        out = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(out))) + self.shortcut(x)


class ConvUp(nn.Module):
    """Up block of convolutions: the coarser map, upsampled, is joined to the skip.

    Args:
        coarse_channels: channels of the coarser map.
        channels: channels of the skip, and of the output.
        blocks: number of residual blocks, at least 1.
    """

    def __init__(self, coarse_channels: int, channels: int, blocks: int = 2) -> None:
        super().__init__()
        self.conv_ch = nn.Conv2d(coarse_channels, channels, kernel_size=1)
        self.blocks = nn.Sequential(
            ResidualBlock(2 * channels, channels), *(ResidualBlock(channels, channels) for _ in range(blocks - 1))
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Map `(B, coarse_channels, h, w)` and `(B, channels, H, W)` to `(B, channels, H, W)`."""
        x = self.conv_ch(resize(coarse, skip.shape[2:]))
        return self.blocks(torch.cat((skip, x), dim=1))


class AttentionUp(nn.Module):
    """Up block of attention: the skip asks the coarser map, and the answer is joined to the skip.

    Args:
        coarse_channels: channels of the coarser map.
        channels: channels of the skip, and of the output.
        heads: attention heads.
        options: of the attention.
    """

    def __init__(self, coarse_channels: int, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.attn_decoder = AttentionUpsampling(coarse_channels, channels, heads, options)
        self.blocks = nn.Sequential(ResidualBlock(2 * channels, channels))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Map `(B, coarse_channels, h, w)` and `(B, channels, H, W)` to `(B, channels, H, W)`."""
        x = self.attn_decoder(coarse, skip)
        return self.blocks(torch.cat((x, skip), dim=1))


class UTNetEncoder(nn.Module):
    """UTNet's encoder: five levels of residual blocks, with attention blocks at the levels that are named.

    Args:
        spatial_dims: 2; UTNet's positions are those of an image plane.
        in_channels: channels of the image.
        feature_size: channels of the finest level; each level has twice those of the one before.
        attention_levels: levels (0 is the finest, 4 the coarsest) where attention follows the first residual block; at
            the others a second residual block does.
        num_blocks: attention blocks of each level that has attention; one number or one per level.
        num_heads: attention heads; one number or one per level, at most the channels of the level.
        strided_levels: levels (1 to 4) entered by a strided convolution, not by max-pooling.
        reduce_size: side r of the grid to which keys and values are reduced.
        projection: how they are reduced, "interp" or "maxpool".
        rel_pos: learned relative positions; the image must then be divisible by 2**level * r at levels with attention.
        attn_drop: dropout of the attention weights, in [0, 1).
        proj_drop: dropout of the output of the attention, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Gao et al., "UTNet: A Hybrid Transformer Architecture for Medical Image Segmentation", MICCAI 2021,
        arXiv:2107.00781, section 2.3.

    Example:
        >>> import torch
        >>> from scripts.networks import UTNetEncoder
        >>> encoder = UTNetEncoder(in_channels=1, feature_size=8, attention_levels=[3, 4], reduce_size=2)
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 32, 64))]
        [(8, 32, 64), (16, 16, 32), (32, 8, 16), (64, 4, 8), (128, 2, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int,
        feature_size: int = 32,
        attention_levels: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int | Sequence[int] = 1,
        num_heads: int | Sequence[int] = 4,
        strided_levels: Sequence[int] = (),
        reduce_size: int = 8,
        projection: str = "interp",
        rel_pos: bool = True,
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
    ) -> None:
        super().__init__()
        check_two_dimensional(spatial_dims)
        for name, n in (("in_channels", in_channels), ("feature_size", feature_size)):
            if n < 1:
                raise ValueError(f"{name} is {n}; expected at least 1.")
        options = AttentionOptions(
            reduce_size=reduce_size, projection=projection, rel_pos=rel_pos, attn_drop=attn_drop, proj_drop=proj_drop
        )
        attention = check_levels("attention_levels", attention_levels, 0, LEVELS - 1)
        strided = check_levels("strided_levels", strided_levels, 1, LEVELS - 1)
        blocks = per_level("num_blocks", num_blocks, LEVELS)
        heads = per_level("num_heads", num_heads, LEVELS)
        self.in_channels = in_channels
        self.channels = tuple(feature_size * 2**level for level in range(LEVELS))
        self.strides = tuple((2**level,) * 2 for level in range(LEVELS))
        self.divisor = (math.lcm(2 ** (LEVELS - 1), *(2**i * reduce_size for i in attention if rel_pos)),) * 2
        check_heads(heads, self.channels, attention)

        def stage(level: int) -> nn.Sequential:
            before, width = ((in_channels, *self.channels)[level], self.channels[level])
            pool = level > 0 and level not in strided
            parts: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
            parts.append(ResidualBlock(before, width, stride=2 if level in strided else 1))
            if level in attention:
                parts += [AttentionBlock(width, heads[level], options) for _ in range(blocks[level])]
            else:
                parts.append(ResidualBlock(width, width))
            return nn.Sequential(*parts)

        self.stages = nn.ModuleList(stage(level) for level in range(LEVELS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, H, W)`, both axes divisible by `divisor`.

        Returns:
            Features `(B, channels[i], H / 2**i, W / 2**i)`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class UTNetDecoder(nn.Module):
    """UTNet's decoder: up blocks of attention at the levels that are named, of convolutions at the others.

    All lists name one entry per level, finest first, as the encoder returns its features.

    Args:
        spatial_dims: 2.
        channels: channels of each feature.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis; None: 1, 2, 4, ...
        attention_levels: levels whose up block is one of attention; None: all but the finest, as in the paper. There is
            no up block at the coarsest level; naming it changes nothing, so that one list can serve the encoder too.
        num_heads: attention heads; one number or one per level but the coarsest, at most the channels of the level.
        reduce_size: side r of the grid to which keys and values are reduced.
        projection: how they are reduced, "interp" or "maxpool".
        rel_pos: learned relative positions; features at levels with attention must then be divisible by r.
        attn_drop: dropout of the attention weights, in [0, 1).
        proj_drop: dropout of the output of the attention, in [0, 1).
        deep_supervision: True has a head at every level but the coarsest, False at the finest one only.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Gao et al., "UTNet: A Hybrid Transformer Architecture for Medical Image Segmentation", MICCAI 2021,
        arXiv:2107.00781, section 2.3.

    Example:
        >>> import torch
        >>> from scripts.networks import UTNetDecoder
        >>> decoder = UTNetDecoder(channels=[4, 8, 16], out_channels=3, reduce_size=2, deep_supervision=True)
        >>> features = [torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)]
        >>> [tuple(y.shape) for y in decoder(features)]
        [(1, 3, 16, 16), (1, 3, 16, 16)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int],
        out_channels: int,
        strides: Sequence[int | Sequence[int]] | None = None,
        attention_levels: Sequence[int] | None = None,
        num_heads: int | Sequence[int] = 4,
        reduce_size: int = 8,
        projection: str = "interp",
        rel_pos: bool = True,
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_two_dimensional(spatial_dims)
        check_channels(channels, out_channels)
        options = AttentionOptions(
            reduce_size=reduce_size, projection=projection, rel_pos=rel_pos, attn_drop=attn_drop, proj_drop=proj_drop
        )
        coarsest = len(channels) - 1
        levels = range(1, coarsest) if attention_levels is None else attention_levels
        attention = [i for i in check_levels("attention_levels", levels, 0, coarsest) if i < coarsest]
        heads = per_level("num_heads", num_heads, coarsest)
        check_heads(heads, channels, attention)
        self.channels = tuple(channels)
        self.strides = per_axis_strides(strides, len(channels))
        self.deep_supervision = deep_supervision
        self.divisors = {level: reduce_size for level in attention if rel_pos}
        self.ups = nn.ModuleList(
            AttentionUp(channels[level + 1], channels[level], heads[level], options)
            if level in attention
            else ConvUp(channels[level + 1], channels[level])
            for level in range(coarsest)
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(channels[level], out_channels, kernel_size=1)
            for level in range(coarsest if deep_supervision else 1)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], H / strides[i], W / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, H, W)` of every head, finest first, each upsampled to the size of the image.

        Raises:
            ValueError: if the number of features is wrong, or one is not divisible by `reduce_size`.
        """
        if not torch.jit.is_tracing():
            check_count(features, self.channels)
            self._check_sizes(features)
        size = [n * stride for n, stride in zip(features[0].shape[2:], self.strides[0], strict=True)]
        x, logits = features[-1], []
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x, features[level])
            if level < len(self.heads):
                y = self.heads[level](x)
                logits.insert(0, y if self.strides[level] == (1, 1) else resize(y, size))
        return logits

    def _check_sizes(self, features: list[Tensor]) -> None:
        for level, divisor in self.divisors.items():
            spatial = tuple(features[level].shape[2:])
            if any(n % divisor for n in spatial):
                image = [divisor * stride for stride in self.strides[level]]
                raise ValueError(
                    f"feature {level} has spatial size {spatial}; its attention needs a multiple of reduce_size "
                    f"{divisor}: use images divisible by {image}, a smaller reduce_size or rel_pos False."
                )


def check_two_dimensional(spatial_dims: int) -> None:
    """Refuse anything but images of two axes."""
    if spatial_dims != 2:
        raise ValueError(f"spatial_dims is {spatial_dims}; this network is for planes: write 2, and 2D patches.")


def check_channels(channels: Sequence[int], out_channels: int) -> None:
    """Check the channels of a decoder's features and logits."""
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels is {list(channels)}; expected at least two levels of at least one channel.")
    if out_channels < 1:
        raise ValueError(f"out_channels is {out_channels}; expected at least 1.")


def check_count(features: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Check that there is a feature for every level."""
    if len(features) != len(channels):
        raise ValueError(f"got {len(features)} features; expected {len(channels)}, one per entry of channels.")


def check_image(x: Tensor, in_channels: int, divisor: Sequence[int]) -> None:
    """Check the shape of an image against what an encoder takes."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"image has shape {tuple(x.shape)}; expected (B, {in_channels}, H, W).")
    spatial = tuple(x.shape[2:])
    if any(n == 0 or n % d for n, d in zip(spatial, divisor, strict=True)):
        raise ValueError(
            f"image has spatial size {spatial}; each axis must be divisible by {tuple(divisor)}. Pad the image or "
            "choose another patch size, a smaller reduce_size or fewer levels with attention."
        )


def per_axis_strides(strides: Sequence[int | Sequence[int]] | None, levels: int) -> tuple[tuple[int, ...], ...]:
    """Stride of each level for both axes; None: 1, 2, 4, ..."""
    strides = [2**level for level in range(levels)] if strides is None else strides
    full = tuple((s, s) if isinstance(s, int) else tuple(s) for s in strides)
    if len(full) != levels or any(len(s) != 2 or min(s) < 1 for s in full):
        raise ValueError(
            f"strides is {strides}; expected {levels} entries (one per level), each a number or 2 of them."
        )
    return full
