"""UNETR++ of its authors (github.com/Amshaker/unetr_plus_plus): one class per data set there, one network here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..epa import EPABlock, SeparateProjections, SumBranches, UnbiasedProjection
from ..unetr_pp import UNETRPPDecoder, UNETRPPEncoder, check_norm
from ..ynet import YNet
from .arguments import bind, one_of, require


class Settings(NamedTuple):
    """What the authors write into the code of a class."""

    in_channels: int
    img_size: object  # `...` where their constructor asks for it
    stem: tuple[int, int, int]
    block: Callable[..., nn.Module]


TWO_PROJECTIONS = partial(EPABlock, convolutions=2, projection=SeparateProjections)
SUM = partial(EPABlock, projection=UnbiasedProjection, merge=SumBranches)
SETTINGS = {
    f"unetr_pp.network_architecture.{name}.unetr_pp_{name}.UNETR_PP": settings
    for name, settings in {
        "synapse": Settings(1, ..., (2, 4, 4), EPABlock),
        "acdc": Settings(1, (16, 160, 160), (1, 4, 4), TWO_PROJECTIONS),
        "lung": Settings(1, (32, 192, 192), (1, 4, 4), TWO_PROJECTIONS),
        "tumor": Settings(4, (128, 128, 128), (4, 4, 4), SUM),
    }.items()
}
OFFICIAL = tuple(SETTINGS)

DEFAULTS = {
    "in_channels": ...,
    "out_channels": ...,
    "feature_size": 16,
    "hidden_size": 256,
    "num_heads": 4,
    "pos_embed": "perceptron",
    "norm_name": "instance",
    "dropout_rate": 0.0,
    "depths": None,
    "dims": None,
    "conv_op": nn.Conv3d,
    "do_ds": True,
}

RENAMED = (  # patterns of the authors' keys, and what they become; in this order
    (r"^encoder1\.", r"encoder.image_block."),
    (r"^unetr_pp_encoder\.downsample_layers\.(\d+)\.0\.conv\.", r"encoder.downsamples.\1.0."),
    (r"^unetr_pp_encoder\.downsample_layers\.(\d+)\.1\.", r"encoder.downsamples.\1.1."),
    (r"^unetr_pp_encoder\.stages\.", r"encoder.stages."),
    (r"^decoder([2-5])\.transp_conv\.conv\.", lambda found: f"decoder.ups.{int(found[1]) - 2}."),
    (r"^decoder([2-5])\.decoder_block\.0\.", lambda found: f"decoder.stages.{int(found[1]) - 2}."),
    (r"^out([1-3])\.conv\.conv\.", lambda found: f"decoder.heads.{int(found[1]) - 1}."),
    (r"\.epa_block\.temperature$", r".attention.channel_temperature"),
    (r"\.epa_block\.temperature2$", r".attention.spatial_temperature"),
    (r"\.epa_block\.EF$", r".attention.projection.matrix"),
    (r"\.epa_block\.E\.", r".attention.projection.keys."),
    (r"\.epa_block\.F\.", r".attention.projection.values."),
    (r"\.epa_block\.out_proj\.", r".attention.merge.spatial."),
    (r"\.epa_block\.out_proj2\.", r".attention.merge.channel."),
    (r"\.epa_block\.", r".attention."),
    (r"\.conv5([12])\.", lambda found: f".convolutions.{int(found[1]) - 1}."),
    (r"\.conv8\.", r".out."),
)


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build the network of one of the authors' classes.

    Args:
        official_class: one of `OFFICIAL`.
        arguments: their constructor arguments. `img_size`, which in their code only the Synapse class has and only in
            part obeys, sets the size of the image for every class; without it the size is the one in their code.
            `pos_embed`, `dropout_rate` and `conv_op` change nothing there and here: embeddings are learned, dropout is
            0.1, convolutions are 3D.

    Returns:
        The network.

    Raises:
        ValueError: if an argument is unknown or its value is not supported.
        TypeError: if a required argument is missing.
    """
    settings = SETTINGS[official_class]
    given = bind(official_class, arguments, DEFAULTS | {"img_size": settings.img_size})
    width = given["feature_size"]
    if not isinstance(width, int) or width < 2 or width % 2:  # 4 heads in the decoder
        raise ValueError(f"{official_class}: feature_size is {width!r}; only even numbers are supported.")
    channels = [width * 2**level for level in range(5)]
    given["dims"] = channels[1:] if given["dims"] is None else list(given["dims"])
    given["depths"] = [3, 3, 3, 3] if given["depths"] is None else list(given["depths"])
    require(official_class, given, in_channels=settings.in_channels, dims=channels[1:], hidden_size=channels[-1])
    one_of(official_class, given, pos_embed=("perceptron", "conv"))
    if not 0 <= given["dropout_rate"] <= 1:
        raise ValueError(f"{official_class}: dropout_rate is {given['dropout_rate']}; expected a number in [0, 1].")
    check_norm(f"{official_class}: norm_name", given["norm_name"], width)
    common = {
        "img_size": given["img_size"],
        "channels": channels,
        "strides": [1, *(tuple(s * 2**stage for s in settings.stem) for stage in range(4))],
        "norm": given["norm_name"],
        "block": settings.block,
    }
    return YNet(
        encoder=UNETRPPEncoder(
            in_channels=given["in_channels"], depths=given["depths"], num_heads=given["num_heads"], **common
        ),
        decoder=UNETRPPDecoder(out_channels=given["out_channels"], deep_supervision=bool(given["do_ds"]), **common),
        deep_supervision=bool(given["do_ds"]),
    )


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the authors' weights to those of the network; keys that it does not have keep the authors' names.

    Raises:
        ValueError: if two keys that are one tensor in the authors' network differ.
    """
    target = network.state_dict()
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for key, value in state_dict.items():
        name = _our_name(key)
        shared = re.sub(r"\.projection\.(keys|values)\.", ".projection.both.", name)
        name = next((n for n in (name, shared) if n in target), key)
        if name in source and not torch.equal(state[name], value):
            raise ValueError(f"{source[name]} and {key} differ, but they are one tensor in {official_class}.")
        state[name], source[name] = value, key
    return state, {}


def _our_name(key: str) -> str:
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key
