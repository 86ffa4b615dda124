"""Swin Transformer encoder that takes MONAI's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from monai.networks.nets.swin_unetr import MERGING_MODE, SwinTransformer
from torch import Tensor, nn

from .levels import check_image, check_positive, check_rates, check_spatial_dims, per_axis


class SwinEncoder(nn.Module):
    """MONAI's Swin Transformer as an encoder, with the image or a 1x1 convolution of it as the finest feature.

    With four stages the features after the stem are those of `SwinTransformer.forward(x, normalize=True)`, and the
    keys below `swinViT.` are those of `SwinUNETR`, so its checkpoints and MONAI's self-supervised weights load
    (`scripts.networks.load_swin_weights`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        feature_size: width C of the patch embedding; stage i (1, 2, ...) returns C * 2**i channels.
        depths: number of attention blocks of each stage; 1 to 4 stages.
        num_heads: attention heads of each stage; must divide the width C * 2**(i - 1) at which stage i works.
        window_size: side of the attention window in tokens, one number or one per axis.
        patch_size: side of a token in voxels, one number or one per axis (`[2, 2, 1]` for thick slices).
        stem_channels: width of the finest feature; None takes `feature_size`. It is the width of the decoder at full
            resolution, which dominates its cost. 0 leaves the stem out: the finest feature is the image itself.
        mlp_ratio: width of the hidden layer of each block as a multiple of the block's width.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.
        use_checkpoint: recompute the blocks in the backward pass: less memory, more time.
        use_v2: a residual convolution block before each stage (SwinUNETR-V2).
        qkv_bias: a bias in the projection to query, key and value.
        patch_norm: layer normalisation of the patch embedding.
        normalize: normalise each feature (not the image or stem) over its channels.
        downsample: order in which the eight corners of a cube are concatenated when they merge: "merging", as in the
            published weights, or "mergingv2"; the same in 2D.
        drop_rate: dropout of the embedding, the projections and the hidden layers, in [0, 1).
        attn_drop_rate: dropout of the attention weights, in [0, 1).

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Liu et al., "Swin Transformer", ICCV 2021; Hatamizadeh et al., "Swin UNETR", arXiv:2201.01266; Tang et al.,
        "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022.

    Example:
        >>> import torch
        >>> from scripts.networks import SwinEncoder
        >>> encoder = SwinEncoder(spatial_dims=3, in_channels=1, feature_size=12, depths=[2, 2], num_heads=[3, 6])
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 16, 16, 16))]
        [(12, 16, 16, 16), (12, 8, 8, 8), (24, 4, 4, 4), (48, 2, 2, 2)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        patch_size: int | Sequence[int] = 2,
        stem_channels: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        use_checkpoint: bool = False,
        use_v2: bool = False,
        qkv_bias: bool = True,
        patch_norm: bool = False,
        normalize: bool = True,
        downsample: str = "merging",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        if not 1 <= len(depths) <= 4 or min(depths) < 1:
            raise ValueError(f"depths is {list(depths)}; expected 1 to 4 stages of at least one block each.")
        if len(num_heads) != len(depths):
            raise ValueError(f"num_heads {list(num_heads)} must name one number per stage; depths has {len(depths)}.")
        for stage, heads in enumerate(num_heads):
            if heads < 1 or feature_size * 2**stage % heads:
                raise ValueError(
                    f"num_heads[{stage}] is {heads}; it must divide the width {feature_size * 2**stage} of that stage "
                    f"(feature_size {feature_size} * {2**stage})."
                )
        check_rates(drop_path_rate=drop_path_rate, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        if downsample not in MERGING_MODE:
            raise ValueError(f"downsample is {downsample!r}; expected one of {list(MERGING_MODE)}.")
        stem_channels = feature_size if stem_channels is None else stem_channels
        check_positive(in_channels=in_channels, feature_size=feature_size)
        if stem_channels < 0:
            raise ValueError(f"stem_channels is {stem_channels}; expected at least 0.")
        window = per_axis("window_size", window_size, spatial_dims)
        patch = per_axis("patch_size", patch_size, spatial_dims)

        stages = len(depths)
        self.channels = (stem_channels or in_channels, *(feature_size * 2**i for i in range(stages + 1)))
        self.strides = ((1,) * spatial_dims, *(tuple(p * 2**i for p in patch) for i in range(stages + 1)))
        self.divisor = self.strides[-1]
        self.in_channels = in_channels
        self.normalize = normalize
        self.stem = (
            Conv[Conv.CONV, spatial_dims](in_channels, stem_channels, kernel_size=1) if stem_channels else nn.Identity()
        )
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=window,
            patch_size=patch,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            downsample=downsample,
            use_checkpoint=use_checkpoint,
            spatial_dims=spatial_dims,
            use_v2=use_v2,
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *spatial)`, every axis divisible by `divisor`.

        Returns:
            Features `(B, channels[i], *spatial / strides[i])`, finest first; with `normalize` all but the first are
            normalised over their channels.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
        swin = self.swinViT
        hidden = swin.pos_drop(swin.patch_embed(x))
        features = [self.stem(x), swin.proj_out(hidden, self.normalize)]
        for stage in range(1, swin.num_layers + 1):
            if swin.use_v2:
                hidden = getattr(swin, f"layers{stage}c")[0](hidden.contiguous())
            hidden = getattr(swin, f"layers{stage}")[0](hidden.contiguous())
            features.append(swin.proj_out(hidden, self.normalize))
        return features
