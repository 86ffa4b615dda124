"""TransBTS: a convolutional encoder that ends in a transformer on its coarsest map, and a convolutional decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.layers import Conv, Dropout, Norm
from monai.networks.layers.simplelayers import SkipConnection
from torch import Tensor, nn

from .levels import check_count, check_image
from .res_unet import check_levels

GROUPS = 8


class TransBTSEncoder(nn.Module):
    """TransBTS's encoder: pre-activation residual blocks down to stride 8, then a transformer on the positions there.

    With `TransBTSDecoder`, four input channels, images of 128 voxels a side and 4 classes it has 32.73 M parameters.
    The paper's 32.99 M count 0.264 M of a linear embedding and a normalisation that the authors build but do not use;
    torch's attention has 0.006 M of biases more, MONAI's blocks have 0.002 M less where a normalisation follows.
    Other differences: one dropout where the authors have two in a row, and that of the stem in training only.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        img_size: size of every image in voxels, one number or one per axis: the position embeddings are made for it.
        channels: channels of each level, finest first, multiples of 8; each level halves the resolution.
        blocks: number of residual blocks of each level.
        hidden_size: width of the tokens, which replace the coarsest level's channels.
        mlp_dim: width of the hidden layer of each transformer block.
        num_layers: number of transformer blocks.
        num_heads: attention heads; must divide `hidden_size`.
        dropout_rate: dropout in the transformer, in [0, 1).
        stem_dropout_rate: dropout of whole channels after the first convolution, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first, `hidden_size` at last.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of `img_size` must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Wang et al., "TransBTS: Multimodal Brain Tumor Segmentation Using Transformer", MICCAI 2021, arXiv:2103.04430,
        sections 2.2 and 2.3.

    Example:
        >>> import torch
        >>> from scripts.networks import TransBTSEncoder
        >>> encoder = TransBTSEncoder(
        ...     spatial_dims=2, in_channels=1, img_size=16, channels=[8, 8], blocks=[1, 1], hidden_size=16, mlp_dim=16
        ... )
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 16))]
        [(1, 8, 16, 16), (1, 16, 8, 8)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        img_size: int | Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 2, 2, 4),
        hidden_size: int = 512,
        mlp_dim: int = 4096,
        num_layers: int = 4,
        num_heads: int = 8,
        dropout_rate: float = 0.1,
        stem_dropout_rate: float = 0.2,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, in_channels=in_channels, mlp_dim=mlp_dim, num_layers=num_layers)
        if any(width % GROUPS for width in channels):
            raise ValueError(f"channels is {list(channels)}; expected multiples of {GROUPS}, the groups normalised.")
        if len(blocks) != len(channels) or min(blocks) < 1:
            raise ValueError(f"blocks is {list(blocks)}; expected {len(channels)} numbers from 1 on, one per level.")
        if hidden_size < 1 or num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}.")
        for name, rate in {"dropout_rate": dropout_rate, "stem_dropout_rate": stem_dropout_rate}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}; expected a probability in [0, 1).")
        side = 2 ** (len(channels) - 1)
        self.img_size = (img_size,) * spatial_dims if isinstance(img_size, int) else tuple(img_size)
        if len(self.img_size) != spatial_dims or any(n < side or n % side for n in self.img_size):
            raise ValueError(
                f"img_size is {img_size}; expected one number or {spatial_dims} of them, each divisible by {side}. Set "
                "patch_size to such a size."
            )
        self.in_channels = in_channels
        self.channels = (*channels[:-1], hidden_size)
        self.strides = tuple((2**level,) * spatial_dims for level in range(len(channels)))
        self.divisor = self.strides[-1]
        self.grid = tuple(n // side for n in self.img_size)

        conv = Conv[Conv.CONV, spatial_dims]
        dropout = Dropout[Dropout.DROPOUT, spatial_dims](stem_dropout_rate)
        befores = [nn.Sequential(conv(in_channels, channels[0], kernel_size=3, padding=1), dropout)]
        for fine, coarse in zip(channels, channels[1:], strict=False):
            befores.append(conv(fine, coarse, kernel_size=3, stride=2, padding=1))
        norm = ("group", {"num_groups": GROUPS})
        self.stages = nn.ModuleList(
            nn.Sequential(before, *(ResBlock(spatial_dims, width, norm) for _ in range(n)))
            for before, width, n in zip(befores, channels, blocks, strict=True)
        )
        self.embed = nn.Sequential(
            Norm[Norm.BATCH, spatial_dims](channels[-1]),
            nn.ReLU(inplace=True),
            conv(channels[-1], hidden_size, kernel_size=3, padding=1),
        )
        self.positions = nn.Parameter(torch.zeros(1, math.prod(self.grid), hidden_size))
        self.transformer = nn.Sequential(
            nn.Dropout(dropout_rate),
            *(
                nn.TransformerEncoderLayer(
                    hidden_size, num_heads, mlp_dim, dropout_rate, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(num_layers)
            ),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *img_size)`.

        Returns:
            Features `(B, channels[i], *img_size / strides[i])`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
            if tuple(x.shape[2:]) != self.img_size:
                raise ValueError(
                    f"image has spatial size {tuple(x.shape[2:])}, but the position embeddings are made for img_size "
                    f"{self.img_size}: cut or pad the image to windows of that size (patch_size)."
                )
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        tokens = self.embed(features.pop()).flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = self.transformer(tokens + self.positions)
        return [*features, tokens.transpose(1, 2).unflatten(2, self.grid).contiguous()]  # (B, C, *grid)


class TransBTSDecoder(nn.Module):
    """TransBTS's decoder: convolutions of the coarsest map, then transposed ones, concatenated skips, residual blocks.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature, finest first; each level halves the resolution.
        out_channels: channels of the logits.
        hidden_channels: width that the coarsest map is brought to.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Wang et al., arXiv:2103.04430, section 2.4.

    Example:
        >>> import torch
        >>> from scripts.networks import TransBTSDecoder
        >>> decoder = TransBTSDecoder(spatial_dims=2, channels=[8, 16], out_channels=3, hidden_channels=8)
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)])]
        [(1, 3, 16, 16)]
    """

    deep_supervision = False

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 64, 512),
        out_channels: int,
        hidden_channels: int = 128,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, out_channels=out_channels, hidden_channels=hidden_channels)
        self.channels = tuple(channels)
        self.strides = tuple((2**level,) * spatial_dims for level in range(len(channels)))
        conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]

        def block(n: int, width: int) -> nn.Module:
            return UnetBasicBlock(spatial_dims, n, width, 3, 1, norm_name="batch", act_name="relu")

        def residual(width: int) -> nn.Module:
            return SkipConnection(block(width, width), mode="add")

        self.bottleneck = nn.Sequential(block(channels[-1], hidden_channels), residual(hidden_channels))
        widths = [*channels[:-1], hidden_channels]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.ups = nn.ModuleList(
            nn.Sequential(conv(coarse, fine, kernel_size=1), transposed(fine, fine, kernel_size=2, stride=2))
            for fine, coarse in pairs
        )
        self.joins = nn.ModuleList(
            nn.Sequential(conv(2 * fine, fine, kernel_size=1), residual(fine)) for fine, _ in pairs
        )
        self.head = conv(channels[0], out_channels, kernel_size=1)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial)` in a list of one: there are no auxiliary heads.

        Raises:
            ValueError: if the number of features is wrong.
        """
        check_count(features, self.channels)
        x = self.bottleneck(features[-1])
        for level in reversed(range(len(self.ups))):
            x = self.joins[level](torch.cat([features[level], self.ups[level](x)], dim=1))  # (B, 2C, *spatial)
        return [self.head(x)]
