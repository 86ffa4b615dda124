"""UTNet: a U-Net of pre-activation residual blocks with efficient attention in encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .levels import check_channels, check_count, check_image, check_planes, check_positive, level_strides
from .utnet_attention import AttentionBlock, AttentionOptions, check_heads, check_levels, per_level, resize
from .utnet_blocks import AttentionUp, ConvUp, ResidualBlock

LEVELS = 5


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
        rel_pos: learned relative positions; each axis of the map of a level with attention must then be divisible by r.
        attn_drop: dropout of the attention weights, in [0, 1).
        proj_drop: dropout of the output of the attention, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: images whose axes are divisible by it always fit. Others may, where `reduce_size` divides each map with
            positions; they need a decoder that resizes to the skip, as UTNet's does.

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
        check_planes(spatial_dims)
        check_positive(in_channels=in_channels, feature_size=feature_size)
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
        self.strided = strided
        self.divisors = {level: reduce_size for level in attention if rel_pos}  # of the maps
        self.divisor = (math.lcm(2 ** (LEVELS - 1), *(2**i * r for i, r in self.divisors.items())),) * 2
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
            x: image `(B, in_channels, H, W)`, both axes best divisible by `divisor`.

        Returns:
            Features `(B, channels[i], H / 2**i, W / 2**i)`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            self._check_image(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def _check_image(self, x: Tensor) -> None:
        check_image(x, self.in_channels, (1, 1))
        for size in x.shape[2:]:
            for level in range(LEVELS):
                if level:
                    size = (size + 1) // 2 if level in self.strided else size // 2
                if size < 1 or size % self.divisors.get(level, 1):
                    raise ValueError(
                        f"image has spatial size {tuple(x.shape[2:])}; each axis must be divisible by {self.divisor}. "
                        "Pad the image or choose another patch size, a smaller reduce_size or fewer levels with "
                        "attention."
                    )


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
        check_planes(spatial_dims)
        check_channels(channels)
        check_positive(out_channels=out_channels)
        options = AttentionOptions(
            reduce_size=reduce_size, projection=projection, rel_pos=rel_pos, attn_drop=attn_drop, proj_drop=proj_drop
        )
        coarsest = len(channels) - 1
        levels = range(1, coarsest) if attention_levels is None else attention_levels
        attention = [i for i in check_levels("attention_levels", levels, 0, coarsest) if i < coarsest]
        heads = per_level("num_heads", num_heads, coarsest)
        check_heads(heads, channels, attention)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), 2)
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
