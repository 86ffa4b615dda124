"""Fixtures of the authors' own networks: rebuilt by their fill rule, compared with their outputs."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts.networks import authors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

REAL_DATA = Path(os.environ.get("REAL_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
GOLDEN = REAL_DATA.parent / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no fixtures of the authors' networks in {GOLDEN}")


def names(pattern: str) -> list[str]:
    """Names of the fixtures that match a pattern; one that says so where there are none."""
    return sorted(file.stem for file in GOLDEN.glob(f"{pattern}.json")) or ["absent"]


def read(name: str) -> dict:
    """Description of a fixture."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def make_input(shape: list[int]) -> Tensor:
    """Image of a fixture."""
    return torch.from_numpy(_noise("input", shape))


def official_weights(meta: dict) -> dict[str, Tensor]:
    """Weights of a fixture under the authors' keys, floating point only."""
    last = {key: group[-1] for group in meta.get("tied", []) for key in group}
    return {
        key: torch.from_numpy(np.asarray(_fill(last.get(key, key), shape), np.float32))
        for key, shape, dtype in meta["state_dict"]
        if dtype == "float32"
    }


def loaded(meta: dict) -> nn.Module:
    """Network of a fixture with the fixture's weights, in eval mode."""
    network = authors.build(meta["official_class"], **meta["config"])
    authors.load(network, official_weights(meta), meta["official_class"])
    return network.eval()


def worst_error(name: str, outputs: list[Tensor]) -> float:
    """Largest difference from the stored outputs, as a share of the largest value of each; checks shape and spread."""
    meta = read(name)
    stored = np.load(GOLDEN / f"{name}.npz")
    worst = 0.0
    for spec, output in zip(meta["outputs"], outputs, strict=True):
        if list(output.shape) != spec["shape"]:
            raise AssertionError(f"{spec['key']}: shape {list(output.shape)}, expected {spec['shape']}")
        got = output.detach()[tuple(slice(None, None, step) for step in spec["strides"])].numpy()
        worst = max(worst, float(np.abs(got - stored[spec["key"]]).max()) / spec["absmax"])
        spread = output.detach().double().std(unbiased=False).item()
        if abs(spread - spec["std"]) >= 1e-3 * spec["std"]:
            raise AssertionError(f"{spec['key']}: standard deviation {spread}, expected {spec['std']}")
    return worst


def macs(network: nn.Module, shape: list[int]) -> float:
    """Multiply-accumulates of convolutions and matrix products for one input, counted as the fixtures were."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(shape, device=next(network.parameters()).device))
    return counter.get_total_flops() / 2


def _noise(key: str, shape: list[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def _fill(key: str, shape: list[int]) -> np.ndarray:
    noise, leaf = _noise(key, shape), key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1 + np.float32(0.1) * np.abs(noise)
    if leaf == "running_mean":
        return np.float32(0.1) * noise
    if leaf in ("gamma", "temperature", "temperature2") or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * noise
    if leaf == "weight":
        return noise / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(0.05) * noise
