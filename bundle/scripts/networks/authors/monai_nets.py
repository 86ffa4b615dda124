"""MONAI's networks as a `YNet`: SwinUNETR and UNETR from our parts, the others from MONAI's own modules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

import monai.networks.nets as nets
import torch
from monai.networks.nets import mednext
from torch import Tensor, nn

from ..monai_nets import MonaiDecoder, MonaiEncoder
from ..swin import SwinEncoder
from ..unetr import UNETRDecoder, ViTEncoder
from ..ynet import YNet
from . import bind, require

SWIN_UNETR = "monai.networks.nets.SwinUNETR"
SWIN = "monai.networks.nets.SwinUNETR(...).swinViT(x, normalize=True)"  # its encoder alone
UNETR = "monai.networks.nets.UNETR"
CUT: dict[str, Callable[..., nn.Module]] = {
    "monai.networks.nets.UNet": nets.UNet,
    "monai.networks.nets.DynUNet": nets.DynUNet,
    "monai.networks.nets.SegResNet": nets.SegResNet,
    "monai.networks.nets.MedNeXt": mednext.MedNeXt,
    "monai.networks.nets.mednext.MedNeXt": mednext.MedNeXt,
    "monai.networks.nets.mednext.create_mednext": mednext.create_mednext,
}
OFFICIAL = (SWIN_UNETR, SWIN, UNETR, *CUT)

PREFIXES = {  # ours -> MONAI's
    SWIN_UNETR: {
        "encoder.swinViT.": "swinViT.",
        "decoder.blocks.0.": "encoder1.",
        "decoder.blocks.1.": "encoder2.",
        "decoder.blocks.2.": "encoder3.",
        "decoder.blocks.3.": "encoder4.",
        "decoder.blocks.5.": "encoder10.",
        **{f"decoder.ups.{level}.": f"decoder{level + 1}." for level in range(5)},
        "decoder.head.": "out.",
    },
    SWIN: {"encoder.swinViT.": "swinViT."},
    UNETR: {
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
    if official_class == UNETR:
        return _unetr(arguments)
    if official_class in (SWIN_UNETR, SWIN):
        return _swin_unetr(official_class, arguments)
    make = CUT[official_class]
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
    return state | left, ignored


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


def _unetr(arguments: Mapping[str, object]) -> YNet:
    given = bind(UNETR, arguments, _defaults(nets.UNETR))
    require(UNETR, given, save_attn=False)
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
    if official_class in CUT:
        halves = {"encoder": network.encoder, "decoder": network.decoder}
        return {
            f"{name}.{ours}": theirs
            for name, half in halves.items()
            for ours, theirs in getattr(half, "monai_keys", {}).items()
        }
    return {
        key: (new + key.removeprefix(old),)
        for key in network.state_dict()
        for old, new in PREFIXES[official_class].items()
        if key.startswith(old)
    }
