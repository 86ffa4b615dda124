"""3D UX-Net: a ConvNeXt of large depthwise kernels as encoder, UNETR's residual convolutions as decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetrBasicBlock
from monai.networks.layers import Conv, DropPath
from torch import Tensor, nn

from .levels import check_image, least_batch, level_strides
from .mednext_blocks import ChannelNorm
from .res_unet import check_levels, halvings
from .unetr import UNETRDecoder


class UXBlock(nn.Module):
    """ConvNeXt's block in volumes, in which each channel is expanded and compressed by itself.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the map.
        kernel_size: odd side of the depthwise kernel.
        drop_path: probability that the block is skipped for a sample in training, in [0, 1).
        layer_scale: what the block's output is multiplied by at first, channel by channel; it is learned.

    References:
        Lee et al., arXiv:2209.15076, section 3.2; the expansion by groups is its "depthwise convolution scaling".
    """

    def __init__(
        self, *, spatial_dims: int, channels: int, kernel_size: int, drop_path: float = 0.0, layer_scale: float = 1e-6
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.layers = nn.Sequential(
            conv(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels),
            _norm(channels),
            conv(channels, 4 * channels, 1, groups=channels),
            nn.GELU(),
            conv(4 * channels, channels, 1, groups=channels),
        )
        self.scale = nn.Parameter(torch.full((channels, *[1] * spatial_dims), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map `(B, channels, *spatial)`."""
        return x + self.drop_path(self.scale * self.layers(x))


class UXNetEncoder(nn.Module):
    """3D UX-Net's encoder: four stages of large depthwise kernels; the finest feature is the image itself.

    With `UXNetDecoder`, one input channel and 5 classes (FLARE) it has 53.01 M parameters, as the paper's 53.0 M.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of each stage, finest first.
        strides: stride of each feature, the image first, as one number or one per axis; None: 1, 2, 4, ...
        depths: number of blocks of each stage.
        kernel_size: odd side of the depthwise kernels and of the first convolution.
        drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly from 0.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Lee et al., "3D UX-Net: A Large Kernel Volumetric ConvNet Modernizing Hierarchical Transformer for Medical
        Image Segmentation", ICLR 2023, arXiv:2209.15076, section 3.

    Example:
        >>> import torch
        >>> from scripts.networks import UXNetEncoder
        >>> encoder = UXNetEncoder(spatial_dims=2, in_channels=1, channels=[4, 8], depths=[1, 1])
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 16))]
        [(1, 1, 16, 16), (1, 4, 8, 8), (1, 8, 4, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        channels: Sequence[int] = (48, 96, 192, 384),
        strides: Sequence[int | Sequence[int]] | None = None,
        depths: Sequence[int] = (2, 2, 2, 2),
        kernel_size: int = 7,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_levels(spatial_dims, channels, in_channels=in_channels)
        if len(depths) != len(channels) or min(depths) < 1:
            raise ValueError(f"depths is {list(depths)}; expected {len(channels)} numbers from 1 on, one per stage.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected an odd number.")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {drop_path_rate}; expected a probability in [0, 1).")
        self.in_channels = in_channels
        self.channels = (in_channels, *channels)
        self.strides = level_strides(strides, len(self.channels), spatial_dims)
        self.divisor = self.strides[-1]
        first, *steps = halvings(self.strides)

        conv = Conv[Conv.CONV, spatial_dims]
        stem = conv(in_channels, channels[0], kernel_size, stride=first, padding=kernel_size // 2)
        self.downs = nn.ModuleList([nn.Sequential(stem, _norm(channels[0]))])
        for fine, coarse, step in zip(channels, channels[1:], steps, strict=False):
            self.downs.append(nn.Sequential(_norm(fine), conv(fine, coarse, kernel_size=step, stride=step)))
        rates = iter(drop_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    UXBlock(spatial_dims=spatial_dims, channels=width, kernel_size=kernel_size, drop_path=next(rates))
                    for _ in range(depth)
                )
            )
            for width, depth in zip(channels, depths, strict=True)
        )
        self.norms = nn.ModuleList(map(_norm, channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *spatial)`, every axis divisible by `divisor`.

        Returns:
            The image and features `(B, channels[i], *spatial / strides[i])`, finest first, normalised over channels.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            check_image(x, self.in_channels, self.divisor)
        features = [x]
        for down, stage, norm in zip(self.downs, self.stages, self.norms, strict=True):
            x = stage(down(x))
            features.append(norm(x))
        return features


class UXNetDecoder(UNETRDecoder):
    """3D UX-Net's decoder: UNETR's, with blocks that give each feature the width of the next coarser one.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature, finest first.
        out_channels: channels of the logits.
        feature_size: width of the decoder at the finest level; the next ones have channels[2], channels[3], ...
        hidden_size: width of the decoder at the coarsest level.
        strides: stride of each feature, as one number or one per axis; None: 1, 2, 4, ...
        norm_name: normalisation, as MONAI names it, or a pair of name and arguments.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Lee et al., arXiv:2209.15076, section 3.3 and figure 2.

    Example:
        >>> import torch
        >>> from scripts.networks import UXNetDecoder
        >>> decoder = UXNetDecoder(
        ...     spatial_dims=2, channels=[1, 4, 8], out_channels=3, feature_size=4, hidden_size=16
        ... )
        >>> features = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)]
        >>> [tuple(y.shape) for y in decoder(features)]
        [(1, 3, 16, 16)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int] = (1, 48, 96, 192, 384),
        out_channels: int,
        feature_size: int = 48,
        hidden_size: int = 768,
        strides: Sequence[int | Sequence[int]] | None = None,
        norm_name: str | Sequence = "instance",
    ) -> None:
        check_levels(spatial_dims, channels, hidden_size=hidden_size)
        widths = [feature_size, *channels[2:], hidden_size]
        super().__init__(
            spatial_dims=spatial_dims,
            channels=[channels[0], *widths[1:]],
            out_channels=out_channels,
            feature_size=feature_size,
            blocks=[True, *[False] * (len(channels) - 1)],
            strides=strides,
            norm_name=norm_name,
        )

        def block(n: int, width: int) -> nn.Module:
            return UnetrBasicBlock(spatial_dims, n, width, 3, 1, norm_name=norm_name, res_block=True)

        self.channels = tuple(channels)
        self.blocks = nn.ModuleList([self.blocks[0], *map(block, channels[1:], widths[1:])])
        self.head = nn.Sequential(block(feature_size, feature_size), self.head)
        self.least_batch = least_batch(self.blocks[-1])


def drop_rates(highest: float, blocks: int) -> list[float]:
    """Rates of stochastic depth of that many blocks: from 0 up to the highest."""
    return [highest * block / max(blocks - 1, 1) for block in range(blocks)]


def _norm(channels: int) -> nn.Module:
    norm = ChannelNorm(channels)
    norm.eps = 1e-6  # ConvNeXt's
    return norm
