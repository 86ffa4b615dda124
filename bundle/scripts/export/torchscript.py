"""TorchScript: the network traced, for any device, in a file whose bytes depend on the network alone."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.files import replacing

from .source import describe

INPUTS = "inputs.json"  # extra file with what `describe` says
DEBUG = ".debug_pkl"  # which lines of whose source files made an operation
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold


def to_torchscript(network: nn.Module, examples: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """Trace a network.

    The batch stays free, the window does not. A traced clinical input takes NaN where nothing is known.

    Args:
        network: any network; it is put in eval mode.
        examples: image `(B, C, *window)`, and clinical variables `(B, F)` where the network takes them.

    Returns:
        The traced network; unlike a plain trace it runs on whatever device its weights and inputs are.
    """
    network.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes of the window become constants, on purpose
        traced = torch.jit.trace(network, tuple(examples), check_trace=False, _store_inputs=False)
    for module in traced.modules():
        _follow_input(module)
    return traced


def _follow_input(module: torch.jit.ScriptModule) -> None:
    """Replace the device of the trace, which became a constant, by that of the first tensor that comes in."""
    if not module._c._has_method("forward"):
        return
    graph = module._c._get_method("forward").graph
    tensors = [value for value in graph.inputs() if isinstance(value.type(), torch._C.TensorType)]
    for node in list(graph.nodes()):
        if tensors and node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType":
            device = graph.create("prim::device", tensors[:1], 1).insertBefore(node)
            device.output().setType(node.output().type())
            node.output().replaceAllUsesWith(device.output())
            node.destroy()


def save_torchscript(
    network: nn.Module, examples: Sequence[Tensor], path: str | Path, extra_files: Mapping[str, bytes] | None = None
) -> None:
    """Trace a network and write it; the same network gives the same bytes.

    TorchScript numbers classes by a counter of its process, so the trace is made in a fresh one; and what it writes
    about the lines of source files, which names their folders, is left out.

    Args:
        network: as in `to_torchscript`.
        examples: as in `to_torchscript`.
        path: file to write, whole or not at all.
        extra_files: name to content of what the file shall carry besides, ``metadata.json`` for MONAI's tools.
    """
    content = pickle.dumps((network, tuple(examples)))
    extra = {INPUTS: describe(examples), "metadata.json": b"{}"} | dict(extra_files or {})
    with replacing(path) as part:
        plain = part.with_name(f"{part.name}.ts")
        try:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                pool.submit(_write, content, str(plain), extra).result()
            _without_debug(plain, part)
        finally:
            plain.unlink(missing_ok=True)


def _write(content: bytes, path: str, extra_files: dict[str, bytes]) -> None:
    network, examples = pickle.loads(content)
    torch.jit.save(to_torchscript(network, examples), path, _extra_files=extra_files)


def _without_debug(source: Path, target: Path) -> None:
    """Copy a TorchScript archive without its debug files, under the folder name ``model``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            if not name.endswith(DEBUG):
                new.writestr(zipfile.ZipInfo("model/" + name.split("/", 1)[1], EPOCH), old.read(name))
