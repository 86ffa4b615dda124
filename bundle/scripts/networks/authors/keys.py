"""Keys of the authors' state dicts brought to ours, and those that are left out with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..utnet_attention import position_index

INDEX = ".relative_position_encoding.relative_position_index"  # of UTNet's authors
TABLE = ".relative_position_encoding.relative_position_bias_table"


def rename(state_dict: Mapping[str, Tensor], our_key: Callable[[str], str]) -> dict[str, Tensor]:
    """Name the authors' tensors as ours.

    Args:
        state_dict: weights by the authors' keys.
        our_key: function from an authors' key to ours; one that it does not know stays as it is.

    Returns:
        Weights by our keys. Where two keys name one place, the second keeps its own, which nobody knows: `load` then
        refuses it.
    """
    state: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        ours = our_key(key)
        state[key if ours in state else ours] = value
    return state


def drop_position_indices(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Leave out the index tables of UTNet's position biases, which are constants.

    Args:
        state_dict: weights by the authors' keys.

    Returns:
        The other weights, and the keys that are left out -> reason. A table with other numbers stays.
    """
    indices = [key for key, value in state_dict.items() if key.endswith(INDEX) and _is_position_index(value)]
    left = {key: value for key, value in state_dict.items() if key not in indices}
    return left, dict.fromkeys(indices, "a constant of reduce_size, which the network computes itself")


def refuse_our_keys(state_dict: Iterable[str], network_keys: Iterable[str]) -> None:
    """Refuse a file that has keys of ours, whole or in part: translating them again would mix up tensors.

    Args:
        state_dict: keys of the file.
        network_keys: keys of our network.

    Raises:
        ValueError: if any key of the file is one of ours.
    """
    ours = set(network_keys)
    found = [key for key in state_dict if key in ours]
    if found:
        raise ValueError(
            f"{len(found)} keys, such as {found[0]}, are already named as this project names them. Nothing was loaded. "
            "Take a file as the authors released it; a checkpoint of this project needs no import: it is loaded by "
            "--initial_weights, or from Python by scripts.networks.load_weights."
        )


def _is_position_index(value: Tensor) -> bool:
    return value.ndim == 2 and torch.equal(value.cpu(), position_index(math.isqrt(value.shape[0])))
