"""ResNet-UTNet and, with an empty `block_list`, ResNet50-UNet, as UTNet's authors published them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..resnet_utnet import LEVELS, ResNetEncoder, ResNetUNetDecoder
from ..ynet import YNet
from .arguments import attention_levels, bind, from_end, require
from .keys import TABLE, drop_position_indices, rename
from .utnet import ATTENTION

OFFICIAL = ("model.resnet_utnet.ResNet_UTNet",)
DEFAULTS = {
    "in_ch": ...,
    "num_class": ...,
    "reduce_size": 8,
    "block_list": "234",
    "num_blocks": (1, 2, 4),
    "projection": "interp",
    "num_heads": (4, 4, 4),
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "rel_pos": True,
    "block_units": (3, 4, 9),
    "width_factor": 1,
}


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build ResNet-UTNet from the authors' arguments.

    Args:
        official_class: one of `OFFICIAL`.
        arguments: by the authors' names. `in_ch` is required but changes nothing, as in their code.

    Returns:
        The network; as the authors' it takes images of three channels or of one, which is repeated.

    Raises:
        ValueError: if an argument is unknown or not supported: `width_factor` other than 1, with which the authors'
            network fails too (its decoder has fixed widths).
        TypeError: if a required one is missing.
    """
    a = bind(official_class, arguments, DEFAULTS)
    require(official_class, a, width_factor=1)
    named = attention_levels(official_class, a["block_list"], range(LEVELS + 1))
    levels = [level for level in named if level < LEVELS]  # the authors allow 4, and build nothing for it
    divisors = from_end(official_class, a, "num_heads", levels, LEVELS)
    encoder = ResNetEncoder(
        in_channels=3,
        block_units=a["block_units"],
        attention_levels=levels,
        num_blocks=from_end(official_class, a, "num_blocks", levels, LEVELS),
        # the authors pass what they mean as the width of a head in the place of the number of heads
        num_heads=[width // n for width, n in zip((64, 256, 512, 1024), divisors, strict=True)],
        **{name: a[name] for name in ATTENTION},
    )
    return YNet(encoder=encoder, decoder=ResNetUNetDecoder(channels=encoder.channels, out_channels=a["num_class"]))


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Bring the authors' weights under our keys; unknown keys stay as they are."""
    weights, ignored = drop_position_indices(state_dict)
    return rename(weights, _our_key), ignored


def _our_key(key: str) -> str:
    key = re.sub(r"^resnet\.root\.", "encoder.root.", key)
    key = re.sub(
        r"^resnet\.body\.block([1-3])\.unit([1-9]\d*)\.",
        lambda unit: f"encoder.stages.{int(unit[1]) - 1}.{int(unit[2]) - 1}.",
        key,
    )
    key = re.sub(r"^trans_([0-3])\.blocks\.", r"encoder.attention.\1.", key)
    key = re.sub(r"^up([1-3])\.", lambda up: f"decoder.ups.{LEVELS - 1 - int(up[1])}.", key)
    key = re.sub(r"^(decoder\.ups\.\d)\.conv\.", r"\1.blocks.", key)
    key = re.sub(r"^output\.", "decoder.head.", key)
    return key.replace(TABLE, ".position.table")
