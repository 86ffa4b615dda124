"""Swin-Unet: a U-Net of windowed attention alone, whose levels merge patches on the way down and expand them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .levels import (
    check_channels,
    check_count,
    check_fixed_image,
    check_planes,
    check_positive,
    fixed_size,
    grey_or_colour,
    level_strides,
    steps,
)
from .swin_unet_blocks import PatchExpanding, PatchMerging, SwinOptions, SwinStage, window_side


class SwinUNetEncoder(nn.Module):
    """Swin-Unet's encoder: each level's tokens before its attention are the skip, the last level's normalised ones the
    bottleneck.

    Args:
        spatial_dims: 2.
        in_channels: channels of the image. A single one is repeated to the three that pretrained weights expect; an
            encoder for three is also given images of one.
        img_size: size of every image, one number or one per axis, such that windows tile every level.
        feature_size: width C of the finest level; each level is twice as wide as the one before.
        depths: number of blocks of each level, finest first.
        num_heads: attention heads of each level; must divide its width.
        patch_size: side of a token of the finest level in pixels.
        patch_norm: layer normalisation of the patch embedding.
        absolute_positions: learned embeddings of the position in the image, added to the finest level.
        window_size, mlp_ratio, qkv_bias, qk_scale, drop_rate, drop_path_rate, use_checkpoint: see `SwinOptions`;
            `drop_rate` also applies to the patch embedding.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", ECCV Workshops 2022,
        arXiv:2105.05537, sections 3.1 to 3.3.

    Example:
        >>> import torch
        >>> from scripts.networks import SwinUNetEncoder
        >>> encoder = SwinUNetEncoder(in_channels=1, img_size=56, feature_size=24, depths=[2, 2], num_heads=[3, 6])
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 56, 56))]
        [(24, 14, 14), (48, 7, 7)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int,
        img_size: int | Sequence[int],
        feature_size: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_size: int = 4,
        patch_norm: bool = True,
        absolute_positions: bool = False,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_planes(spatial_dims)
        check_positive(in_channels=in_channels, feature_size=feature_size, patch_size=patch_size)
        options = SwinOptions(
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            use_checkpoint=use_checkpoint,
        )
        self.in_channels = in_channels
        self.channels = tuple(feature_size * 2**level for level in range(len(depths)))
        self.strides = tuple((patch_size * 2**level,) * 2 for level in range(len(depths)))
        _check_blocks(self.channels, depths, num_heads)
        self.divisor = self.strides[-1]
        self.img_size = fixed_size(img_size, self.divisor)
        resolutions = _resolutions(self.img_size, self.strides, window_size)
        self.image_channels = 3 if in_channels == 1 else in_channels
        self.embedding = nn.Conv2d(self.image_channels, feature_size, kernel_size=patch_size, stride=patch_size)
        self.embedding_norm = nn.LayerNorm(feature_size) if patch_norm else nn.Identity()
        self.positions = None
        if absolute_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(1, resolutions[0][0] * resolutions[0][1], feature_size))
        self.dropout = nn.Dropout(drop_rate)
        self.stages = nn.ModuleList(
            SwinStage(*level, options)
            for level in zip(self.channels, num_heads, resolutions, _rates(depths, drop_path_rate), strict=True)
        )
        self.merges = nn.ModuleList(
            PatchMerging(width, out_width) for width, out_width in zip(self.channels, self.channels[1:], strict=False)
        )
        self.norm = nn.LayerNorm(self.channels[-1])
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *img_size)`; where `in_channels` is 3, also `(B, 1, *img_size)`.

        Returns:
            Features `(B, channels[i], *img_size / strides[i])`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_fixed_image(grey_or_colour(x, self.in_channels), self.in_channels, self.divisor, self.img_size)
        x = self.embedding(x.expand(-1, self.image_channels, *self.img_size))
        x = self.embedding_norm(_tokens(x))
        if self.positions is not None:
            x = x + self.positions.unflatten(1, x.shape[1:3])  # (1, H, W, C)
        x = self.dropout(x)
        features = []
        for stage, merge in zip(self.stages, self.merges, strict=False):
            features.append(_map(x))
            x = merge(stage(x))
        return [*features, _map(self.norm(self.stages[-1](x)))]


class SwinUNetDecoder(nn.Module):
    """Swin-Unet's decoder: tokens expand, join those of the skip, and pass windowed attention.

    Args:
        spatial_dims: 2.
        channels: channels of each feature, finest first.
        out_channels: channels of the logits.
        img_size: size of every image, one number or one per axis, such that windows tile every level.
        strides: stride of each feature, as one number or one per axis; None: 4, 8, 16, ...
        depths: number of blocks of each level, finest first. There are none at the coarsest level, whose number only
            counts for the growth of `drop_path_rate`, so that one list serves encoder and decoder.
        num_heads: attention heads of each level, finest first; must divide its width. That of the coarsest level is
            not used.
        window_size, mlp_ratio, qkv_bias, qk_scale, drop_rate, drop_path_rate, use_checkpoint: see `SwinOptions`.

    Attributes:
        deep_supervision: False; the only head is at full resolution.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Cao et al., "Swin-Unet", arXiv:2105.05537, sections 3.4 and 3.5.

    Example:
        >>> import torch
        >>> from scripts.networks import SwinUNetDecoder
        >>> decoder = SwinUNetDecoder(channels=[12, 24], out_channels=3, img_size=56, depths=[2, 2], num_heads=[3, 6])
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 12, 14, 14), torch.zeros(1, 24, 7, 7)])]
        [(1, 3, 56, 56)]
    """

    deep_supervision = False

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int],
        out_channels: int,
        img_size: int | Sequence[int],
        strides: Sequence[int | Sequence[int]] | None = None,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_planes(spatial_dims)
        check_channels(channels)
        check_positive(out_channels=out_channels)
        _check_blocks(channels, depths, num_heads)
        options = SwinOptions(
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            use_checkpoint=use_checkpoint,
        )
        self.channels = tuple(channels)
        strides = [4 * 2**level for level in range(len(channels))] if strides is None else strides
        self.strides = level_strides(strides, len(channels), spatial_dims)
        size = fixed_size(img_size, self.strides[-1])
        self.resolutions = _resolutions(size, self.strides, window_size)
        self.expands = nn.ModuleList(
            PatchExpanding(*widths) for widths in zip(channels[1:], channels, steps(self.strides), strict=False)
        )
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for width in channels[:-1])
        levels = list(zip(channels, num_heads, self.resolutions, _rates(depths, drop_path_rate), strict=True))
        self.stages = nn.ModuleList(SwinStage(*level, options) for level in levels[:-1])
        self.norm = nn.LayerNorm(channels[0])
        self.final = PatchExpanding(channels[0], channels[0], self.strides[0])
        self.head = nn.Conv2d(channels[0], out_channels, kernel_size=1, bias=False)
        self.apply(_initialise)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *img_size / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *img_size)`, the only entry of the list.

        Raises:
            ValueError: if the number of features is wrong, or their size.
        """
        if not torch.jit.is_tracing():
            self._check(features)
        x = _tokens(features[-1])
        for level in reversed(range(len(self.stages))):
            x = torch.cat((self.expands[level](x), _tokens(features[level])), dim=-1)
            x = self.stages[level](self.joins[level](x))
        return [self.head(_map(self.final(self.norm(x))))]

    def _check(self, features: list[Tensor]) -> None:
        check_count(features, self.channels)
        sizes = tuple(tuple(feature.shape[2:]) for feature in features)
        if sizes != self.resolutions:
            raise ValueError(f"features have spatial sizes {sizes}; expected {self.resolutions}, made for img_size.")


def _resolutions(
    img_size: Sequence[int], strides: Sequence[Sequence[int]], window_size: int
) -> tuple[tuple[int, ...], ...]:
    """Tokens of each level along each axis, which windows must tile."""
    resolutions = tuple(tuple(n // s for n, s in zip(img_size, stride, strict=True)) for stride in strides)
    for resolution, stride in zip(resolutions, strides, strict=True):
        side = window_side(resolution, window_size)
        if any(n % side for n in resolution):
            raise ValueError(
                f"img_size is {tuple(img_size)}: its {resolution} tokens at stride {tuple(stride)} are not divisible "
                f"into windows of {side}. Set patch_size to multiples of {[side * s for s in stride]}, or another "
                "window_size."
            )
    return resolutions


def _check_blocks(channels: Sequence[int], depths: Sequence[int], num_heads: Sequence[int]) -> None:
    if not depths or len(depths) != len(channels) or min(depths) < 1:
        raise ValueError(f"depths is {list(depths)}; expected at least one block for each of {len(channels)} levels.")
    if len(num_heads) != len(channels) or any(n < 1 or c % n for c, n in zip(channels, num_heads, strict=True)):
        raise ValueError(
            f"num_heads is {list(num_heads)}; expected one number per level that divides its width, {list(channels)}."
        )


def _rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Stochastic depth of each block of each level, growing linearly over all of them."""
    count = max(sum(depths) - 1, 1)
    starts = [sum(depths[:level]) for level in range(len(depths))]
    return [[last * (start + i) / count for i in range(n)] for start, n in zip(starts, depths, strict=True)]


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)


def _map(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


def _initialise(module: nn.Module) -> None:
    """Start linear layers as the authors do; what they load their pretrained weights into."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
