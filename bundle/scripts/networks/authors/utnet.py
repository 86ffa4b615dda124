"""UTNet as its authors published it (`yhygao/UTNet`): their arguments and their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..utnet import LEVELS, UTNetDecoder, UTNetEncoder
from ..ynet import YNet
from .arguments import attention_levels, bind, from_end, require
from .keys import TABLE, drop_position_indices, rename

FULL, ENCODER_ONLY = OFFICIAL = ("model.utnet.UTNet", "model.utnet.UTNet_Encoderonly")
DEFAULTS = {
    "in_chan": ...,
    "base_chan": ...,
    "num_classes": 1,
    "reduce_size": 8,
    "block_list": "234",
    "num_blocks": (1, 2, 4),
    "projection": "interp",
    "num_heads": (2, 4, 8),
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "bottleneck": False,
    "maxpool": True,
    "rel_pos": True,
    "aux_loss": False,
}
ATTENTION = ("reduce_size", "projection", "rel_pos", "attn_drop", "proj_drop")


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build UTNet, or UTNet with attention in the encoder only, from the authors' arguments.

    Raises:
        ValueError: if an argument is unknown or not supported: `bottleneck` True, with which the authors' levels
            with attention fail too (they refer to a class that their module does not have; the others ignore it).
        TypeError: if a required one is missing.
    """
    a = bind(official_class, arguments, DEFAULTS)
    levels = attention_levels(official_class, a["block_list"], range(LEVELS))
    if any(levels) or (levels and official_class == FULL):
        require(official_class, a, bottleneck=False)
    attention = {name: a[name] for name in ATTENTION}
    encoder = UTNetEncoder(
        in_channels=a["in_chan"],
        feature_size=a["base_chan"],
        attention_levels=levels,
        num_blocks=[1, *from_end(official_class, a, "num_blocks", [i - 1 for i in levels if i], LEVELS - 1)],
        num_heads=from_end(official_class, a, "num_heads", levels, LEVELS),
        strided_levels=[] if a["maxpool"] else [i for i in levels if i],  # the authors' other levels pool in any case
        **attention,
    )
    up_levels = [i for i in levels if i < LEVELS - 1] if official_class == FULL else []
    decoder = UTNetDecoder(
        channels=encoder.channels,
        out_channels=a["num_classes"],
        attention_levels=up_levels,
        num_heads=from_end(official_class, a, "num_heads", up_levels, LEVELS - 1),  # those of the next coarser level
        deep_supervision=bool(a["aux_loss"]),
        **attention,
    )
    return YNet(encoder=encoder, decoder=decoder, deep_supervision=bool(a["aux_loss"]))


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring the authors' weights under our keys; unknown keys stay as they are."""
    weights, ignored = drop_position_indices(state_dict)
    return rename(weights, our_key), ignored


def our_key(key: str) -> str:
    """Our name of an authors' key."""
    key = re.sub(r"^inc\.", "encoder.stages.0.", key)
    key = re.sub(r"^down([1-4])\.(blocks|conv)\.", r"encoder.stages.\1.", key)
    key = re.sub(r"^up([1-4])\.", lambda up: f"decoder.ups.{LEVELS - 1 - int(up[1])}.", key)
    key = re.sub(r"^(decoder\.ups\.\d)\.conv\.", r"\1.blocks.", key)
    key = re.sub(r"^outc\.", "decoder.heads.0.", key)
    key = re.sub(r"^out([1-3])\.", lambda out: f"decoder.heads.{LEVELS - 1 - int(out[1])}.", key)
    return key.replace(TABLE, ".position.table")
