"""The authors' own networks: the same arithmetic as a `YNet`, and their released weights in it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from types import ModuleType

from torch import Tensor

from ..checkpoints import mismatches, read_state_dict, write_weights
from ..speed import plain
from ..ynet import YNet
from .keys import refuse_our_keys

logger = logging.getLogger(__name__)

FAMILIES = ("mednext", "unetr_pp", "utnet", "resnet_utnet", "transunet", "swin_unet", "monai_nets")
MAGNIFY_ROUNDING = ("unetr_pp", "utnet", "resnet_utnet")  # their attention, with weights that nobody trained, by 100


def official_classes() -> list[str]:
    """Dotted names of the official classes that `build` and `load` know."""
    return sorted(name for family in FAMILIES for name in _module(family).OFFICIAL)


def build(official_class: str, **arguments: object) -> YNet:
    """Build the network that an official class would build, as a `YNet`.

    Args:
        official_class: dotted name of the class in the authors' code, as `official_classes()` lists it, or another name
            that their packages have for it (`monai.networks.nets.swin_unetr.SwinUNETR`, `nnunet_mednext.MedNeXt`).
        arguments: constructor arguments of that class, under the authors' names; the others keep the authors' defaults.

    Returns:
        The network, randomly initialised; `load` puts the authors' weights in it. UNETR++ and UTNet, which magnify
        rounding, are left on torch's own operations, as the authors' are; `speed.accelerate` makes them faster.

    Raises:
        ValueError: if the class is unknown, or an argument is unknown or has a value that is not supported.
        TypeError: if a required argument is missing.
    """
    family, name = _family(official_class)
    try:
        network = family.build(name, arguments)
    except Exception as error:  # the authors' classes check by assertions, or fail where they first use a value
        if str(error).startswith((official_class, name)):  # it names the argument
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"{official_class}({given}): {error}") from error
    return plain(network) if family.__name__.rpartition(".")[2] in MAGNIFY_ROUNDING else network


def load(network: YNet, state_dict: Mapping[str, Tensor], official_class: str) -> dict[str, str]:
    """Load the weights of an official class into the network that `build` made for it; all of them, or nothing.

    Args:
        network: from `build(official_class, ...)`; left as it was unless everything fits.
        state_dict: weights by the authors' keys.
        official_class: as in `build`.

    Returns:
        Keys of the file that the network does not need -> the reason.

    Raises:
        ValueError: if the class is unknown, a key is missing, unknown or one of ours, or a tensor has another shape.
    """
    family, name = _family(official_class)
    refuse_our_keys(state_dict, network.state_dict())
    state, ignored = family.translate(network, state_dict, name)
    target = {key: value for key, value in network.state_dict().items() if not key.startswith("fusion.")}
    for key in target.keys() - state.keys():
        if key.endswith("num_batches_tracked"):  # a counter that weights files may leave out
            state[key] = target[key]
    problems = mismatches(target, state)
    if problems:
        raise ValueError(f"These are not the weights of this {official_class}. Nothing was loaded.\n{problems}")
    network.load_state_dict(state, strict=False)
    for key, reason in ignored.items():
        logger.info("%s: not used, %s.", key, reason)
    return ignored


def import_weights(source: str, target: str, official_class: str, **arguments: object) -> str:
    """Turn weights released by the authors of a network into a checkpoint of ours, for --initial_weights.

    After the class come its constructor arguments under the authors' names, as the weights were trained:
    --in_channels 1 --out_channels 14 --img_size [64,128,128]. The authors' networks know no clinical data: a training
    with fusion starts the fusion at random, the rest from these weights.

    Args:
        source: the authors' checkpoint; it is read without executing code from it.
        target: file ``*.pt`` to write.
        official_class: the authors' class, one of
            unetr_pp.network_architecture.synapse.unetr_pp_synapse.UNETR_PP (also acdc, lung, tumor),
            nnunet_mednext.network_architecture.mednextv1.create_mednext_v1.create_mednext_v1, model.utnet.UTNet, ...;
            a wrong name lists them all.
        **arguments: constructor arguments of that class.

    Returns:
        The target, and what of the source was not used, with the reason.

    Raises:
        FileNotFoundError: if there is no such source.
        ValueError: if the class, an argument or the weights do not fit, or the target is no ``*.pt`` or the source;
            nothing is written then.
    """
    network = build(official_class, **arguments)
    ignored = load(network, read_state_dict(source), official_class)
    write_weights(network.state_dict(), target, source)
    return "\n".join([str(target), *(f"not used: {key}, {reason}" for key, reason in ignored.items())])


def _family(official_class: str) -> tuple[ModuleType, str]:
    """Module that knows an official class, and the name under which `official_classes` lists it."""
    for family in FAMILIES:
        module = _module(family)
        name = getattr(module, "ALIASES", {}).get(official_class, official_class)
        if name in module.OFFICIAL:
            return module, name
    raise ValueError(f"{official_class} is unknown; known are {official_classes()}.")


def _module(family: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{family}")
