"""nnFormer: an encoder of window attention between convolutions, and a decoder that attends to its skips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    WindowAttention,
    get_window_size,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional as F

from .levels import check_count, check_image, level_strides
from .mednext_blocks import ChannelNorm
from .res_unet import check_levels, halvings
from .ux_net import drop_rates

PATCH = {1: (1, 1), 2: (2, 1), 4: (2, 2)}  # strides of the two convolutions that make a token of so many voxels


class NNFormerEncoder(nn.Module):
    """nnFormer's encoder: convolutions make tokens, local volume-based self-attention alternates with shifted one.

    A stage is MONAI's `BasicLayer`; where its window covers the whole map, the attention is global. With
    `NNFormerDecoder`, one input channel, strides of 2, 4, 4 times 1, 2, 4, 8, deep supervision and 14 classes
    (Synapse) it has 150.05 M parameters, layer for layer as the authors' code; the paper's 150.5 M are 0.3 % more.

    All lists name one entry per level, finest first.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of each feature.
        strides: stride of each feature, as one number or one per axis; the first is 1, 2 or 4 on each axis.
        depths: number of attention blocks of each level.
        num_heads: attention heads of each level; must divide its channels.
        window_size: side of the attention window of each level in tokens.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023,
        arXiv:2109.03201, sections 3.2 and 3.3.

    Example:
        >>> import torch
        >>> from scripts.networks import NNFormerEncoder
        >>> encoder = NNFormerEncoder(
        ...     spatial_dims=2, in_channels=1, channels=[8, 16], strides=[4, 8], depths=[2, 2], num_heads=[2, 2],
        ...     window_size=[4, 4],
        ... )
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 64, 64))]
        [(1, 8, 16, 16), (1, 16, 8, 8)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        channels: Sequence[int] = (192, 384, 768, 1536),
        strides: Sequence[int | Sequence[int]] = (4, 8, 16, 32),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_size: Sequence[int] = (4, 4, 8, 4),
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, in_channels=in_channels)
        _check_attention(channels, drop_path_rate, depths=depths, num_heads=num_heads, window_size=window_size)
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        self.divisor = self.strides[-1]
        if any(side not in PATCH for side in self.strides[0]):
            raise ValueError(f"strides[0] is {self.strides[0]}; expected 1, 2 or 4 on each axis: the side of a token.")
        conv, width = Conv[Conv.CONV, spatial_dims], channels[0]
        first, second = zip(*(PATCH[side] for side in self.strides[0]), strict=True)
        tokens = nn.Sequential(
            *_activated(conv(in_channels, width // 2, kernel_size=3, stride=first, padding=1)),
            *_activated(conv(width // 2, width // 2, kernel_size=3, padding=1)),
            *_activated(conv(width // 2, width, kernel_size=3, stride=second, padding=1)),
            conv(width, width, kernel_size=3, padding=1),
            ChannelNorm(width),
        )
        self.downs = nn.ModuleList([tokens])
        for fine, coarse, step in zip(channels, channels[1:], halvings(self.strides), strict=False):
            down = conv(fine, coarse, kernel_size=3, stride=step, padding=1)
            self.downs.append(nn.Sequential(nn.GELU(), ChannelNorm(fine), down))
        rates = _drop_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList(
            BasicLayer(width, depth, heads, (side,) * spatial_dims, drop_path=rate, qkv_bias=True)
            for width, depth, heads, side, rate in zip(channels, depths, num_heads, window_size, rates, strict=True)
        )
        self.norms = nn.ModuleList(map(ChannelNorm, channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *spatial)`, every axis divisible by `divisor`.

        Returns:
            Features `(B, channels[i], *spatial / strides[i])`, finest first, normalised over channels.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
        features = []
        for down, stage, norm in zip(self.downs, self.stages, self.norms, strict=True):
            x = stage(down(x))
            features.append(norm(x))
        return features


class SkipWindowAttention(WindowAttention):
    """Window attention in which the queries are a map as it is, and keys and values come from another one.

    Args:
        dim: channels of both maps.
        num_heads: attention heads.
        window_size: side of the window per axis.
    """

    def __init__(self, *, dim: int, num_heads: int, window_size: Sequence[int]) -> None:
        super().__init__(dim, num_heads, window_size, qkv_bias=True)
        self.qkv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Attend from the positions of windows `(B, N, C)` to those of the same windows of another map."""
        n = queries.shape[1]
        k, v = self.qkv(memory).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = queries.to(k.dtype).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        index = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].reshape(1, n, n, -1).permute(0, 3, 1, 2)  # (1, heads, N, N)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, N, C)


class SkipAttentionBlock(SwinTransformerBlock):
    """nnFormer's skip attention: the upsampled map asks the encoder's feature, window by window.

    Args:
        dim: channels of both maps.
        num_heads: attention heads.
        window_size: side of the window per axis.
        drop_path: probability that the block is skipped for a sample in training.

    References:
        Zhou et al., arXiv:2109.03201, section 3.4, equation 3.
    """

    def __init__(self, *, dim: int, num_heads: int, window_size: Sequence[int], drop_path: float = 0.0) -> None:
        super().__init__(dim, num_heads, window_size, shift_size=[0] * len(window_size), drop_path=drop_path)
        self.attn = SkipWindowAttention(dim=dim, num_heads=num_heads, window_size=window_size)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join the upsampled map and the skip, both `(B, C, *spatial)`."""
        x, skip = x.movedim(1, -1), skip.movedim(1, -1)  # (B, *spatial, C)
        batch, *spatial, width = x.shape
        window = get_window_size(spatial, self.window_size)
        missing = [(side - n % side) % side for n, side in zip(spatial, window, strict=True)]
        padding = [0, 0, *(side for n in reversed(missing) for side in (0, n))]  # last axis first, after its end
        queries, memory = (window_partition(F.pad(self.norm1(y), padding), window) for y in (x, skip))
        attended = self.attn(queries, memory).reshape(-1, *window, width)
        padded = [batch, *(n + more for n, more in zip(spatial, missing, strict=True))]
        attended = window_reverse(attended, window, padded)[(slice(None), *map(slice, spatial))]
        x = x + skip + self.drop_path(attended)
        return (x + self.forward_part2(x)).movedim(-1, 1)  # (B, C, *spatial)


class NNFormerDecoder(nn.Module):
    """nnFormer's decoder: transposed convolutions, skip attention, shifted window attention, expansion to voxels.

    All lists name one entry per level, finest first, as the encoder returns its features; `depths`, `num_heads` and
    `window_size` leave the coarsest level out.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis; each head enlarges its map by the first.
        depths: number of attention blocks of each level; the first of them is the skip attention.
        num_heads: attention heads of each level; must divide its channels.
        window_size: side of the attention window of each level in tokens.
        drop_path_rate: stochastic depth of the last block of the coarsest level, in [0, 1); it grows linearly from 0.
        deep_supervision: True has a head at every level but the coarsest, False at the finest one only.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Zhou et al., arXiv:2109.03201, section 3.4. The authors' table of position biases confuses some positions (a
        stride of 3w - 1 for (2w - 1)**2); this one does not.

    Example:
        >>> import torch
        >>> from scripts.networks import NNFormerDecoder
        >>> decoder = NNFormerDecoder(
        ...     spatial_dims=2, channels=[8, 16], out_channels=3, strides=[4, 8], depths=[2], num_heads=[2],
        ...     window_size=[4],
        ... )
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)])]
        [(1, 3, 64, 64)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (192, 384, 768, 1536),
        out_channels: int,
        strides: Sequence[int | Sequence[int]] = (4, 8, 16, 32),
        depths: Sequence[int] = (2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24),
        window_size: Sequence[int] = (4, 4, 8),
        drop_path_rate: float = 0.2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, out_channels=out_channels)
        _check_attention(channels[:-1], drop_path_rate, depths=depths, num_heads=num_heads, window_size=window_size)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        self.deep_supervision = deep_supervision
        transposed = Conv[Conv.CONVTRANS, spatial_dims]
        self.ups = nn.ModuleList(
            nn.Sequential(ChannelNorm(coarse), transposed(coarse, fine, kernel_size=step, stride=step))
            for fine, coarse, step in zip(channels, channels[1:], halvings(self.strides), strict=False)
        )
        self.skips, self.stages = nn.ModuleList(), nn.ModuleList()
        rates = _drop_rates(drop_path_rate, depths[::-1])[::-1]
        for width, depth, heads, side, rate in zip(channels, depths, num_heads, window_size, rates, strict=False):
            window = (side,) * spatial_dims
            self.skips.append(SkipAttentionBlock(dim=width, num_heads=heads, window_size=window, drop_path=rate[0]))
            stage = BasicLayer(width, depth, heads, window, drop_path=rate, qkv_bias=True)
            stage.blocks = stage.blocks[1:]  # the skip attention stands for the first, so that a shifted one is next
            self.stages.append(stage)
        self.heads = nn.ModuleList(
            transposed(width, out_channels, kernel_size=self.strides[0], stride=self.strides[0])
            for width in (channels[:-1] if deep_supervision else channels[:1])
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial * strides[0] / strides[i])` of every head, finest first.

        Raises:
            ValueError: if the number of features is wrong.
        """
        check_count(features, self.channels)
        x = features[-1]
        maps = []
        for level in reversed(range(len(self.ups))):
            x = self.stages[level](self.skips[level](self.ups[level](x), features[level]))
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]  # coarser maps may have no head


def _activated(conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.GELU(), ChannelNorm(conv.out_channels)]


def _drop_rates(highest: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of stochastic depth of each level's blocks, which grow from 0."""
    rates = iter(drop_rates(highest, sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _check_attention(channels: Sequence[int], drop_path_rate: float, **per_level: Sequence[int]) -> None:
    for name, values in per_level.items():
        if len(values) != len(channels) or min(values) < 1:
            raise ValueError(f"{name} is {list(values)}; expected {len(channels)} numbers from 1 on, one per level.")
    for level, (width, heads) in enumerate(zip(channels, per_level["num_heads"], strict=True)):
        if width % heads:
            raise ValueError(f"num_heads[{level}] is {heads}; it must divide the channels of that level, {width}.")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate is {drop_path_rate}; expected a probability in [0, 1).")
