"""MedNeXt: an encoder and a decoder of residual inverted bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn

from .levels import check_count, check_image, check_not_single, check_positive, level_strides, per_level, steps
from .mednext_blocks import LEAST_BATCH, DownBlock, UpBlock, check_arguments, run, stage


class MedNeXtEncoder(nn.Module):
    """MedNeXt's encoder: a 1x1 stem, then blocks and a down block for each level; the bottleneck is the decoder's.

    All lists name one entry per level, finest first. The coarsest feature comes straight from its down block, so that
    the fusion stands before the whole bottleneck, which is `MedNeXtDecoder`'s last stage.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: channels of each feature; the paper's are 32 * 2**i at five levels.
        strides: stride of each feature, as one number or one per axis, 1 at first; None: 1, 2, 4, ...
        kernel_size: odd side of the depthwise kernels.
        expansion_ratio: width of the hidden layer of the blocks of a level, and of the down block that leads to it, as
            a multiple of their input width; one number or one per level.
        blocks: number of blocks of each level but the coarsest; one number or one for each of these.
        residual: add the input of each block to its output.
        resampling_residual: add a strided 1x1 convolution of the input of each down block to its output.
        norm: "group" normalises each channel over its positions, "layer" each position over its channels.
        global_response_norm: channels of the hidden layers compete; not in the first down block, as in the authors'
            code.
        use_checkpoint: compute the blocks again in the backward pass: less memory, more time.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arXiv:2303.09975, sections 2.1, 2.2 and 2.4.

    Example:
        >>> import torch
        >>> from scripts.networks import MedNeXtEncoder
        >>> encoder = MedNeXtEncoder(spatial_dims=2, in_channels=1, channels=[8, 16, 32])
        >>> [tuple(f.shape) for f in encoder(torch.zeros(1, 1, 16, 16))]
        [(1, 8, 16, 16), (1, 16, 8, 8), (1, 32, 4, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_size: int = 3,
        expansion_ratio: int | Sequence[int] = 2,
        blocks: int | Sequence[int] = 2,
        residual: bool = True,
        resampling_residual: bool = True,
        norm: str = "group",
        global_response_norm: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, kernel_size, channels, norm)
        check_positive(in_channels=in_channels)
        levels = len(channels)
        expansion_ratio = per_level("expansion_ratio", expansion_ratio, levels, minimum=1)
        blocks = per_level("blocks", blocks, levels - 1, minimum=0)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, levels, spatial_dims)
        if set(self.strides[0]) != {1}:
            raise ValueError(f"strides is {strides}; expected 1 at first: the finest feature is at full resolution.")
        self.divisor = self.strides[-1]
        self.in_channels = in_channels
        self.norm = norm
        self.use_checkpoint = use_checkpoint
        options = {"spatial_dims": spatial_dims, "kernel_size": kernel_size, "norm": norm}
        self.stem = Conv[Conv.CONV, spatial_dims](in_channels, channels[0], kernel_size=1)
        self.stages = nn.ModuleList(
            stage(
                blocks[level],
                **options,
                channels=channels[level],
                expansion_ratio=expansion_ratio[level],
                residual=residual,
                global_response_norm=global_response_norm,
            )
            for level in range(levels - 1)
        )
        self.downs = nn.ModuleList(
            DownBlock(
                **options,
                in_channels=channels[level],
                out_channels=channels[level + 1],
                stride=step,
                expansion_ratio=expansion_ratio[level + 1],  # MONAI 1.6.1 takes that of the finer level
                residual=resampling_residual,
                global_response_norm=global_response_norm and level > 0,
            )
            for level, step in enumerate(steps(self.strides))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *spatial)`, every axis divisible by `divisor`.

        Returns:
            Features `(B, channels[i], *spatial / strides[i])`, finest first.

        Raises:
            ValueError: if the image does not fit.
        """
        if not torch.jit.is_tracing():
            self._check_image(x)
        x = self.stem(x)
        features = []
        for blocks, down in zip(self.stages, self.downs, strict=True):
            features.append(run(blocks, x, recompute=self.use_checkpoint))
            x = run([down], features[-1], recompute=self.use_checkpoint)
        return [*features, x]

    def _check_image(self, x: Tensor) -> None:
        check_image(x, self.in_channels, self.divisor)
        coarsest = [size // stride for size, stride in zip(x.shape[2:], self.divisor, strict=True)]
        check_not_single(coarsest, self.divisor, batch=len(x), least_batch=LEAST_BATCH[self.norm])


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
        residual: add the input of each block to its output.
        resampling_residual: add a transposed 1x1 convolution of the input of each up block to its output.
        norm: "group" normalises each channel over its positions, "layer" each position over its channels.
        global_response_norm: channels of the hidden layers compete.
        use_checkpoint: compute the blocks again in the backward pass: less memory, more time.

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
        residual: bool = True,
        resampling_residual: bool = True,
        norm: str = "group",
        global_response_norm: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(spatial_dims, kernel_size, channels, norm)
        check_positive(out_channels=out_channels)
        levels = len(channels)
        expansion_ratio = per_level("expansion_ratio", expansion_ratio, levels, minimum=1)
        blocks = per_level("blocks", blocks, levels, minimum=0)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, levels, spatial_dims)
        self.deep_supervision = deep_supervision
        self.norm = norm
        self.use_checkpoint = use_checkpoint
        options = {"spatial_dims": spatial_dims, "kernel_size": kernel_size, "norm": norm}
        options["global_response_norm"] = global_response_norm
        self.stages = nn.ModuleList(
            stage(
                blocks[level],
                **options,
                channels=channels[level],
                expansion_ratio=expansion_ratio[level],
                residual=residual,
            )
            for level in range(levels)
        )
        self.ups = nn.ModuleList(
            UpBlock(
                **options,
                in_channels=channels[level + 1],
                out_channels=channels[level],
                stride=step,
                expansion_ratio=expansion_ratio[level],
                residual=resampling_residual,
            )
            for level, step in enumerate(steps(self.strides))
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
        x = run(self.stages[-1], features[-1], recompute=self.use_checkpoint)
        maps = [x]
        for level in reversed(range(len(self.ups))):
            x = run([self.ups[level]], x, recompute=self.use_checkpoint) + features[level]
            x = run(self.stages[level], x, recompute=self.use_checkpoint)
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]  # without deep supervision: the finest

    def _check_features(self, features: list[Tensor]) -> None:
        check_count(features, self.channels)
        coarsest = features[-1]
        check_not_single(coarsest.shape[2:], self.strides[-1], batch=len(coarsest), least_batch=LEAST_BATCH[self.norm])
