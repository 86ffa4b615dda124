"""UTNet as its authors published it (`yhygao/UTNet`): their arguments and their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..utnet import LEVELS, UTNetDecoder, UTNetEncoder
from ..utnet_attention import position_index
from ..ynet import YNet
from . import bind, require

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
INDEX = ".relative_position_encoding.relative_position_index"
TABLE = ".relative_position_encoding.relative_position_bias_table"


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build UTNet, or UTNet with attention in the encoder only, from the authors' arguments.

    Raises:
        ValueError: if an argument is unknown or not supported: `bottleneck` True, with which the authors' attention
            levels fail too (they refer to a class that their module does not have).
        TypeError: if a required one is missing.
    """
    a = bind(official_class, arguments, DEFAULTS)
    require(official_class, a, bottleneck=False)
    levels = attention_levels(official_class, a["block_list"], range(LEVELS))
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
    return rename(state_dict, _our_key)


def _our_key(key: str) -> str:
    key = re.sub(r"^inc\.", "encoder.stages.0.", key)
    key = re.sub(r"^down([1-4])\.(blocks|conv)\.", r"encoder.stages.\1.", key)
    key = re.sub(r"^up([1-4])\.", lambda up: f"decoder.ups.{LEVELS - 1 - int(up[1])}.", key)
    key = re.sub(r"^(decoder\.ups\.\d)\.conv\.", r"\1.blocks.", key)
    key = re.sub(r"^outc\.", "decoder.heads.0.", key)
    return re.sub(r"^out([1-3])\.", lambda out: f"decoder.heads.{LEVELS - 1 - int(out[1])}.", key)


def rename(state_dict: Mapping[str, Tensor], our_key: Callable[[str], str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Apply the names of a family, and leave out the index tables of the position biases.

    Args:
        state_dict: weights by the authors' keys.
        our_key: function from an authors' key to ours.

    Returns:
        Weights by our keys, and the authors' keys that are left out -> reason.
    """
    state: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for key, value in state_dict.items():
        ours = our_key(key).replace(TABLE, ".position.table")
        if key.endswith(INDEX) and _is_position_index(value):
            ignored[key] = "a constant of reduce_size, which the network computes itself"
        else:
            state[key if ours in state else ours] = value  # two keys for one place: the second is left to be refused
    return state, ignored


def _is_position_index(value: Tensor) -> bool:
    return value.ndim == 2 and torch.equal(value.cpu(), position_index(math.isqrt(value.shape[0])))


def attention_levels(official_class: str, block_list: object, allowed: Sequence[int]) -> list[int]:
    """Levels that the authors' `block_list` names, one digit each.

    Raises:
        ValueError: if it names anything else.
    """
    digits = [str(level) for level in allowed]
    block_list = str(block_list) if isinstance(block_list, int) else block_list  # a command line reads 1234 as a number
    if not isinstance(block_list, Sequence) or any(digit not in digits for digit in block_list):
        raise ValueError(f"{official_class}: block_list is {block_list!r}; expected digits of '{''.join(digits)}'.")
    return [level for level in allowed if str(level) in block_list]


def from_end(
    official_class: str, arguments: Mapping[str, object], name: str, levels: Sequence[int], count: int
) -> list[int]:
    """Values of the levels from a list that the authors read from its end, 1 where a level does not need one.

    Args:
        official_class: for messages.
        arguments: all of the class.
        name: of the list.
        levels: those that need a value; level i takes entry i - count.
        count: number of levels.

    Returns:
        One value per level.

    Raises:
        ValueError: if the list is too short.
    """
    values, needed = arguments[name], count - min(levels, default=count)
    if not isinstance(values, Sequence) or len(values) < needed or any(values[i - count] < 1 for i in levels):
        raise ValueError(
            f"{official_class}: {name} is {values!r}; block_list {arguments['block_list']!r} needs a list of at least "
            f"{needed} numbers, the last one for the coarsest level, each at least 1."
        )
    return [values[i - count] if i in levels else 1 for i in range(count)]
