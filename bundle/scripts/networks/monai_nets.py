"""MONAI's U-shaped networks, cut in two above the bottleneck: their own modules as encoder and decoder of a Y."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from monai.networks.nets.mednext import MedNeXt
from torch import Tensor, nn

from .levels import check_count, check_image, check_not_single, least_batch


class MonaiEncoder(nn.Module):
    """The way down of a MONAI network: a chain of its own stages, each of which makes one feature of the one before.

    What comes after the coarsest feature, and could be fused with clinical variables, belongs to `MonaiDecoder`:
    MedNeXt's bottleneck does, those of U-Net and DynUNet make the coarsest feature.

    Args:
        network: a `UNet`, `DynUNet`, `SegResNet` or `MedNeXt` of MONAI. Its way down is used, not copied; the same
            network, or another one of the same arguments, goes into `MonaiDecoder`.

    Attributes:
        channels: channels of each feature, finest first.
        strides: stride of each feature per axis, finest first.
        divisor: what each axis of the image must be divisible by.
        monai_keys: keys of MONAI's state dict for each of this module's.

    Raises:
        TypeError: if the network is of another class.
        ValueError: if it has no such halves.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> from scripts.networks import MonaiDecoder, MonaiEncoder, YNet
        >>> network = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=[4, 8, 16], strides=[2, 2])
        >>> encoder = MonaiEncoder(network=network)
        >>> encoder.channels, encoder.strides
        ((4, 8, 16), ((2, 2), (4, 4), (4, 4)))
        >>> YNet(encoder=encoder, decoder=MonaiDecoder(network=network))(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, *, network: nn.Module) -> None:
        super().__init__()
        halves = cut(network)
        self.in_channels = halves.in_channels
        self.channels = tuple(halves.channels)
        self.strides = halves.strides()
        self.divisor = self.strides[-1]
        self.stages = nn.ModuleList(halves.stages)
        self.least_batch = least_batch(self.stages[-1])
        self.monai_keys = _monai_keys(self, network)

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
            check_image(x, self.in_channels, self.divisor)
            coarsest = [size // stride for size, stride in zip(x.shape[2:], self.divisor, strict=True)]
            check_not_single(coarsest, self.divisor, batch=len(x), least_batch=self.least_batch)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class MonaiDecoder(nn.Module):
    """The way up of a MONAI network: its own bottleneck (MedNeXt), up blocks and heads.

    Args:
        network: see `MonaiEncoder`. With its `deep_supervision` (DynUNet, MedNeXt) there are heads at coarser levels.

    Attributes:
        channels: channels of each feature it expects, finest first.
        strides: stride of each of them per axis.
        deep_supervision: whether there are coarser heads.
        monai_keys: keys of MONAI's state dict for each of this module's.

    Raises:
        TypeError: if the network is of another class.
        ValueError: if it has no such halves.
    """

    def __init__(self, *, network: nn.Module) -> None:
        super().__init__()
        halves = cut(network)
        self.channels = tuple(halves.channels)
        self.strides = halves.strides()
        self.bottleneck = halves.bottleneck
        self.ups = nn.ModuleList(halves.ups)
        self.heads = nn.ModuleList(halves.heads)
        self.deep_supervision = len(self.heads) > 1
        self.monai_keys = _monai_keys(self, network)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Decode features.

        Args:
            features: maps `(B, channels[i], *spatial / strides[i])`, finest first.

        Returns:
            Logits of every head, finest first, each at the size of its level (MONAI's DynUNet enlarges and stacks
            them; MONAI's networks return the coarser ones in training mode only).

        Raises:
            ValueError: if the number of features is wrong.
        """
        check_count(features, self.channels)
        x = self.bottleneck(features[-1])
        maps = [x]
        for level in reversed(range(len(self.ups))):
            x = self.ups[level](x, features[level])
            maps.insert(0, x)
        return [head(x) for head, x in zip(self.heads, maps, strict=False)]


@dataclass(kw_only=True)
class Halves:
    """Modules of a network, all lists finest first.

    Args:
        in_channels: channels of the image.
        channels: channels of each feature.
        steps: stride of each stage relative to the stage before, one number or one per axis.
        spatial_dims: 2 or 3.
        stages: modules of the encoder; each makes a feature of the feature before.
        ups: modules of the decoder, `up(coarser map, skip)`; the first one leads to the finest feature's level.
        heads: modules that make logits of the finest maps.
        bottleneck: what the coarsest feature passes before the last entry of `ups`.
    """

    in_channels: int
    channels: Sequence[int]
    steps: Sequence[int | Sequence[int]]
    spatial_dims: int
    stages: Sequence[nn.Module]
    ups: Sequence[nn.Module]
    heads: Sequence[nn.Module]
    bottleneck: nn.Module = field(default_factory=nn.Identity)

    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Stride of each feature per axis."""
        steps = [(s,) * self.spatial_dims if isinstance(s, int) else s for s in self.steps]
        return tuple(zip(*(itertools.accumulate(axis, operator.mul) for axis in zip(*steps, strict=True)), strict=True))


class ConcatUp(nn.Module):
    """U-Net's up block: the coarser map is concatenated to the skip.

    Args:
        up: block that takes both and upsamples.
    """

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.up = up

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join the coarser map `(B, C, *spatial)` and the skip `(B, D, *spatial)`, then upsample."""
        return self.up(torch.cat([skip, x], dim=1))  # (B, D + C, *spatial)


class SumUp(nn.Module):
    """Up block of SegResNet and MedNeXt: the upsampled map is added to the skip.

    Args:
        up: block that upsamples.
        blocks: blocks that the sum passes.
    """

    def __init__(self, up: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.blocks = blocks

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsample the coarser map `(B, C, *spatial)` and add the skip `(B, D, *spatial * 2)`."""
        return self.blocks(self.up(x) + skip)


def cut(network: nn.Module) -> Halves:
    """Name the modules of a MONAI network by what they do in a Y.

    Args:
        network: see `MonaiEncoder`; subclasses, which may connect their modules in another way, are refused.

    Returns:
        The modules, not copied.

    Raises:
        TypeError: if the network is of another class.
        ValueError: if its way up does not fit its way down.
    """
    if type(network) not in CUTS:
        known = ", ".join(kind.__name__ for kind in CUTS)
        raise TypeError(f"network is a {type(network).__name__}; expected one of MONAI's {known}.")
    halves = CUTS[type(network)](network)
    if len(halves.ups) != len(halves.stages) - 1:
        raise ValueError(
            f"{type(network).__name__} goes {len(halves.stages) - 1} levels down but {len(halves.ups)} up: give it "
            "as many entries for the way up."
        )
    return halves


def _cut_unet(network: UNet) -> Halves:
    downs, ups, block = [], [], network.model
    for _ in range(len(network.channels) - 1):
        down, skip, up = block
        downs.append(down)
        ups.append(ConcatUp(up))
        block = skip.submodule
    return Halves(
        in_channels=network.in_channels,
        channels=network.channels,
        steps=[*network.strides[: len(downs)], 1],
        spatial_dims=network.dimensions,
        stages=[*downs, block],
        ups=ups,
        heads=[nn.Identity()],  # the finest up block makes the logits
    )


def _cut_dynunet(network: DynUNet) -> Halves:
    return Halves(
        in_channels=network.in_channels,
        channels=network.filters,
        steps=network.strides,
        spatial_dims=network.spatial_dims,
        stages=[network.input_block, *network.downsamples, network.bottleneck],
        ups=network.upsamples[::-1],
        heads=[network.output_block, *(network.deep_supervision_heads if network.deep_supervision else [])],
    )


def _cut_segresnet(network: SegResNet) -> Halves:
    if not network.use_conv_final:
        raise ValueError("use_conv_final is False: SegResNet has no logits then. Set it to True.")
    dropout = [] if network.dropout_prob is None else [network.dropout]
    first, *rest = network.down_layers
    ups = [SumUp(up, blocks) for up, blocks in zip(network.up_samples, network.up_layers, strict=True)]
    return Halves(
        in_channels=network.in_channels,
        channels=[network.init_filters * 2**level for level in range(len(network.down_layers))],
        steps=[1, *[2] * len(rest)],
        spatial_dims=network.spatial_dims,
        stages=[nn.Sequential(network.convInit, *dropout, first), *rest],
        ups=ups[::-1],
        heads=[network.conv_final],
    )


def _cut_mednext(network: MedNeXt) -> Halves:
    befores = [network.stem, *network.down_blocks]
    ups = [SumUp(up, blocks) for up, blocks in zip(network.up_blocks, network.dec_stages, strict=True)]
    return Halves(
        in_channels=network.stem.in_channels,
        channels=[network.stem.out_channels * 2**level for level in range(len(befores))],
        steps=[1, *[2] * len(network.down_blocks)],
        spatial_dims=len(network.stem.kernel_size),
        stages=[*map(nn.Sequential, befores[:-1], network.enc_stages), befores[-1]],
        bottleneck=network.bottleneck,
        ups=ups[::-1],
        heads=[network.out_0, *(network.out_blocks[::-1] if network.do_ds else [])],
    )


CUTS: dict[type[nn.Module], Callable[..., Halves]] = {
    UNet: _cut_unet,
    DynUNet: _cut_dynunet,
    SegResNet: _cut_segresnet,
    MedNeXt: _cut_mednext,
}


def _monai_keys(half: nn.Module, network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Keys that the network has for each tensor of its half; several where MONAI names a module twice (DynUNet)."""
    names: dict[int, list[str]] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(key)
    return {key: tuple(names[id(tensor)]) for key, tensor in half.state_dict(keep_vars=True).items()}
