"""UNETR++: an encoder and a decoder of efficient paired attention, for images of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from .epa import EPABlock
from .levels import check_channels, check_not_single, check_positive, fixed_size, least_batch, level_strides, steps

HEADS = 3  # scales with deep supervision: full resolution and the two finest stages


class UNETRPPEncoder(nn.Module):
    """UNETR++'s encoder: a convolution block of the image, then stages of paired attention on coarser and coarser maps.

    `channels` and `strides` name one entry per level, finest first, as the features are returned; `depths` and
    `projected` one per stage. The authors' networks differ in the strides and the block: `authors.unetr_pp`.

    Args:
        spatial_dims: 3; UNETR++ is a network for volumes.
        in_channels: channels of the image.
        img_size: size of every image in voxels, one number or one per axis: position embeddings and projections are
            made for it.
        channels: channels of each feature; even and divisible by `num_heads`, except the first.
        strides: stride of each feature, as one number or one per axis; the first is 1, the second that of the stem
            (authors: `[1, [2, 4, 4], [4, 8, 8], [8, 16, 16], [16, 32, 32]]` for Synapse).
        depths: number of blocks of each stage.
        num_heads: attention heads of each block.
        projected: number of tokens that keys and values are projected to in each stage.
        norm: norm of the convolution block of the image: "instance", "batch", or `[name, arguments]` as MONAI has it.
        block: class of the blocks of the stages, built with `tokens`, `channels`, `projected` and `num_heads`; in YAML
            `{_target_: scripts.networks.EPABlock, _mode_: callable, convolutions: 2}`.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of `img_size` must be divisible by.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Shaker et al., "UNETR++: Delving into Efficient and Accurate 3D Medical Image Segmentation", IEEE TMI 2024,
        arXiv:2212.04497, section "Overall Architecture".

    Example:
        >>> import torch
        >>> from scripts.networks import UNETRPPEncoder
        >>> encoder = UNETRPPEncoder(
        ...     in_channels=1, img_size=[16, 32, 32], channels=[4, 8, 16], strides=[1, [2, 4, 4], [4, 8, 8]],
        ...     depths=[1, 1], projected=[8, 8],
        ... )
        >>> [tuple(f.shape[1:]) for f in encoder(torch.zeros(1, 1, 16, 32, 32))]
        [(4, 16, 32, 32), (8, 8, 8, 8), (16, 4, 4, 4)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        in_channels: int,
        img_size: int | Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]],
        depths: Sequence[int] = (3, 3, 3, 3),
        num_heads: int = 4,
        projected: Sequence[int] = (64, 64, 64, 32),
        norm: str | Sequence = "instance",
        block: Callable[..., nn.Module] = EPABlock,
    ) -> None:
        super().__init__()
        _check_levels(spatial_dims, channels, norm)
        check_positive(in_channels=in_channels)
        for name, values, least in (("depths", depths, 0), ("projected", projected, 1)):
            if len(values) != len(channels) - 1 or min(values) < least:
                raise ValueError(
                    f"{name} is {list(values)}; expected {len(channels) - 1} numbers of at least {least}: one per "
                    "stage, that is one per entry of channels but the first."
                )
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), 3)
        self.img_size = fixed_size(img_size, self.strides[-1])
        self.divisor = self.strides[-1]
        tokens = _tokens(self.img_size, self.strides)
        if self.strides[0] != (1, 1, 1):
            raise ValueError(f"strides[0] is {self.strides[0]}; the finest feature has the stride 1 of the image.")

        self.image_block = UnetResBlock(3, in_channels, channels[0], kernel_size=3, stride=1, norm_name=norm)
        widths = [in_channels, *channels[1:]]
        self.downsamples = nn.ModuleList(map(_downsample, widths, widths[1:], steps(self.strides)))
        self.stages = nn.ModuleList(
            _stage(block, depth, tokens=tokens[level], channels=channels[level], projected=p, num_heads=num_heads)
            for level, (depth, p) in enumerate(zip(depths, projected, strict=True), start=1)
        )
        self.least_batch = least_batch(self.downsamples[-1])
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            x: image `(B, in_channels, *img_size)`.

        Returns:
            Features `(B, channels[i], *img_size / strides[i])`, finest first.

        Raises:
            ValueError: if the image has another shape.
        """
        if not torch.jit.is_tracing():
            self._check_image(x)
        features = [self.image_block(x)]
        for downsample, stage in zip(self.downsamples, self.stages, strict=True):
            x = stage(downsample(x))
            features.append(x)
        return features

    def _check_image(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != (self.in_channels, *self.img_size):
            raise ValueError(
                f"image has shape {tuple(x.shape)}; expected (B, {self.in_channels}, *{self.img_size}): position "
                "embeddings and projections are made for one img_size. Cut or pad images to it, or build the network "
                f"for another one, divisible by {self.divisor}."
            )
        coarsest = [n // s for n, s in zip(self.img_size, self.divisor, strict=True)]
        check_not_single(coarsest, self.divisor, batch=len(x), least_batch=self.least_batch)


class UNETRPPDecoder(nn.Module):
    """UNETR++'s decoder: transposed convolutions, additive skips and stages of paired attention.

    `channels` and `strides` name one entry per level, finest first, as the encoder returns its features; any encoder
    with these channels and strides will do. The finest level has convolutions in place of attention.

    Args:
        spatial_dims: 3; UNETR++ is a network for volumes.
        img_size: size of every image in voxels, as in the encoder.
        channels: channels of each feature; even and divisible by `num_heads`, except the first and the last.
        out_channels: channels of the logits.
        strides: stride of each feature, as one number or one per axis.
        depth: number of blocks of each stage.
        num_heads: attention heads of each block.
        projected: number of tokens that keys and values are projected to.
        norm: norm of the convolution block of the finest level; see `UNETRPPEncoder`.
        block: class of the blocks of the other levels; see `UNETRPPEncoder`.
        deep_supervision: True has heads at the three finest levels, False at the finest one only.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Shaker et al., arXiv:2212.04497, section "Overall Architecture".

    Example:
        >>> import torch
        >>> from scripts.networks import UNETRPPDecoder
        >>> decoder = UNETRPPDecoder(img_size=[16, 16, 16], channels=[4, 8, 16], out_channels=3, strides=[1, 2, 4])
        >>> features = [torch.zeros(1, 4, 16, 16, 16), torch.zeros(1, 8, 8, 8, 8), torch.zeros(1, 16, 4, 4, 4)]
        >>> [tuple(y.shape) for y in decoder(features)]
        [(1, 3, 16, 16, 16)]
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 3,
        img_size: int | Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        out_channels: int,
        strides: Sequence[int | Sequence[int]],
        depth: int = 3,
        num_heads: int = 4,
        projected: int = 64,
        norm: str | Sequence = "instance",
        block: Callable[..., nn.Module] = EPABlock,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        _check_levels(spatial_dims, channels, norm)
        check_positive(out_channels=out_channels, depth=depth)
        self.channels = tuple(channels)
        self.strides = level_strides(strides, len(channels), 3)
        self.img_size = fixed_size(img_size, self.strides[-1])
        self.deep_supervision = deep_supervision
        tokens = _tokens(self.img_size, self.strides)

        levels = range(len(channels) - 1)  # the coarsest map only goes up
        self.ups = nn.ModuleList(map(_upsample, channels[1:], channels, steps(self.strides)))
        attention = {"projected": projected, "num_heads": num_heads}
        width = channels[0]
        self.stages = nn.ModuleList([UnetResBlock(3, width, width, kernel_size=3, stride=1, norm_name=norm)])
        self.stages.extend(
            _stage(block, depth, tokens=tokens[level], channels=channels[level], **attention) for level in levels[1:]
        )
        self.heads = nn.ModuleList(
            nn.Conv3d(channels[level], out_channels, kernel_size=1)
            for level in (levels[:HEADS] if deep_supervision else levels[:1])
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *img_size / strides[i])`, finest first.

        Returns:
            Logits `(B, out_channels, *img_size / strides[i])` of every head, finest first.

        Raises:
            ValueError: if the features have other shapes.
        """
        if not torch.jit.is_tracing():
            self._check_features(features)
        x = features[-1]
        maps = []
        for level in reversed(range(len(self.ups))):
            x = self.stages[level](self.ups[level](x) + features[level])
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]  # coarser maps have no head

    def _check_features(self, features: list[Tensor]) -> None:
        got = [tuple(f.shape[1:]) for f in features]
        expected = [
            (width, *(n // s for n, s in zip(self.img_size, stride, strict=True)))
            for width, stride in zip(self.channels, self.strides, strict=True)
        ]
        if got != expected:
            raise ValueError(
                f"features have shapes (B, ...) with {got}; expected {expected}, finest first: this decoder is built "
                f"for the channels {self.channels} and for images of the size {self.img_size}."
            )


def _downsample(in_channels: int, out_channels: int, factor: tuple[int, ...]) -> nn.Module:
    """Patches of `factor` voxels, normalised in as many groups as there are input channels, where that divides."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=factor, stride=factor, bias=False),
        nn.GroupNorm(math.gcd(in_channels, out_channels), out_channels),
    )


def _upsample(in_channels: int, out_channels: int, factor: tuple[int, ...]) -> nn.Module:
    return nn.ConvTranspose3d(in_channels, out_channels, kernel_size=factor, stride=factor, bias=False)


def _stage(block: Callable[..., nn.Module], depth: int, **settings: int) -> nn.Module:
    return nn.Sequential(*(block(**settings) for _ in range(depth)))


def _initialise(module: nn.Module) -> None:
    """Start the linear layers of the encoder as the authors do; their decoder starts as torch does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_levels(spatial_dims: int, channels: Sequence[int], norm: str | Sequence) -> None:
    if spatial_dims != 3:
        raise ValueError(f"spatial_dims is {spatial_dims}; UNETR++ is a network for volumes: expected 3.")
    check_channels(channels)
    check_norm("norm", norm, channels[0])


def check_norm(name: str, norm: str | Sequence, channels: int) -> None:
    """Refuse a norm that MONAI does not build for so many channels, under the name of the argument."""
    try:
        get_norm_layer(name=norm, spatial_dims=3, channels=channels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {norm!r}; expected 'instance', 'batch' or [name, arguments] ({error}).") from error


def _tokens(img_size: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> list[int]:
    """Number of positions of each level's map."""
    return [math.prod(n // s for n, s in zip(img_size, stride, strict=True)) for stride in strides]
