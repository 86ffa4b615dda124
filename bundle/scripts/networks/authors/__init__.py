"""The authors' own networks: the same arithmetic as a `YNet`, and their released weights in it."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..checkpoints import mismatches, read_state_dict
from ..ynet import YNet

logger = logging.getLogger(__name__)

FAMILIES = ("mednext", "unetr_pp", "utnet", "resnet_utnet", "transunet", "swin_unet", "monai_nets")


def official_classes() -> list[str]:
    """Dotted names of the official classes that `build` and `load` know."""
    return sorted(name for family in FAMILIES for name in _module(family).OFFICIAL)


def build(official_class: str, **arguments: object) -> YNet:
    """Build the network that an official class would build, as a `YNet`.

    Args:
        official_class: dotted name of the class in the authors' code, as `official_classes()` lists it.
        arguments: constructor arguments of that class, under the authors' names; the others keep the authors' defaults.

    Returns:
        The network, randomly initialised; `load` puts the authors' weights in it.

    Raises:
        ValueError: if the class is unknown, or an argument is unknown or has a value that is not supported.
        TypeError: if a required argument is missing.
    """
    return _family(official_class).build(official_class, arguments)


def load(network: YNet, state_dict: Mapping[str, Tensor], official_class: str) -> dict[str, str]:
    """Load the weights of an official class into the network that `build` made for it; all of them, or nothing.

    Args:
        network: from `build(official_class, ...)`; left as it was unless everything fits.
        state_dict: weights by the authors' keys.
        official_class: as in `build`.

    Returns:
        Keys of the file that the network does not need -> the reason.

    Raises:
        ValueError: if the class is unknown, a key is missing or unknown, or a tensor has another shape.
    """
    state, ignored = _family(official_class).translate(network, state_dict, official_class)
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

    Args:
        source: the authors' checkpoint; it is read without executing code from it.
        target: file to write.
        official_class: the authors' class, one of
            unetr_pp.network_architecture.synapse.unetr_pp_synapse.UNETR_PP (also acdc, lung, tumor),
            nnunet_mednext.network_architecture.mednextv1.create_mednext_v1.create_mednext_v1, model.utnet.UTNet, ...;
            a wrong name lists them all.
        **arguments: constructor arguments of that class, as the weights were trained: --in_channels 1 ...

    Returns:
        The target, and what of the source was not used, with the reason.

    Raises:
        FileNotFoundError: if there is no such source.
        ValueError: if the class, an argument or the weights do not fit; nothing is written then.
    """
    network = build(official_class, **arguments)
    ignored = load(network, read_state_dict(source), official_class)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), target)
    return "\n".join([str(target), *(f"not used: {key}, {reason}" for key, reason in ignored.items())])


def bind(official_class: str, arguments: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Fill in the authors' defaults, refusing arguments that their class does not have.

    Args:
        official_class: for messages.
        arguments: what the user gave.
        defaults: all arguments of the class with their defaults; `...` for those without one.

    Returns:
        All arguments.

    Raises:
        ValueError: if an argument is unknown.
        TypeError: if a required one is missing.
    """
    unknown = [name for name in arguments if name not in defaults]
    if unknown:
        raise ValueError(f"{official_class} has no argument {unknown[0]}; it has {list(defaults)}.")
    missing = [name for name, default in defaults.items() if default is ... and name not in arguments]
    if missing:
        raise TypeError(f"{official_class} needs the argument {missing[0]}.")
    return dict(defaults) | dict(arguments)


def require(official_class: str, arguments: Mapping[str, object], **supported: object) -> None:
    """Refuse an argument whose value is not the one that is supported, naming it.

    Raises:
        ValueError: if `arguments[name] != supported[name]` for any name.
    """
    for name, value in supported.items():
        if arguments[name] != value:
            raise ValueError(f"{official_class}: {name} is {arguments[name]!r}; only {value!r} is supported.")


def _family(official_class: str) -> ModuleType:
    for family in FAMILIES:
        module = _module(family)
        if official_class in module.OFFICIAL:
            return module
    raise ValueError(f"{official_class} is unknown; known are {official_classes()}.")


def _module(family: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{family}")
