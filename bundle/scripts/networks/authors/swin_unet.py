"""Swin-Unet as UTNet's authors compare with it (`yhygao/UTNet`): the arguments of its configuration, its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..swin_unet import SwinUNetDecoder, SwinUNetEncoder
from ..utnet_attention import position_index
from ..ynet import YNet
from .arguments import bind, require
from .keys import rename

OFFICIAL = ("model.swin_unet.SwinUnet",)
LEVELS = 4
INDEX = re.compile(r"\.attn\.relative_position_index$")
DEFAULTS = {
    "img_size": 224,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": ...,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "ape": False,
    "patch_norm": True,
    "use_checkpoint": False,
    "zero_head": False,  # with the next, what no number depends on
    "vis": False,
}
SHARED = ("img_size", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias", "qk_scale")
SHARED += ("drop_rate", "drop_path_rate", "use_checkpoint")


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build Swin-Unet from the authors' arguments.

    Args:
        official_class: one of `OFFICIAL`.
        arguments: those of the authors' class and the entries of its configuration.

    Returns:
        The network; as the authors' it takes images of `in_chans` channels and, where these are three, of one.

    Raises:
        ValueError: if an argument is unknown or not supported: another `patch_size` than 4, another number of levels
            than 4, `in_chans` 1, and an `img_size` of two numbers, with which the authors' network fails too.
        TypeError: if a required one is missing.
    """
    a = bind(official_class, arguments, DEFAULTS)
    require(official_class, a, patch_size=4)
    for name in ("depths", "num_heads"):
        if len(a[name]) != LEVELS:
            raise ValueError(f"{official_class}: {name} is {a[name]!r}; only {LEVELS} numbers are supported.")
    if a["in_chans"] == 1:
        raise ValueError(f"{official_class}: in_chans is 1; write 3: images of one channel are repeated to three.")
    if not isinstance(a["img_size"], int):
        raise ValueError(f"{official_class}: img_size is {a['img_size']!r}; only one number is supported.")
    shared = {name: a[name] for name in SHARED}
    encoder = SwinUNetEncoder(
        in_channels=a["in_chans"],
        feature_size=a["embed_dim"],
        patch_norm=a["patch_norm"],
        absolute_positions=a["ape"],
        **shared,
    )
    return YNet(
        encoder=encoder, decoder=SwinUNetDecoder(channels=encoder.channels, out_channels=a["num_classes"], **shared)
    )


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring the authors' weights under our keys; unknown keys stay as they are.

    The masks of shifted windows, which are constants of the size, are taken as they stand in the file.
    """
    sizes = {name: module.size for name, module in network.named_modules() if hasattr(module, "table")}
    left, ignored = dict(state_dict), {}
    for key in filter(INDEX.search, state_dict):
        size = sizes.get(INDEX.sub(".attn.position", _our_key(key)))
        if size is not None and torch.equal(left[key].cpu(), position_index(size)):
            del left[key]
            ignored[key] = "a constant of window_size, which the network computes itself"
    return rename(left, _our_key), ignored


def _our_key(key: str) -> str:
    key = re.sub(r"^swin_unet\.patch_embed\.proj\.", "encoder.embedding.", key)
    key = re.sub(r"^swin_unet\.patch_embed\.norm\.", "encoder.embedding_norm.", key)
    key = re.sub(r"^swin_unet\.absolute_pos_embed$", "encoder.positions", key)
    key = re.sub(r"^swin_unet\.layers\.(\d)\.blocks\.", r"encoder.stages.\1.", key)
    key = re.sub(r"^swin_unet\.layers\.(\d)\.downsample\.", r"encoder.merges.\1.", key)
    key = re.sub(r"^swin_unet\.norm\.", "encoder.norm.", key)
    key = re.sub(r"^swin_unet\.layers_up\.0\.", f"decoder.expands.{LEVELS - 2}.", key)
    key = re.sub(r"^swin_unet\.layers_up\.([1-3])\.blocks\.", _at_level("stages", LEVELS - 1), key)
    key = re.sub(r"^swin_unet\.layers_up\.([1-3])\.upsample\.", _at_level("expands", LEVELS - 2), key)
    key = re.sub(r"^swin_unet\.concat_back_dim\.([1-3])\.", _at_level("joins", LEVELS - 1), key)
    key = re.sub(r"^swin_unet\.norm_up\.", "decoder.norm.", key)
    key = re.sub(r"^swin_unet\.up\.", "decoder.final.", key)
    key = re.sub(r"^swin_unet\.output\.", "decoder.head.", key)
    return re.sub(r"\.attn\.relative_position_bias_table$", ".attn.position.table", key)


def _at_level(part: str, last: int) -> Callable[[re.Match[str]], str]:
    """Name of a part of the decoder, whose levels the authors count from the coarsest."""
    return lambda found: f"decoder.{part}.{last - int(found[1])}."
