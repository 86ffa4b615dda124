"""UNETR: a vision transformer as encoder, and the residual convolutional decoder of UNETR and SwinUNETR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets import ViT
from torch import Tensor, nn

from .levels import (
    check_channels,
    check_count,
    check_fixed_image,
    check_not_single,
    check_positive,
    check_rates,
    check_spatial_dims,
    fixed_size,
    least_batch,
    level_strides,
    steps,
)


class ViTEncoder(nn.Module):
    """Vision transformer on patches of 16 voxels, with finer features made from its middle blocks (UNETR).

    The finest feature is the image, the coarsest one the transformer's last tokens as a map. Between them, the tokens
    after the blocks `taps` go up to strides 2, 4, 8 by transposed convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        img_size: size of every image in voxels, one number or one per axis: the position embeddings are made for it.
        feature_size: width f; the feature of tap i (1, 2, ...) has f * 2**i channels.
        hidden_size: width of the tokens.
        mlp_dim: width of the hidden layer of each block.
        num_layers: number of transformer blocks.
        num_heads: attention heads; must divide `hidden_size`.
        taps: increasing indices (from 0) of the blocks whose tokens become features, finest first. The side of a patch
            is 2**(len(taps) + 1): 16 for three taps.
        proj_type: patch embedding, "conv" or "perceptron".
        norm_name: normalisation of the convolutional blocks, as MONAI names it, or a pair of name and arguments.
        conv_block: a convolutional block after each transposed convolution but the first.
        res_block: residual convolutional blocks.
        dropout_rate: dropout in the transformer, in [0, 1).
        qkv_bias: a bias in the projection to query, key and value.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: side of a patch per axis.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022, arXiv:2103.10504,
        section 3.1 and figure 2; which blocks are tapped is MONAI's choice.

    Example:
        >>> import torch
        >>> from scripts.networks import ViTEncoder
        >>> encoder = ViTEncoder(in_channels=1, img_size=32, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=3)
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 32, 32, 32))]
        [(1, 32, 32, 32), (8, 16, 16, 16), (16, 8, 8, 8), (32, 4, 4, 4), (24, 2, 2, 2)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        img_size: int | Sequence[int],
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        taps: Sequence[int] = (3, 6, 9),
        proj_type: str = "conv",
        norm_name: str | Sequence = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        dropout_rate: float = 0.0,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        levels = len(taps)
        side = 2 ** (levels + 1)
        check_spatial_dims(spatial_dims)
        if not levels or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= num_layers:
            raise ValueError(f"taps is {list(taps)}; expected increasing block indices from 0 to {num_layers - 1}.")
        size = fixed_size(img_size, (side,) * spatial_dims)
        check_positive(in_channels=in_channels, feature_size=feature_size, mlp_dim=mlp_dim)
        if hidden_size < 1 or num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}.")
        check_rates(dropout_rate=dropout_rate)

        widths = [feature_size * 2**level for level in range(1, levels + 1)]
        self.in_channels = in_channels
        self.channels = (in_channels, *widths, hidden_size)
        self.strides = tuple((2**level,) * spatial_dims for level in range(levels + 2))
        self.divisor = self.strides[-1]
        self.img_size = size
        self.grid = tuple(n // side for n in size)
        self.taps = tuple(taps)
        self.vit = ViT(
            in_channels=in_channels,
            img_size=size,
            patch_size=self.divisor,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            proj_type=proj_type,
            dropout_rate=dropout_rate,
            spatial_dims=spatial_dims,
            qkv_bias=qkv_bias,
        )
        for block in self.vit.blocks:  # MONAI makes these for cross-attention, which a ViT does not have: never used
            block.norm_cross_attn.requires_grad_(False)
        self.pyramid = nn.ModuleList(
            UnetrPrUpBlock(
                spatial_dims=spatial_dims,
                in_channels=hidden_size,
                out_channels=width,
                num_layer=levels - level,
                kernel_size=3,
                stride=1,
                upsample_kernel_size=2,
                norm_name=norm_name,
                conv_block=conv_block,
                res_block=res_block,
            )
            for level, width in enumerate(widths, start=1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *img_size)`.

        Returns:
            The image and features `(B, channels[i], *img_size / strides[i])`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_fixed_image(x, self.in_channels, self.divisor, self.img_size)
        tokens, hidden = self.vit(x)
        between = [up(self._map(hidden[tap])) for up, tap in zip(self.pyramid, self.taps, strict=True)]
        return [x, *between, self._map(tokens)]

    def _map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self.grid).contiguous()  # (B, N, C) -> (B, C, *grid)


class UNETRDecoder(nn.Module):
    """Decoder of UNETR and SwinUNETR: transposed convolutions, concatenated skips, residual convolutional blocks.

    A feature may pass a residual block before it joins; that of the finest level gives it the decoder's width.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature, finest first; all but the first are also the widths of the decoder.
        out_channels: channels of the logits.
        feature_size: width of the decoder at the finest level.
        blocks: for each feature, whether it passes a block before it joins; the last entry is the bottleneck.
            SwinUNETR has them on all features but the last skip, UNETR on the image only.
        strides: stride of each feature, as one number or one per axis; None: 1, 2, 4, ...
        norm_name: normalisation, as MONAI names it, or a pair of name and arguments.
        res_block: residual blocks; False: plain ones.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Hatamizadeh et al., "UNETR", arXiv:2103.10504, section 3.1; Hatamizadeh et al., "Swin UNETR", arXiv:2201.01266,
        section 3.2.

    Example:
        >>> import torch
        >>> from scripts.networks import UNETRDecoder
        >>> decoder = UNETRDecoder(
        ...     spatial_dims=2, channels=[1, 8, 16], out_channels=3, feature_size=8, blocks=[True, True, True]
        ... )
        >>> features = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)]
        >>> [tuple(y.shape) for y in decoder(features)]
        [(1, 3, 16, 16)]
    """

    deep_supervision = False

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int],
        out_channels: int,
        feature_size: int,
        blocks: Sequence[bool],
        strides: Sequence[int | Sequence[int]] | None = None,
        norm_name: str | Sequence = "instance",
        res_block: bool = True,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        check_channels(channels)
        check_positive(out_channels=out_channels, feature_size=feature_size)
        if len(blocks) != len(channels):
            raise ValueError(f"blocks is {list(blocks)}; expected one entry per level, {len(channels)}.")
        if not blocks[0] and channels[0] != feature_size:
            raise ValueError(
                f"feature_size is {feature_size}, but the finest feature has {channels[0]} channels: set blocks[0] to "
                "True, so that a block gives it the decoder's width."
            )
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), spatial_dims)
        widths = [feature_size, *channels[1:]]
        self.blocks = nn.ModuleList(
            UnetrBasicBlock(
                spatial_dims=spatial_dims,
                in_channels=n,
                out_channels=width,
                kernel_size=3,
                stride=1,
                norm_name=norm_name,
                res_block=res_block,
            )
            if block
            else nn.Identity()
            for block, n, width in zip(blocks, channels, widths, strict=True)
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(
                spatial_dims=spatial_dims,
                in_channels=widths[level + 1],
                out_channels=widths[level],
                kernel_size=3,
                upsample_kernel_size=step,
                norm_name=norm_name,
                res_block=res_block,
            )
            for level, step in enumerate(steps(self.strides))
        )
        self.head = UnetOutBlock(spatial_dims=spatial_dims, in_channels=feature_size, out_channels=out_channels)
        self.least_batch = least_batch(self.blocks[-1])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial)` in a list of one: there are no auxiliary heads.

        Raises:
            ValueError: if the number of features is wrong, or normalisation would erase a coarsest map of one position.
        """
        if not torch.jit.is_tracing():
            check_count(features, self.channels)
            coarsest = features[-1]
            check_not_single(coarsest.shape[2:], self.strides[-1], batch=len(coarsest), least_batch=self.least_batch)
        x = self.blocks[-1](features[-1])
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x, self.blocks[level](features[level]))
        return [self.head(x)]
