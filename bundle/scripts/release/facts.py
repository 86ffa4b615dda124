"""What a release is made of: the run's network, configurations, results and origin, read once."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts import BUNDLE_ROOT, datalists
from scripts.clinical_schema import ClinicalSchema
from scripts.networks import load_weights
from scripts.release.configs import flat_configs
from scripts.runs import versions
from scripts.slices import network_patch

UNKNOWN = "not known"
FILES = ("inference.yaml", "model.pt")


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    Attributes:
        run: its folder.
        configs: flat configurations by name.
        network: on the CPU, in eval mode, with the run's weights.
        labels: class names, background first.
        patch: what the network was trained on, voxels along each axis it sees.
        shape: the rule for sizes that it takes, as metadata says it: numbers, or texts such as ``32*n``.
        smallest: the smallest such size.
        schema: the clinical schema; None for images alone.
        versions: package to version that trained it.
        summary: ``evaluation/summary.json``; empty without an evaluation.
        dataset: what ``dataset.json`` said, without its cases; empty when it is gone.
        provenance: ``provenance.json`` of weights that come without their run; empty otherwise.
        source: the repository's own ``metadata.json``.
    """

    run: Path
    configs: dict[str, dict[str, Any]]
    network: nn.Module
    labels: list[str]
    patch: list[int]
    shape: list[int | str]
    smallest: list[int]
    schema: ClinicalSchema | None
    versions: dict[str, Any]
    summary: dict[str, Any]
    dataset: dict[str, Any]
    provenance: dict[str, Any]
    source: dict[str, Any]

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return int(self.network.encoder.in_channels)

    @property
    def own_task(self) -> bool:
        """Whether it segments the classes that the repository's metadata describe."""
        channels = self.source["network_data_format"]["outputs"]["pred"]["channel_def"]
        return list(channels.values()) == self.labels


def read_facts(run: str | Path) -> Facts:
    """Read a finished run, or weights with the configuration that serves them.

    Args:
        run: folder with ``model.pt`` and ``inference.yaml``; ``config.yaml``, ``versions.json``, ``evaluation/`` and
            ``provenance.json`` are used when they are there.

    Returns:
        What is known.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: weights that do not fit the configuration, or paths of this machine in it.
    """
    folder = Path(run).expanduser().resolve()
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {name}. Train one with `nny train`.")
    configs = flat_configs(folder)
    parser = ConfigParser(config=copy.deepcopy(configs["inference"]))
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, folder / "model.pt")
    schema = parser.get_parsed_content("clinical_schema")
    if schema is not None and not (folder / "clinical.json").is_file():
        raise FileNotFoundError(f"{folder} has no clinical.json, but its network takes clinical variables.")
    patch = network_patch(parser.get_parsed_content("patch_size"), parser.get_parsed_content("spatial_dims"))
    shape, smallest = patch_rule(network, patch)
    provenance = _json(folder / "provenance.json")
    return Facts(
        run=folder,
        configs=configs,
        network=network,
        labels=list(parser.get_parsed_content("labels")),
        patch=patch,
        shape=shape,
        smallest=smallest,
        schema=schema,
        versions=_json(folder / "versions.json") or provenance.get("versions") or versions(seed=0),
        summary=_json(folder / "evaluation" / "summary.json"),
        dataset=_dataset(folder),
        provenance=provenance,
        source=_json(BUNDLE_ROOT / "configs" / "metadata.json"),
    )


def patch_rule(network: nn.Module, patch: Sequence[int]) -> tuple[list[int | str], list[int]]:
    """Find which sizes a network takes, by asking it on the meta device, where nothing is computed.

    Args:
        network: in eval mode; left as it is.
        patch: a size that it takes.

    Returns:
        The rule per axis, ``32*n`` or ``32*(n+1)``, n >= 1, or `patch` itself where no other size will do; and the
        smallest size.
    """
    probe = copy.deepcopy(network).to("meta")
    channels = network.encoder.in_channels
    divisor = [int(d) for d in getattr(network.encoder, "divisor", network.encoder.strides[-1])]

    def takes(size: Sequence[int]) -> bool:
        try:
            with torch.no_grad():
                probe(torch.empty(1, channels, *size, device="meta"))
        except (ValueError, RuntimeError):
            return False
        return True

    larger = [size + step for size, step in zip(patch, divisor, strict=True)]
    least = next((n for n in range(1, 5) if takes([n * d for d in divisor])), None)
    if least is None or not takes(larger):
        return list(patch), list(patch)
    rule: list[int | str] = [f"{d}*n" if least == 1 else f"{d}*(n+{least - 1})" for d in divisor]
    return rule, [least * d for d in divisor]


def _dataset(folder: Path) -> dict[str, Any]:
    """What the dataset says of itself: the run's copy, or for older runs the file where it was."""
    kept = _json(folder / "dataset.json")
    if kept or not (folder / "config.yaml").is_file():
        return kept
    where = ConfigParser.load_config_file(str(folder / "config.yaml")).get("dataset_dir") or ""
    return datalists.about(where) if (Path(where) / "dataset.json").is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object. Restore the run's file.")
    return dict(content)
