"""TransUNet: a transformer on the coarsest map of a convolutional encoder, and a cascaded upsampler as decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from .levels import (
    check_count,
    check_fixed_image,
    check_positive,
    check_rates,
    check_spatial_dims,
    fixed_size,
    grey_or_colour,
    level_strides,
)
from .transunet_blocks import EPS, TransformerBlock, UpBlock, convolution


class ImageEncoder(nn.Module):
    """An encoder without weights: the image is the only feature; for a transformer that sees patches of the image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.

    Attributes:
        channels: channels of the feature.
        strides: stride of the feature per axis.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from scripts.networks import ImageEncoder, TransUNetEncoder
        >>> encoder = TransUNetEncoder(backbone=ImageEncoder(in_channels=1), patch_size=16, img_size=64, num_layers=1)
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 64, 64))]
        [(768, 4, 4)]
    """

    def __init__(self, *, spatial_dims: int = 2, in_channels: int) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_positive(in_channels=in_channels)
        self.in_channels = in_channels
        self.channels = (in_channels,)
        self.strides = ((1,) * spatial_dims,)
        self.divisor = self.strides[0]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the image `(B, in_channels, *spatial)` in a list."""
        return [x]


class TransUNetEncoder(nn.Module):
    """A transformer on the coarsest map of another encoder, whose finer maps stay as they are.

    TransUNet's backbone is a ResNet (`ResNetEncoder`); with `ImageEncoder` and patches of 16 it is a plain ViT.

    Args:
        backbone: encoder whose coarsest map becomes tokens. One for images of three channels (RGB, which pretrained
            weights expect) is also given images of one channel, repeated.
        img_size: size of every image, one number or one per axis: the position embeddings are made for it.
        patch_size: side of a token in positions of the backbone's coarsest map.
        hidden_size: width of the tokens, and channels of the coarsest feature.
        mlp_dim: width of the hidden layer of each transformer block.
        num_layers: number of transformer blocks.
        num_heads: attention heads; must divide `hidden_size`.
        dropout_rate: dropout of the embedding and the hidden layers, in [0, 1).
        attention_dropout_rate: dropout of the attention weights and projections, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", arXiv:2102.04306,
        section 3.

    Example:
        >>> import torch
        >>> from scripts.networks import ResNetEncoder, TransUNetEncoder
        >>> backbone = ResNetEncoder(in_channels=1, feature_size=32, block_units=[1, 1, 1])
        >>> encoder = TransUNetEncoder(backbone=backbone, img_size=64, hidden_size=48, num_layers=2, num_heads=4)
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 64, 64))]
        [(32, 32, 32), (128, 16, 16), (256, 8, 8), (48, 4, 4)]
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        img_size: int | Sequence[int],
        patch_size: int = 1,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(patch_size=patch_size, mlp_dim=mlp_dim, num_layers=num_layers)
        if hidden_size < 1 or num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}.")
        check_rates(dropout_rate=dropout_rate, attention_dropout_rate=attention_dropout_rate)
        *skip_channels, channels = backbone.channels
        *skip_strides, stride = backbone.strides
        token = tuple(patch_size * n for n in stride)
        self.in_channels = backbone.in_channels
        self.channels = (*skip_channels, hidden_size)
        self.strides = (*skip_strides, token)
        self.divisor = tuple(math.lcm(a, b) for a, b in zip(token, backbone.divisor, strict=True))
        self.img_size = fixed_size(img_size, self.divisor)
        self.grid = tuple(n // side for n, side in zip(self.img_size, token, strict=True))
        self.backbone = backbone
        self.embedding = Conv[Conv.CONV, len(token)](channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.zeros(1, math.prod(self.grid), hidden_size))
        self.dropout = nn.Dropout(dropout_rate)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(hidden_size, mlp_dim, num_heads, dropout_rate, attention_dropout_rate)
                for _ in range(num_layers)
            )
        )
        self.norm = nn.LayerNorm(hidden_size, eps=EPS)

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
        *skips, coarsest = self.backbone(grey_or_colour(x, self.in_channels))
        tokens = self.embedding(coarsest).flatten(2).transpose(1, 2)  # (B, N, hidden_size)
        tokens = self.norm(self.blocks(self.dropout(tokens + self.positions)))
        return [*skips, tokens.transpose(1, 2).unflatten(2, self.grid).contiguous()]  # (B, hidden_size, *grid)


class TransUNetDecoder(nn.Module):
    """Cascaded upsampler of TransUNet: it doubles the coarsest map up to the size of the image.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature, finest first.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis, each a power of 2 and the same for all axes;
            None: 2, 4, 8, ...
        widths: channels of the decoder at strides 1, 2, 4, ... up to that of the coarsest feature.
        skips: how many of the features above the coarsest are used, the coarser ones first; None: all. The paper
            compares 0, 1 and 3.

    Attributes:
        deep_supervision: False; the only head is at full resolution.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Chen et al., "TransUNet", arXiv:2102.04306, section 3.2 and figure 1; the number of skips: section 4.4.

    Example:
        >>> import torch
        >>> from scripts.networks import TransUNetDecoder
        >>> decoder = TransUNetDecoder(channels=[4, 8], out_channels=3, widths=[4, 8, 16])
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8)])]
        [(1, 3, 32, 32)]
    """

    deep_supervision = False

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        channels: Sequence[int],
        out_channels: int,
        strides: Sequence[int | Sequence[int]] | None = None,
        widths: Sequence[int] = (16, 64, 128, 256, 512),
        skips: int | None = None,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if not channels or min(channels) < 1:
            raise ValueError(f"channels is {list(channels)}; expected a positive number per feature.")
        check_positive(out_channels=out_channels)
        available = len(channels) - 1
        skips = available if skips is None else skips
        if not 0 <= skips <= available:
            raise ValueError(f"skips is {skips}; expected 0 to {available}, the features above the coarsest.")
        self.channels = tuple(channels)
        self.strides = level_strides(
            [2 ** (i + 1) for i in range(len(channels))] if strides is None else strides, len(channels), spatial_dims
        )
        powers = _powers_of_two(self.strides)
        if len(widths) != powers[-1] + 1 or min(widths) < 1:
            raise ValueError(
                f"widths is {list(widths)}; expected {powers[-1] + 1} positive numbers, for strides 1 to "
                f"{2 ** powers[-1]}, the coarsest feature's."
            )
        level_of = {power: level for level, power in enumerate(powers[:-1]) if level >= available - skips}
        self.sources = [[level_of[power]] if power in level_of else [] for power in range(powers[-1])]
        self.stem = convolution(spatial_dims, channels[-1], widths[-1])
        self.ups = nn.ModuleList(
            UpBlock(spatial_dims, widths[power + 1], sum(channels[level] for level in levels), widths[power])
            for power, levels in enumerate(self.sources)
        )
        self.head = Conv[Conv.CONV, spatial_dims](widths[0], out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial)`, the only entry of the list.

        Raises:
            ValueError: if the number of features is wrong.
        """
        if not torch.jit.is_tracing():
            check_count(features, self.channels)
        x = self.stem(features[-1])
        for up, levels in zip(reversed(self.ups), reversed(self.sources), strict=True):
            x = up(x, [features[level] for level in levels])
        return [self.head(x)]


def _powers_of_two(strides: Sequence[Sequence[int]]) -> list[int]:
    """Exponents of strides that are increasing powers of 2, the same for all axes."""
    powers = [int(math.log2(stride[0])) for stride in strides]
    if (
        any(set(stride) != {2**power} for stride, power in zip(strides, powers, strict=True))
        or sorted(set(powers)) != powers
    ):
        raise ValueError(f"strides is {list(strides)}; expected increasing powers of 2, the same for all axes.")
    return powers
