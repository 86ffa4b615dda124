"""Swin-Unet's parts: shifted-window attention on fixed maps, and the layers that merge and expand patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.networks.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .transunet_blocks import hidden_layer
from .utnet_attention import RelativePositionBias

MASKED = -100.0  # what the authors add to the attention between tokens that are no neighbours


@dataclass(frozen=True, kw_only=True)
class SwinOptions:
    """What all blocks of a network have in common.

    Args:
        window_size: side of the attention window in tokens; a level with fewer tokens is one window.
        mlp_ratio: width of the hidden layer of each block as a multiple of the block's width.
        qkv_bias: a bias in the projection to query, key and value.
        qk_scale: factor of the attention's logits; None: one over the root of the width of a head.
        drop_rate: dropout of the projections and the hidden layers, in [0, 1).
        drop_path_rate: stochastic depth of the last block of the encoder, in [0, 1); it grows linearly from 0.
        use_checkpoint: recompute the blocks in the backward pass: less memory, more time.

    Raises:
        ValueError: if an option is out of range.
    """

    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.window_size < 1:
            raise ValueError(f"window_size is {self.window_size}; expected at least 1.")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; expected a positive number.")
        for name in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability in [0, 1).")


class WindowAttention(nn.Module):
    """Multi-head self-attention of the tokens of a window, with a learned bias for their relative position.

    Args:
        width: width C of the tokens.
        heads: number of heads; must divide `width`.
        side: side of the window in tokens.
        options: of the block.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, arXiv:2103.14030, equation 4.
    """

    def __init__(self, width: int, heads: int, side: int, options: SwinOptions) -> None:
        super().__init__()
        self.heads = heads
        self.scale = options.qk_scale or (width // heads) ** -0.5
        self.position = RelativePositionBias(heads, side)
        self.qkv = nn.Linear(width, 3 * width, bias=options.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(options.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map the tokens of all windows to the same shape.

        Args:
            x: tokens `(B * windows, N, C)`, the windows of an image together.
            mask: what is added between the tokens of each window `(windows, N, N)`; None: nothing.
        """
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B * windows, N, 3, heads, C / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B * windows, heads, N, C / heads) each
        bias = self.position().flatten(1, 2)[None]  # (1, heads, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)  # (B * windows, heads, N, N)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))  # (B * windows, N, C)


class SwinBlock(nn.Module):
    """Windowed attention and a hidden layer, each after a layer normalisation and residual.

    Args:
        width: width C of the tokens.
        heads: attention heads; must divide `width`.
        resolution: tokens along each axis; every image has as many.
        shifted: move the windows by half their side, so that neighbouring ones exchange information.
        drop_path: probability in [0, 1) that a branch is skipped for an image, in training.
        options: of all blocks.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, arXiv:2103.14030, equation 3 and figure 4.
    """

    def __init__(
        self, width: int, heads: int, resolution: Sequence[int], shifted: bool, drop_path: float, options: SwinOptions
    ) -> None:
        super().__init__()
        self.side = window_side(resolution, options.window_size)
        self.shift = self.side // 2 if shifted and self.side < min(resolution) else 0
        self.windows = tuple(n // self.side for n in resolution)
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.side, options)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = hidden_layer(width, int(width * options.mlp_ratio), options.drop_rate)
        mask = self._shift_mask() if self.shift else None
        self.register_buffer("attn_mask", mask)  # in the weights, since the authors' files have it

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, H, W, C)` to the same shape."""
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), dims=(1, 2)) if self.shift else self.norm1(x)
        y = self._join(self.attn(self._split(y), self.attn_mask))
        y = torch.roll(y, (self.shift, self.shift), dims=(1, 2)) if self.shift else y
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _split(self, x: Tensor) -> Tensor:
        rows, columns = self.windows
        x = x.unflatten(2, (columns, self.side)).unflatten(1, (rows, self.side)).transpose(2, 3)
        return x.flatten(3, 4).flatten(0, 2)  # (B, rows, columns, side, side, C) -> (B * windows, N, C)

    def _join(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.side, self.side)).unflatten(0, (-1, *self.windows)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)  # (B, rows, side, columns, side, C) -> (B, H, W, C)

    def _shift_mask(self) -> Tensor:
        """Mask between tokens that the shift has brought together from opposite borders, `(windows, N, N)`."""

        def region(windows: int) -> Tensor:
            n = windows * self.side
            position = torch.arange(n)
            return (position >= n - self.side).int() + (position >= n - self.shift).int()

        rows, columns = (region(n) for n in self.windows)
        regions = self._split((3 * rows[:, None] + columns)[None, :, :, None]).squeeze(2)  # (windows, N)
        apart = regions[:, :, None] != regions[:, None]
        return torch.zeros(apart.shape).masked_fill(apart, MASKED)


class SwinStage(nn.Sequential):
    """Blocks of one level, every other one with shifted windows.

    Args:
        width: width of the tokens.
        heads: attention heads; must divide `width`.
        resolution: tokens along each axis.
        drop_paths: stochastic depth of each block.
        options: of all blocks.
    """

    def __init__(
        self, width: int, heads: int, resolution: Sequence[int], drop_paths: Sequence[float], options: SwinOptions
    ) -> None:
        super().__init__(
            *(SwinBlock(width, heads, resolution, i % 2 == 1, rate, options) for i, rate in enumerate(drop_paths))
        )
        self.use_checkpoint = options.use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, H, W, C)` to the same shape."""
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint and self.training else block(x)
        return x


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of another width.

    Args:
        width: width C of the tokens.
        out_width: width of the merged tokens.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, arXiv:2103.14030, section 3.1.
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, H, W, C)` to `(B, H / 2, W / 2, out_width)`."""
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4 * C), the lower neighbour second
        return self.reduction(self.norm(x))


class PatchExpanding(nn.Module):
    """Each token becomes several of another width.

    Args:
        width: width C of the tokens.
        out_width: width of the new tokens.
        factors: how many there are along each axis.

    References:
        Cao et al., "Swin-Unet", arXiv:2105.05537, section 3.5.
    """

    def __init__(self, width: int, out_width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.expand = nn.Linear(width, factors[0] * factors[1] * out_width, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, H, W, C)` to `(B, H * factors[0], W * factors[1], out_width)`."""
        x = self.expand(x).unflatten(3, (*self.factors, -1))  # (B, H, W, *factors, out_width)
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))  # (B, H * f0, W * f1, out_width)


def window_side(resolution: Sequence[int], window_size: int) -> int:
    """Side of the windows on a map: smaller than `window_size` where the map is."""
    return min(window_size, *resolution)
