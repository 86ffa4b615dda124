"""UTNet's efficient attention: every pixel asks, a small grid of keys and values answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample `(B, C, h, w)` to `(B, C, *size)` bilinearly, corners on corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


PROJECTIONS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "interp": resize,
    "maxpool": F.adaptive_max_pool2d,
}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What all attention blocks of a network have in common.

    Args:
        reduce_size: side of the grid of keys and values, at least 1.
        projection: how they get there: "interp" (bilinear interpolation) or "maxpool" (adaptive max-pooling).
        rel_pos: add a learned bias for the position of a pixel relative to a key.
        attn_drop: dropout of the attention weights, in [0, 1).
        proj_drop: dropout of the output, in [0, 1).

    Raises:
        ValueError: if an option is out of range.
    """

    reduce_size: int = 8
    projection: str = "interp"
    rel_pos: bool = True
    attn_drop: float = 0.1
    proj_drop: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        if self.reduce_size < 1:
            raise ValueError(f"reduce_size is {self.reduce_size}; expected at least 1.")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection is {self.projection!r}; expected one of {list(PROJECTIONS)}.")
        for name in ("attn_drop", "proj_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability in [0, 1).")


class AttentionBlock(nn.Module):
    """Attention and a pointwise layer, each pre-activated and residual.

    Args:
        channels: channels of the map.
        heads: attention heads; each has `channels // heads` channels.
        options: of the attention.

    References:
        Gao et al., "UTNet: A Hybrid Transformer Architecture for Medical Image Segmentation", MICCAI 2021,
        arXiv:2107.00781, section 2.3 and figure 1(b).
    """

    def __init__(self, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.attn = SelfAttention(channels, heads, options)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.mlp = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to the same shape."""
        x = x + self.attn(self.bn1(x))
        return x + self.mlp(self.relu(self.bn2(x)))


class AttentionUpsampling(nn.Module):
    """Attention that upsamples: the pixels of the finer map ask, the coarser map answers.

    Args:
        coarse_channels: channels of the coarser map.
        fine_channels: channels of the finer map, and of the output.
        heads: attention heads; each has `fine_channels // heads` channels.
        options: of the attention.

    References:
        Gao et al., "UTNet", arXiv:2107.00781, section 2.3 and figure 1(c).
    """

    def __init__(self, coarse_channels: int, fine_channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.bn_l = nn.BatchNorm2d(coarse_channels)
        self.bn_h = nn.BatchNorm2d(fine_channels)
        self.conv_ch = nn.Conv2d(coarse_channels, fine_channels, kernel_size=1)
        self.attn = CrossAttention(coarse_channels, fine_channels, heads, options)
        self.bn2 = nn.BatchNorm2d(fine_channels)
        self.relu = nn.ReLU(inplace=True)
        self.mlp = nn.Conv2d(fine_channels, fine_channels, kernel_size=1, bias=False)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Map `(B, coarse_channels, h, w)` and `(B, fine_channels, H, W)` to `(B, fine_channels, H, W)`."""
        x = resize(self.conv_ch(coarse), fine.shape[2:])
        x = x + self.attn(self.bn_h(fine), self.bn_l(coarse))
        return x + self.mlp(self.relu(self.bn2(x)))


class EfficientAttention(nn.Module):
    """Multi-head attention whose keys and values are first reduced to a small grid: linear in the number of pixels.

    Heads are interleaved over the channels, channel c belonging to head c % heads, and the position bias is scaled
    together with the product of query and key. Both are as in the authors' code, whose weights need it so.

    Args:
        channels: channels of the output; where `heads` does not divide them, the remainder is left out inside.
        heads: number of heads, at most `channels`.
        options: of the attention.

    References:
        Gao et al., "UTNet", arXiv:2107.00781, section 2.2, equations 3 and 4.
    """

    def __init__(self, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.heads = heads
        self.head_channels = channels // heads
        self.inner_channels = self.head_channels * heads
        self.reduce_size = options.reduce_size
        self.project = PROJECTIONS[options.projection]
        self.position = RelativePositionBias(heads, options.reduce_size) if options.rel_pos else None
        self.attn_drop = nn.Dropout(options.attn_drop)
        self.to_out = separable_conv(self.inner_channels, channels)
        self.proj_drop = nn.Dropout(options.proj_drop)

    def attend(self, queries: Tensor, keys_values: Tensor) -> Tensor:
        """Attention of pixels over a reduced map.

        Args:
            queries: `(B, inner_channels, H, W)`; with positions, H and W are divisible by `reduce_size`.
            keys_values: `(B, 2 * inner_channels, h, w)`, of any size.

        Returns:
            `(B, channels, H, W)`.
        """
        spatial, r = queries.shape[2:], self.reduce_size
        k, v = self.project(keys_values, (r, r)).chunk(2, dim=1)  # each (B, inner_channels, r, r)
        q, k, v = self._split_heads(queries), self._split_heads(k), self._split_heads(v)
        bias = None if self.position is None else self.position()
        attend = fused_attention if q.is_cuda else plain_attention
        x = attend(q, k, v, bias, spatial, self.attn_drop.p if self.attn_drop.training else 0.0)
        x = x.permute(0, 3, 1, 2).reshape(-1, self.inner_channels, *spatial)  # (B, inner_channels, H, W)
        return self.proj_drop(self.to_out(x))

    def _split_heads(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.head_channels, self.heads)).flatten(3)  # (B, head_channels, heads, H * W)
        return x.permute(0, 2, 3, 1)  # (B, heads, H * W, head_channels)


class SelfAttention(EfficientAttention):
    """Efficient attention of a map over itself; arguments as for `EfficientAttention`."""

    def __init__(self, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__(channels, heads, options)
        self.to_qkv = separable_conv(channels, 3 * self.inner_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to the same shape."""
        queries, keys_values = self.to_qkv(x).split((self.inner_channels, 2 * self.inner_channels), dim=1)
        return self.attend(queries, keys_values)


class CrossAttention(EfficientAttention):
    """Efficient attention of a map of `channels` over another one of `source_channels`."""

    def __init__(self, source_channels: int, channels: int, heads: int, options: AttentionOptions) -> None:
        super().__init__(channels, heads, options)
        self.to_kv = separable_conv(source_channels, 2 * self.inner_channels)
        self.to_q = separable_conv(channels, self.inner_channels)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` and `(B, source_channels, h, w)` to `(B, channels, H, W)`."""
        return self.attend(self.to_q(x), self.to_kv(source))


class RelativePositionBias(nn.Module):
    """Learned attention bias for each offset between two cells of a grid, for each head.

    All pixels of the image that fall into one cell of the grid share its bias.

    Args:
        heads: number of heads.
        size: side of the grid.
    """

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(0.02 * torch.randn((2 * size - 1) ** 2, heads))
        self.register_buffer("index", position_index(size), persistent=False)

    def forward(self) -> Tensor:
        """Bias of each cell (rows, columns) for each key, `(heads, size, size, size * size)`."""
        return self.table[self.index].permute(2, 0, 1).unflatten(1, (self.size, self.size))


def position_index(size: int) -> Tensor:
    """Row of the bias table for each pair of cells of a grid, `(size**2, size**2)`."""
    axis = torch.arange(size)
    rows, columns = axis.repeat_interleave(size), axis.repeat(size)
    return (rows[:, None] - rows + size - 1) * (2 * size - 1) + columns[:, None] - columns + size - 1


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, spatial: Sequence[int], dropout: float
) -> Tensor:
    """Attention written out: on CPUs as fast as the fused one, since the bias need not be spread over the pixels.

    The order of the operations is the authors': deep networks of random weights amplify a difference in rounding.

    Args:
        q: queries `(B, heads, H * W, d)`.
        k: keys `(B, heads, r * r, d)`.
        v: values `(B, heads, r * r, d)`.
        bias: `(heads, r, r, r * r)` from `RelativePositionBias`, or None.
        spatial: H and W.
        dropout: of the attention weights.

    Returns:
        `(B, heads, H * W, d)`.
    """
    scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2)  # (B, heads, H * W, r * r)
    if bias is None:
        scores = scores.mul_(scale)
    else:
        cells = scores.unflatten(2, _pixels_by_cell(bias, spatial))  # (B, heads, r, H / r, r, W / r, r * r)
        cells = (cells + bias[:, :, None, :, None]).mul_(scale)
        scores = cells.flatten(2, 5)  # (B, heads, H * W, r * r)
    return F.dropout(scores.softmax(-1), dropout) @ v


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, spatial: Sequence[int], dropout: float
) -> Tensor:
    """Attention by torch's fused kernel; arguments and result as for `plain_attention`."""
    scale, mask = q.shape[-1] ** -0.5, None
    if bias is not None:
        heads, keys = bias.shape[0], bias.shape[-1]
        mask = (scale * bias)[:, :, None, :, None].expand(heads, *_pixels_by_cell(bias, spatial), keys)
        mask = mask.reshape(1, heads, -1, keys)  # (1, heads, H * W, r * r)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _pixels_by_cell(bias: Tensor, spatial: Sequence[int]) -> tuple[int, int, int, int]:
    r, (height, width) = bias.shape[1], spatial
    return r, height // r, r, width // r


def separable_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Depthwise 3x3 convolution and pointwise one, without biases."""
    depthwise = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def per_level(name: str, value: int | Sequence[int], levels: int) -> list[int]:
    """Expand a positive number to one per level, or check that a list has one per level."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels or min(values) < 1:
        raise ValueError(f"{name} is {value}; expected a number of at least 1, or {levels} (one per level).")
    return values


def check_levels(name: str, values: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Check that a list names levels from `first` to `last`, 0 being the finest."""
    if not set(values) <= set(range(first, last + 1)):
        raise ValueError(f"{name} is {list(values)}; expected levels from {first} to {last} (0 is the finest).")
    return tuple(values)


def check_heads(num_heads: Sequence[int], channels: Sequence[int], attention_levels: Sequence[int]) -> None:
    """Check that every head of a level with attention has a channel at least."""
    for level in attention_levels:
        if num_heads[level] > channels[level]:
            raise ValueError(
                f"num_heads is {list(num_heads)}; level {level} has {channels[level]} channels, fewer than "
                f"{num_heads[level]} heads."
            )
