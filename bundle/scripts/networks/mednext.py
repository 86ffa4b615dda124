"""MedNeXt decoder: residual inverted bottlenecks that go up to a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtUpBlock
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional as F


class UpBlock(MedNeXtUpBlock):
    """MedNeXt's residual inverted bottleneck that upsamples, for any stride per axis.

    With stride 2 on every axis it is MONAI's `MedNeXtUpBlock`, key by key and value by value. Along an axis of stride
    s, a transposed convolution of odd kernel gives s * n - (s - 1) positions; zeros fill up to s * n.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the coarser map.
        out_channels: channels of the finer map.
        stride: upsampling factor per axis.
        kernel_size: odd side of the depthwise kernel; an axis whose stride is larger gets a kernel without gaps.
        expansion_ratio: width of the hidden layer as a multiple of `in_channels`.

    References:
        Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arXiv:2303.09975, section 2.2.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        kernel_size: int,
        expansion_ratio: int,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            expansion_ratio,
            kernel_size,
            use_residual_connection=True,
            dim=f"{spatial_dims}d",
        )
        stride = tuple(stride)
        kernel = tuple(max(kernel_size, s // 2 * 2 + 1) for s in stride)
        transposed = Conv[Conv.CONVTRANS, spatial_dims]
        self.conv1 = transposed(
            in_channels, in_channels, kernel, stride, padding=tuple(k // 2 for k in kernel), groups=in_channels
        )
        self.res_conv = transposed(in_channels, out_channels, 1, stride)
        self.missing = [n for s in reversed(stride) for n in (s // 2, s - 1 - s // 2)]  # before, after; last axis first

    def forward(self, x: Tensor) -> Tensor:
        """Upsample `(B, in_channels, *spatial)` to `(B, out_channels, *spatial * stride)`."""
        return F.pad(MedNeXtBlock.forward(self, x) + self.res_conv(x), self.missing)


class MedNeXtDecoder(nn.Module):
    """MedNeXt's decoder: blocks on the coarsest map, then up blocks with additive skips and a head at every scale.

    All lists name one entry per level, finest first, as the encoder returns its features.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of each feature.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis; None: 1, 2, 4, ...
        kernel_size: odd side of the depthwise kernels.
        expansion_ratio: width of the hidden layer of the blocks of a level, and of the up block that leads to it, as a
            multiple of their input width; one number or one per level.
        blocks: number of blocks of each level; one number or one per level. 0 leaves the sum of the up block and the
            skip as it is, which is what makes the full resolution cheap; the last entry is the bottleneck.
        deep_supervision: True has a head at every scale, False at the finest one only.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arXiv:2303.09975, sections 2.1 to 2.3.

    Example:
        >>> import torch
        >>> from scripts.networks import MedNeXtDecoder
        >>> decoder = MedNeXtDecoder(spatial_dims=2, channels=[8, 16], out_channels=3, deep_supervision=True)
        >>> [tuple(y.shape) for y in decoder([torch.zeros(1, 8, 16, 16), torch.zeros(1, 16, 8, 8)])]
        [(1, 3, 16, 16), (1, 3, 8, 8)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        channels: Sequence[int],
        out_channels: int,
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_size: int = 3,
        expansion_ratio: int | Sequence[int] = 2,
        blocks: int | Sequence[int] = 2,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims}; expected 2 or 3.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected an odd number.")
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels is {list(channels)}; expected at least two levels of at least one channel.")
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; expected at least 1.")
        levels = len(channels)
        expansion_ratio = _per_level("expansion_ratio", expansion_ratio, levels, minimum=1)
        blocks = _per_level("blocks", blocks, levels, minimum=0)
        self.channels = tuple(channels)
        self.strides = _strides(strides, levels, spatial_dims)
        self.deep_supervision = deep_supervision

        def stage(level: int) -> nn.Sequential:
            width = channels[level]
            return nn.Sequential(
                *(
                    MedNeXtBlock(width, width, expansion_ratio[level], kernel_size, dim=f"{spatial_dims}d")
                    for _ in range(blocks[level])
                )
            )

        self.stages = nn.ModuleList(stage(level) for level in range(levels))
        self.ups = nn.ModuleList(
            UpBlock(
                spatial_dims=spatial_dims,
                in_channels=channels[level + 1],
                out_channels=channels[level],
                stride=[a // b for a, b in zip(self.strides[level + 1], self.strides[level], strict=True)],
                kernel_size=kernel_size,
                expansion_ratio=expansion_ratio[level],
            )
            for level in range(levels - 1)
        )
        self.heads = nn.ModuleList(
            Conv[Conv.CONV, spatial_dims](channels[level], out_channels, kernel_size=1)
            for level in range(levels if deep_supervision else 1)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *spatial / strides[i])` of every head, finest first.

        Raises:
            ValueError: if the number of features is wrong, or the coarsest map has a single position.
        """
        if not torch.jit.is_tracing():
            self._check_features(features)
        x = self.stages[-1](features[-1])
        maps = [x]
        for level in reversed(range(len(self.ups))):
            x = self.stages[level](self.ups[level](x) + features[level])
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]  # without deep supervision: the finest

    def _check_features(self, features: list[Tensor]) -> None:
        if len(features) != len(self.channels):
            raise ValueError(f"got {len(features)} features; expected {len(self.channels)}, one per entry of channels.")
        coarsest = tuple(features[-1].shape[2:])
        if math.prod(coarsest) < 2:
            raise ValueError(
                f"the coarsest feature map has spatial size {coarsest}: a single position, which instance "
                f"normalisation would erase. Each axis of the image must be divisible by {self.strides[-1]} and at "
                "least one axis at least twice that."
            )


def _per_level(name: str, value: int | Sequence[int], levels: int, *, minimum: int) -> list[int]:
    """Expand a number to one per level, or check that a list has one per level."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels or min(values) < minimum:
        raise ValueError(f"{name} is {value}; expected a number of at least {minimum}, or {levels} (one per level).")
    return values


def _strides(
    strides: Sequence[int | Sequence[int]] | None, levels: int, spatial_dims: int
) -> tuple[tuple[int, ...], ...]:
    """Stride of each level per axis, each a multiple of the one before."""
    strides = [2**level for level in range(levels)] if strides is None else strides
    full = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in strides)
    if len(full) != levels or any(len(s) != spatial_dims or min(s) < 1 for s in full):
        raise ValueError(
            f"strides is {strides}; expected {levels} entries (one per level), each a number or {spatial_dims} of them."
        )
    for fine, coarse in zip(full, full[1:], strict=False):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(f"strides is {strides}; {coarse} is not a multiple of {fine} on every axis.")
    return full
