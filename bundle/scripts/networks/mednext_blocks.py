"""MedNeXt's blocks: residual inverted bottlenecks that keep, halve or double the resolution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtUpBlock
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .levels import check_channels, check_spatial_dims, least_batch


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position, where MONAI's blocks have one that fits no map.

    Args:
        channels: channels of the map.

    Example:
        >>> import torch
        >>> from scripts.networks.mednext_blocks import ChannelNorm
        >>> ChannelNorm(4)(torch.randn(1, 4, 8, 8)).mean(1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map `(B, channels, *spatial)`."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)  # (B, *spatial, C) and back


NORMS = {"group": lambda channels: nn.GroupNorm(channels, channels), "layer": ChannelNorm}
LEAST_BATCH = {name: least_batch(norm(1)) for name, norm in NORMS.items()}  # for maps of a single position


class Block(MedNeXtBlock):
    """MedNeXt's residual inverted bottleneck: depthwise convolution, normalisation, expansion, compression.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the map.
        kernel_size: odd side of the depthwise kernel.
        expansion_ratio: width of the hidden layer as a multiple of `channels`.
        residual: add the input to the output.
        norm: "group" normalises each channel over its positions, "layer" each position over its channels.
        global_response_norm: channels of the hidden layer compete (Woo et al., "ConvNeXt V2", arXiv:2301.00808).

    References:
        Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arXiv:2303.09975, section 2.1.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        channels: int,
        kernel_size: int,
        expansion_ratio: int,
        residual: bool = True,
        norm: str = "group",
        global_response_norm: bool = False,
    ) -> None:
        super().__init__(
            channels,
            channels,
            expansion_ratio,
            kernel_size,
            use_residual_connection=residual,
            dim=f"{spatial_dims}d",
            global_resp_norm=global_response_norm,
        )
        self.norm = NORMS[norm](channels)


class DownBlock(MedNeXtDownBlock):
    """MedNeXt's residual inverted bottleneck that downsamples, for any stride per axis.

    With stride 2 on every axis it is MONAI's `MedNeXtDownBlock`, key by key and value by value.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the finer map.
        out_channels: channels of the coarser map.
        stride: downsampling factor per axis.
        kernel_size: odd side of the depthwise kernel; an axis with a larger stride above 2 gets one without gaps.
        expansion_ratio: width of the hidden layer as a multiple of `in_channels`.
        residual: add a strided 1x1 convolution of the input to the output.
        norm: see `Block`.
        global_response_norm: see `Block`.

    References:
        Roy et al., arXiv:2303.09975, section 2.2.
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
        residual: bool = True,
        norm: str = "group",
        global_response_norm: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            expansion_ratio,
            kernel_size,
            use_residual_connection=residual,
            dim=f"{spatial_dims}d",
            global_resp_norm=global_response_norm,
        )
        self.norm = NORMS[norm](in_channels)
        stride = tuple(stride)
        kernel = without_gaps(kernel_size, stride)
        strided = Conv[Conv.CONV, spatial_dims]
        self.conv1 = strided(
            in_channels, in_channels, kernel, stride, padding=tuple(k // 2 for k in kernel), groups=in_channels
        )
        if residual:
            self.res_conv = strided(in_channels, out_channels, 1, stride)


class UpBlock(MedNeXtUpBlock):
    """MedNeXt's residual inverted bottleneck that upsamples, for any stride per axis.

    With stride 2 on every axis it is MONAI's `MedNeXtUpBlock`, key by key and value by value. Along an axis of stride
    s, a transposed convolution of odd kernel gives s * n - (s - 1) positions; zeros fill up to s * n.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the coarser map.
        out_channels: channels of the finer map.
        stride: upsampling factor per axis.
        kernel_size: odd side of the depthwise kernel; an axis with a larger stride above 2 gets one without gaps.
        expansion_ratio: width of the hidden layer as a multiple of `in_channels`.
        residual: add a transposed 1x1 convolution of the input to the output.
        norm: see `Block`.
        global_response_norm: see `Block`.

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
        residual: bool = True,
        norm: str = "group",
        global_response_norm: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            expansion_ratio,
            kernel_size,
            use_residual_connection=residual,
            dim=f"{spatial_dims}d",
            global_resp_norm=global_response_norm,
        )
        self.norm = NORMS[norm](in_channels)
        stride = tuple(stride)
        kernel = without_gaps(kernel_size, stride)
        transposed = Conv[Conv.CONVTRANS, spatial_dims]
        self.conv1 = transposed(
            in_channels, in_channels, kernel, stride, padding=tuple(k // 2 for k in kernel), groups=in_channels
        )
        if residual:
            self.res_conv = transposed(in_channels, out_channels, 1, stride)
        self.missing = [n for s in reversed(stride) for n in (s // 2, s - 1 - s // 2)]  # before, after; last axis first

    def forward(self, x: Tensor) -> Tensor:
        """Upsample `(B, in_channels, *spatial)` to `(B, out_channels, *spatial * stride)`."""
        finer = MedNeXtBlock.forward(self, x)
        if self.resample_do_res:
            finer = finer + self.res_conv(x)
        return F.pad(finer, self.missing)


def check_arguments(spatial_dims: int, kernel_size: int, channels: Sequence[int], norm: str) -> None:
    """Check what encoder and decoder have in common.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_spatial_dims(spatial_dims)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; expected an odd number.")
    check_channels(channels)
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {list(NORMS)}.")


def stage(blocks: int, **options: Any) -> nn.Sequential:
    """That many blocks one after the other; see `Block` for the options."""
    return nn.Sequential(*(Block(**options) for _ in range(blocks)))


def without_gaps(kernel_size: int, stride: Sequence[int]) -> tuple[int, ...]:
    """Side of the depthwise kernel per axis: `kernel_size`, or the smallest odd number that spans a stride above 2."""
    return tuple(max(kernel_size, s // 2 * 2 + 1) if s > 2 else kernel_size for s in stride)


def run(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """Apply blocks one after the other.

    Args:
        blocks: the blocks.
        x: what the first one takes.
        recompute: keep only what goes into each block for the backward pass, which computes the block again.

    Returns:
        What the last one gives.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled() and not torch.jit.is_tracing():
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # nothing in a block is random
        else:
            x = block(x)
    return x
