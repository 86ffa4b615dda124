"""Weights from files, loaded as a whole or refused: a network never starts half random without anybody noticing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..files import replacing
from .swin import SwinEncoder

logger = logging.getLogger(__name__)

CONTAINERS = ("network", "state_dict", "model", "model_state_dict", "net", "weights")  # where savers put the weights
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# numpy numbers, such as the losses that nnU-Net keeps beside its weights; numpy 1 and 2 have two names for one function
SCALAR = np.float64().__reduce__()[0]
NUMBERS = [
    (SCALAR, "numpy.core.multiarray.scalar"),
    (SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")),
]
SHOWN = 8  # keys listed in a message
STAGE = re.compile(r"layers(\d)c?\.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a checkpoint file, without executing code from it.

    Args:
        path: a state dict saved by `torch.save`, or a dict that holds one under "network", "state_dict", "model",
            "model_state_dict", "net" or "weights". Prefixes of DistributedDataParallel and `torch.compile` go away.

    Returns:
        Tensors by key, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no state dict, or more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file.")
    try:
        with torch.serialization.safe_globals(NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way, wherever its bytes are first used
        raise ValueError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0] if str(error) else type(error).__name__} "
            "Expected a file of tensors only, saved by torch.save(network.state_dict(), path)."
        ) from error
    found = content
    while isinstance(found, Mapping) and not _is_state_dict(found):
        name = next((n for n in CONTAINERS if isinstance(found.get(n), Mapping)), None)
        found = None if name is None else found[name]
    if not isinstance(found, Mapping):
        held = f"keys {list(content)[:SHOWN]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {held}; expected a state dict, or one under a key of {CONTAINERS}.")
    state = dict(found)
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def write_weights(state: Mapping[str, Tensor], target: str | Path, source: str | Path) -> None:
    """Write weights that were made from a file's into another file, which is never seen half-written.

    Args:
        state: tensors by key.
        target: file ``*.pt`` to write; its folder is made. A kill leaves what was there, or the new file.
        source: the file that the weights come from.

    Raises:
        ValueError: if `target` is no ``*.pt``, or is `source`.
    """
    target = Path(target)
    if target.suffix != ".pt":
        raise ValueError(f"{target} is no *.pt file; weights are written to such files alone.")
    if target.resolve() == Path(source).resolve():
        raise ValueError(f"{target} is also the source; write the new weights into another file.")
    with replacing(target) as part:
        torch.save(dict(state), part)


def load_weights(network: nn.Module, path: str | Path, strict: bool = True, new: str = "") -> str:
    """Load a checkpoint of this very network; the network is left as it was unless everything fits.

    Args:
        network: the network; every parameter and buffer must be in the file, with the same shape, and nothing else.
        path: see `read_state_dict`.
        strict: False loads what fits and logs a warning that names the rest, as when fine-tuning for other classes.
        new: a part of the network, such as "fusion", that the file may lack as a whole: it then keeps its random
            weights, for a training to start from, and a warning says so.

    Returns:
        What did not fit; empty if everything did.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold the weights of this network, naming what does not fit; without `strict`,
            if it holds none of them.
    """
    state = read_state_dict(path)
    target = network.state_dict()
    lacking = [key for key in target if key.startswith(f"{new}.")] if new else []
    if lacking and not any(key.startswith(f"{new}.") for key in state):
        logger.warning("%s has no %s: its %d tensors start at random.", path, new, len(lacking))
        state |= {key: target[key] for key in lacking}
    problems = mismatches(target, state)
    fitting = {key: state[key] for key in target if key in state and state[key].shape == target[key].shape}
    if problems and (strict or not fitting):
        raise ValueError(
            f"{path} is a checkpoint of another network than this one. Nothing was loaded.\n{problems}"
            f"{_without_fusion(target, state)}"
        )
    if problems:
        logger.warning("%s: loaded %d of %d tensors.\n%s", path, len(fitting), len(target), problems)
    network.load_state_dict(fitting, strict=not problems)
    return problems


def load_swin_weights(encoder: SwinEncoder, path: str | Path) -> dict[str, str]:
    """Load pretrained Swin weights: MONAI's self-supervised `model_swinvit.pt`, a SwinUNETR, or another `YNet`.

    Every parameter of the Swin Transformer must be in the file; the stem stays as it was, since none of these have it.

    Args:
        encoder: the encoder; left as it was unless everything fits.
        path: see `read_state_dict`.

    Returns:
        What the file holds besides: key -> reason why it was not used.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no Swin Transformer, or one that does not fit, naming what does not.

    References:
        Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022.
    """
    source = read_state_dict(path)
    embeddings = [key for key in source if re.search(r"(^|\.)patch_embed\.proj\.weight$", key)]
    if len(embeddings) != 1:
        raise ValueError(
            f"{path} holds {len(embeddings)} Swin patch embeddings (keys that end in patch_embed.proj.weight); "
            f"expected one. Its first keys are {list(source)[:SHOWN]}."
        )
    prefix = embeddings[0].removesuffix("patch_embed.proj.weight")
    swin = encoder.swinViT
    state, ignored = {}, {}
    for key, value in source.items():
        name = key.removeprefix(prefix)
        stage = STAGE.match(name)
        if not key.startswith(prefix) or not (stage or name.startswith("patch_embed.")):
            ignored[key] = "not part of the Swin Transformer: a head, a decoder or a final norm"
        elif stage and int(stage[1]) > swin.num_layers:
            ignored[key] = f"stage {stage[1]}: this encoder has {swin.num_layers}"
        else:
            state[_monai_name(name)] = value
    target = swin.state_dict()
    for name in target.keys() - state.keys():
        if name.endswith("relative_position_index"):  # a constant of the window size, which some files leave out
            state[name] = target[name]
    problems = mismatches(target, state)
    if problems:
        raise ValueError(f"{path} holds a Swin Transformer that does not fit. Nothing was loaded.\n{problems}")
    swin.load_state_dict(state)
    logger.info("%s: loaded %d tensors, left out %d.", path, len(state), len(ignored))
    return ignored


def _without_fusion(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Cure for a file that lacks nothing but the fusion with clinical variables."""
    rest = {key: value for key, value in target.items() if not key.startswith("fusion.")}
    if len(rest) == len(target) or mismatches(rest, state):
        return ""
    return "\nIt knows no clinical variables: add fusion_none to the configuration, or train the fusion from it first."


def _is_state_dict(content: Mapping) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _monai_name(name: str) -> str:
    """Name of a Swin parameter in MONAI's `SwinTransformer`."""
    name = re.sub(r"^(layers\dc?\.0\.)0\.", r"\1", name)  # one more container in disruptive autoencoders' weights
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", name)


def mismatches(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe what keeps `state` from being loaded into `target`; empty if nothing does."""
    shapes = [
        f"{key}: file {list(state[key].shape)}, network {list(target[key].shape)}"
        for key in target
        if key in state and state[key].shape != target[key].shape
    ]
    parts = {
        "missing in the file": [key for key in target if key not in state],
        "unknown to the network": [key for key in state if key not in target],
        "of another shape": shapes,
    }
    return "\n".join(
        f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for what, keys in parts.items()
        if keys
    )
