"""MONAI's networks as a `YNet`: SwinUNETR and UNETR from our parts, the others from MONAI's own modules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial

import monai.networks.nets as nets
import torch
from monai.networks.nets import mednext
from torch import Tensor, nn

from ..monai_nets import MonaiDecoder, MonaiEncoder
from ..swin import SwinEncoder
from ..unetr import UNETRDecoder, ViTEncoder
from ..ynet import YNet
from .arguments import bind, require

MONAI = "monai.networks.nets"
SWIN_UNETR = f"{MONAI}.SwinUNETR"
SWIN = f"{SWIN_UNETR}(...).swinViT(x, normalize=True)"  # its encoder alone
CLASSES: dict[str, Callable[..., nn.Module]] = {
    SWIN_UNETR: nets.SwinUNETR,
    SWIN: nets.SwinUNETR,
    f"{MONAI}.UNETR": nets.UNETR,
    f"{MONAI}.UNet": nets.UNet,
    f"{MONAI}.DynUNet": nets.DynUNet,
    f"{MONAI}.SegResNet": nets.SegResNet,
    f"{MONAI}.MedNeXt": mednext.MedNeXt,
    f"{MONAI}.mednext.create_mednext": mednext.create_mednext,
    **{f"{MONAI}.MedNeXt{size}": partial(mednext.create_mednext, size) for size in "SBML"},
}
OFFICIAL = tuple(CLASSES)


def _aliases() -> dict[str, str]:
    """Other names that MONAI has for these classes: of the module that defines them, and of other spellings."""
    names = {kind: name for name, kind in reversed(CLASSES.items())}
    found = {}
    for module in (nets, *map(inspect.getmodule, CLASSES.values())):
        for name, value in vars(module).items() if module else ():
            size = re.fullmatch("MedNe[Xx]t([SBML])(mall|ase|edium|arge)?", name)  # lambdas without argument names
            official = f"{MONAI}.MedNeXt{size[1]}" if size else names.get(value) if callable(value) else None
            if official:
                found[f"{module.__name__}.{name}"] = official
    return found | {name + SWIN.removeprefix(SWIN_UNETR): SWIN for name, kind in found.items() if kind == SWIN_UNETR}


ALIASES = _aliases()

PREFIXES = {  # ours -> MONAI's
    nets.SwinUNETR: {
        "encoder.swinViT.": "swinViT.",
        "decoder.blocks.0.": "encoder1.",
        "decoder.blocks.1.": "encoder2.",
        "decoder.blocks.2.": "encoder3.",
        "decoder.blocks.3.": "encoder4.",
        "decoder.blocks.5.": "encoder10.",
        **{f"decoder.ups.{level}.": f"decoder{level + 1}." for level in range(5)},
        "decoder.head.": "out.",
    },
    nets.UNETR: {
        "encoder.vit.": "vit.",
        "decoder.blocks.0.": "encoder1.",
        **{f"encoder.pyramid.{level}.": f"encoder{level + 2}." for level in range(3)},
        **{f"decoder.ups.{level}.": f"decoder{level + 2}." for level in range(4)},
        "decoder.head.": "out.",
    },
}
CONSTANT = ("relative_position_index", "norm_cross_attn.weight", "norm_cross_attn.bias")  # of the size, or without use
STALE = re.compile(r"vit\.blocks\.\d+\.cross_attn\.")


class HiddenStates(nn.Module):
    """A decoder without weights: the features of the encoder but the image, as `swinViT` returns them."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Leave out the image, which is the finest feature."""
        return features[1:]


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build the network that a class of MONAI would build, as a `YNet`; see `authors.build`."""
    make = CLASSES[official_class]
    if make is nets.UNETR:
        return _unetr(official_class, arguments)
    if make is nets.SwinUNETR:
        return _swin_unetr(official_class, arguments)
    given = bind(official_class, arguments, _defaults(make))
    if make is mednext.MedNeXt:  # "layer" fits images of the kernel's size only
        require(official_class, given, norm_type="group")
    if make is nets.SegResNet:  # without it there are no logits
        require(official_class, given, use_conv_final=True)
    network = make(**given)
    decoder = MonaiDecoder(network=network)
    return YNet(encoder=MonaiEncoder(network=network), decoder=decoder, deep_supervision=decoder.deep_supervision)


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give MONAI's tensors our keys; see `authors.load`.

    Args:
        network: from `build`.
        state_dict: weights by MONAI's keys.
        official_class: as in `build`.

    Returns:
        Tensors by our keys, with the unknown ones under their own; the keys that are ignored, with the reason.

    Raises:
        ValueError: if two keys of one tensor (DynUNet names its modules twice) hold different values.
    """
    left, state = dict(state_dict), {}
    current = network.state_dict()
    for ours, theirs in _keys(network, official_class).items():
        values = [left.pop(key) for key in theirs if key in left]
        if any(not torch.equal(values[0], value) for value in values[1:]):
            raise ValueError(
                f"{', '.join(theirs)} are one tensor in {official_class}, but the file has several values."
            )
        if values:
            state[ours] = values[0]
        elif ours.endswith(CONSTANT):  # which files of older versions leave out
            state[ours] = current[ours]
    ignored = {key: "cross-attention, which MONAI before 1.6 made but never used" for key in left if STALE.match(key)}
    left = {key: value for key, value in left.items() if key not in ignored}
    return left | state, ignored


def _swin_unetr(official_class: str, arguments: Mapping[str, object]) -> YNet:
    given = bind(official_class, arguments, _defaults(nets.SwinUNETR))
    # use_flash_attention changes no number, hyena_* nothing while hyena is off
    require(official_class, given, patch_size=2, norm_layer=nn.LayerNorm, use_hyena=False, hyena_stages=None)
    if len(given["depths"]) != 4:
        raise ValueError(f"{official_class}: depths is {given['depths']!r}; only four stages are supported.")
    same = ("spatial_dims", "in_channels", "feature_size", "depths", "num_heads", "window_size", "mlp_ratio")
    same += ("qkv_bias", "patch_norm", "normalize", "downsample", "drop_rate", "attn_drop_rate", "use_v2")
    encoder = SwinEncoder(
        **{name: given[name] for name in same},
        drop_path_rate=given["dropout_path_rate"],
        use_checkpoint=given["use_checkpoint"],
        stem_channels=0,
    )
    if official_class == SWIN:
        encoder.normalize = True  # as the name says, whatever SwinUNETR itself does
        encoder.divisor = (1,) * given["spatial_dims"]  # it pads what it cannot divide
        return YNet(encoder=encoder, decoder=HiddenStates())
    decoder = UNETRDecoder(
        spatial_dims=given["spatial_dims"],
        channels=encoder.channels,
        out_channels=given["out_channels"],
        feature_size=given["feature_size"],
        blocks=[True, True, True, True, False, True],
        norm_name=given["norm_name"],
    )
    return YNet(encoder=encoder, decoder=decoder)


def _unetr(official_class: str, arguments: Mapping[str, object]) -> YNet:
    given = bind(official_class, arguments, _defaults(nets.UNETR))  # save_attn keeps what is computed, no number more
    encoder = ViTEncoder(**{name: value for name, value in given.items() if name not in ("out_channels", "save_attn")})
    decoder = UNETRDecoder(
        out_channels=given["out_channels"],
        spatial_dims=given["spatial_dims"],
        channels=encoder.channels,
        feature_size=given["feature_size"],
        blocks=[True, False, False, False, False],
        norm_name=given["norm_name"],
        res_block=given["res_block"],
    )
    return YNet(encoder=encoder, decoder=decoder)


def _defaults(official: Callable[..., nn.Module]) -> dict[str, object]:
    """Arguments of MONAI's class with their defaults, as `bind` takes them."""
    parameters = inspect.signature(official).parameters.values()
    return {p.name: ... if p.default is p.empty else p.default for p in parameters}


def _keys(network: YNet, official_class: str) -> dict[str, tuple[str, ...]]:
    """Our keys -> MONAI's for the same tensor."""
    kind = CLASSES[official_class]
    if kind not in PREFIXES:
        halves = {"encoder": network.encoder, "decoder": network.decoder}
        return {
            f"{name}.{ours}": theirs
            for name, half in halves.items()
            for ours, theirs in getattr(half, "monai_keys", {}).items()
        }
    return {
        key: (new + key.removeprefix(old),)
        for key in network.state_dict()
        for old, new in PREFIXES[kind].items()
        if key.startswith(old)
    }
