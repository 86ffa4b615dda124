"""The weights of a bundle in each of its forms, and a case that tells whether they still give the same answer."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.export import example_inputs, save_torchscript
from scripts.networks.checkpoints import read_state_dict
from scripts.release.archive import pack_arrays
from scripts.release.facts import Facts


def state_dict(facts: Facts) -> bytes:
    """Write the weights as tensors on the CPU, without the containers that savers put around them.

    Args:
        facts: of the run.

    Returns:
        ``model.pt``.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in read_state_dict(facts.run / "model.pt").items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def check_case(facts: Facts) -> bytes:
    """Write a small input with the answer of the network, computed on the CPU by one thread.

    Args:
        facts: of the run.

    Returns:
        ``check.npz``: ``image`` (1, C, *spatial), with clinical data ``clinical`` (1, F), and ``logits`` (1, classes,
        *spatial), float32.
    """
    example = example_inputs(facts.network, facts.smallest, batch=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            logits = facts.network(*example)
    finally:
        torch.set_num_threads(threads)
    arrays = dict(zip(("image", "clinical"), example, strict=False)) | {"logits": logits}
    return pack_arrays({name: value.numpy().astype(np.float32) for name, value in arrays.items()})


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(value.numel() for value in network.parameters())


def torchscript(facts: Facts, meta: Mapping[str, Any]) -> bytes:
    """Trace the network on the windows that inference gives it.

    Args:
        facts: of the run.
        meta: content of ``metadata.json``, which the file carries for MONAI's tools.

    Returns:
        ``model.ts``.
    """
    carried = {"metadata.json": json.dumps(meta).encode()}
    with tempfile.TemporaryDirectory(prefix="release_") as folder:
        path = Path(folder) / "model.ts"
        save_torchscript(facts.network, example_inputs(facts.network, facts.patch), path, carried)
        return path.read_bytes()
