"""MedNeXt as its authors build it: `MIC-DKFZ/MedNeXt`, version 1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..mednext import MedNeXtDecoder, MedNeXtEncoder
from ..ynet import YNet
from .arguments import bind, one_of, require
from .keys import rename

MEDNEXT = "nnunet_mednext.network_architecture.mednextv1.MedNextV1.MedNeXt"
CREATE = "nnunet_mednext.network_architecture.mednextv1.create_mednext_v1.create_mednext_v1"
SIZES = {  # functions of one variant each, to its name
    CREATE.replace("create_mednext_v1.create_mednext_v1", f"create_mednext_v1.create_mednextv1_{size}"): size[0].upper()
    for size in ("small", "base", "medium", "large")
}
OFFICIAL = (MEDNEXT, CREATE, *SIZES)
ALIASES = {"nnunet_mednext.MedNeXt": MEDNEXT, "nnunet_mednext.create_mednext_v1": CREATE}
DUMMY = "dummy_tensor"
LEVELS = 5  # strides 1 to 16
ENTRIES = 2 * LEVELS - 1  # of the authors' lists: down the encoder, the bottleneck, up the decoder

MEDNEXT_DEFAULTS = {
    "in_channels": ...,
    "n_channels": ...,
    "n_classes": ...,
    "exp_r": 4,
    "kernel_size": 7,
    "enc_kernel_size": None,
    "dec_kernel_size": None,
    "deep_supervision": False,
    "do_res": False,
    "do_res_up_down": False,
    "checkpoint_style": None,
    "block_counts": (2,) * ENTRIES,
    "norm_type": "group",
    "dim": "3d",
    "grn": False,
}
CREATE_DEFAULTS = {
    "num_input_channels": ...,
    "num_classes": ...,
    "model_id": ...,
    "kernel_size": 3,
    "deep_supervision": False,
}
SIZE_DEFAULTS = {"num_input_channels": ..., "num_classes": ..., "kernel_size": 3, "ds": False}
RATIOS = (2, 3, 4, 4, 4, 4, 4, 3, 2)
MODELS = {  # table 1 of the paper
    "S": {"exp_r": 2},
    "B": {"exp_r": RATIOS},
    "M": {"exp_r": RATIOS, "block_counts": (3, 4, 4, 4, 4, 4, 4, 4, 3), "checkpoint_style": "outside_block"},
    "L": {
        "exp_r": (3, 4, 8, 8, 8, 8, 8, 4, 3),
        "block_counts": (3, 4, 8, 8, 8, 8, 8, 4, 3),
        "checkpoint_style": "outside_block",
    },
}
RENAMED = (
    (r"^stem\.", "encoder.stem."),
    (r"^enc_block_([0-3])\.", r"encoder.stages.\1."),
    (r"^down_([0-3])\.", r"encoder.downs.\1."),
    (r"^bottleneck\.", f"decoder.stages.{LEVELS - 1}."),
    (r"^up_([0-3])\.", r"decoder.ups.\1."),
    (r"^dec_block_([0-3])\.", r"decoder.stages.\1."),
    (r"^out_([0-4])\.conv_out\.", r"decoder.heads.\1."),
    (r"\.grn_(beta|gamma)$", r".global_resp_\1"),
)


def build(official_class: str, arguments: Mapping[str, object]) -> YNet:
    """Build the network of `MedNeXt(...)`, `create_mednext_v1(...)` or the function of one variant.

    Args:
        official_class: one of `OFFICIAL`.
        arguments: by the authors' names. A `kernel_size` other than None wins over `enc_kernel_size` and
            `dec_kernel_size`, as in their code, and its default is 7.

    Returns:
        The network, randomly initialised.

    Raises:
        ValueError: if an argument is unknown or not supported.
        TypeError: if a required argument is missing.
    """
    if official_class == CREATE:
        return _create(bind(CREATE, arguments, CREATE_DEFAULTS))
    if official_class in SIZES:
        given = bind(official_class, arguments, SIZE_DEFAULTS)
        return _create(given | {"model_id": SIZES[official_class], "deep_supervision": given["ds"]})
    given = bind(MEDNEXT, arguments, MEDNEXT_DEFAULTS)
    one_of(MEDNEXT, given, dim=("2d", "3d"), norm_type=("group", "layer"), checkpoint_style=(None, "outside_block"))
    if given["dim"] == "2d":
        require(f"{MEDNEXT}, whose layer normalisation fits no 2D map", given, norm_type="group")
    encoder_kernel, decoder_kernel = _kernels(given)
    ratios, blocks = _entries(given, "exp_r"), _entries(given, "block_counts")
    common = {
        "spatial_dims": int(given["dim"][0]),
        "channels": [given["n_channels"] * 2**level for level in range(LEVELS)],
        "residual": bool(given["do_res"]),
        "resampling_residual": bool(given["do_res_up_down"]),
        "norm": given["norm_type"],
        "global_response_norm": bool(given["grn"]),
        "use_checkpoint": given["checkpoint_style"] is not None,
    }
    encoder = MedNeXtEncoder(
        in_channels=given["in_channels"],
        kernel_size=encoder_kernel,
        expansion_ratio=ratios[:LEVELS],
        blocks=blocks[: LEVELS - 1],
        **common,
    )
    decoder = MedNeXtDecoder(
        out_channels=given["n_classes"],
        kernel_size=decoder_kernel,
        expansion_ratio=ratios[: LEVELS - 2 : -1],  # from the last entry, full resolution, to the bottleneck
        blocks=blocks[: LEVELS - 2 : -1],
        deep_supervision=bool(given["deep_supervision"]),
        **common,
    )
    return YNet(encoder=encoder, decoder=decoder, deep_supervision=decoder.deep_supervision)


def translate(
    network: YNet, state_dict: Mapping[str, Tensor], official_class: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name the authors' weights as ours; a key that is not theirs keeps its name.

    Args:
        network: from `build`.
        state_dict: weights by the authors' keys.
        official_class: one of `OFFICIAL`.

    Returns:
        Weights by our keys, and the authors' keys that are not needed with the reason.
    """
    state = rename({key: value for key, value in state_dict.items() if key != DUMMY}, our_key)
    for key, value in state.items():
        # their heads are transposed convolutions of side 1, ours are convolutions: inputs and outputs change places
        if key.startswith("decoder.heads.") and value.ndim > 1:
            state[key] = value.transpose(0, 1)
    reason = "a constant that the authors hand to gradient checkpointing; nothing is computed from it"
    return state, {DUMMY: reason} if DUMMY in state_dict else {}


def our_key(key: str) -> str:
    """Our name of an authors' key."""
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def _create(given: Mapping[str, object]) -> YNet:
    if given["model_id"] not in MODELS:
        raise ValueError(f"{CREATE}: model_id is {given['model_id']!r}; expected one of {list(MODELS)}.")
    arguments = {
        "in_channels": given["num_input_channels"],
        "n_channels": 32,
        "n_classes": given["num_classes"],
        "kernel_size": given["kernel_size"],
        "deep_supervision": given["deep_supervision"],
        "do_res": True,
        "do_res_up_down": True,
    }
    return build(MEDNEXT, arguments | MODELS[given["model_id"]])


def _kernels(given: Mapping[str, object]) -> list[int]:
    """Sides of the kernels of encoder and decoder."""
    names = ["kernel_size"] * 2 if given["kernel_size"] is not None else ["enc_kernel_size", "dec_kernel_size"]
    for name in names:
        side = given[name]
        if not isinstance(side, int) or side < 1 or side % 2 == 0:  # others do not keep the size of a map
            raise ValueError(f"{MEDNEXT}: {name} is {side!r}; expected an odd number.")
    return [given[name] for name in names]


def _entries(given: Mapping[str, object], name: str) -> list[int]:
    """The authors' list of one number per stage, down and up; for `exp_r` also from a number."""
    value = given[name]
    values = [value] * ENTRIES if isinstance(value, int) and name == "exp_r" else value
    if not isinstance(values, Sequence) or len(values) != ENTRIES:
        raise ValueError(f"{MEDNEXT}: {name} is {value!r}; expected {ENTRIES} numbers.")
    return list(values)
