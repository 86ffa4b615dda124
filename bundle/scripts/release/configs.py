"""Flat configurations of a bundle: a run's merged configuration, with nothing of the machine that trained it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts import BUNDLE_ROOT
from scripts.runs import MAY_CHANGE

CONFIGS = BUNDLE_ROOT / "configs"
WEIGHTS = "$@bundle_root + '/models/model.pt'"
STATISTICS = "$@bundle_root + '/models/clinical.json'"
# MONAI's Spacingd stops where MONAI Label puts texts beside the image
TARGETS = dict.fromkeys(("Spacingd", "monai.transforms.Spacingd"), "scripts.spacing.Spacingd")
HEADERS = {
    "inference": "Segments images: a file, a folder of files, a DICOM series (--dataset_dir), masks to --output_dir.",
    "train": (
        "Trains on a folder with dataset.json, images and labels (--dataset_dir); the run goes to --output_dir.\n"
        "# The id training starts from random weights, fine_tuning from models/model.pt."
    ),
    "evaluate": "Scores models/model.pt on every case of a folder with dataset.json (--dataset_dir), or on one --fold.",
    "multi_gpu_train": "train.yaml in several processes: torchrun --nproc_per_node=<n> -m monai.bundle run training",
}
LITERAL = re.compile(r"(\+\s*)?'((?:[^'\\]|\\.)*)'|(\+\s*)?\"((?:[^\"\\]|\\.)*)\"")
ABSOLUTE = re.compile(r"(/|~|file:|[A-Za-z]:[\\/])")


def flat_configs(run: Path) -> dict[str, dict[str, Any]]:
    """Turn a run's configuration into those of a bundle.

    Args:
        run: folder with ``inference.yaml`` and, unless only its weights were kept, ``config.yaml``.

    Returns:
        ``inference``, ``train``, ``evaluate``, ``multi_gpu_train``: each complete, without overlays.

    Raises:
        ValueError: an id holds a path of this machine.
    """
    own = ConfigParser.load_config_file(str(run / "inference.yaml"))
    inference = _portable(_source("inference") | own)  # with ids that are younger than the run
    inference |= {"checkpoint": WEIGHTS, "clinical_statistics": STATISTICS}
    inference.pop("upkern_source", None)  # where training started, a path of this machine
    train = _training(run, inference)
    evaluate = _evaluation(inference, train)
    several = ConfigParser(config=yaml.safe_load(yaml.safe_dump(train)))
    for key, value in _source("multi_gpu_train").items():
        merge_kv(several, key, value)
    distributed = several.get()
    keep = "scripts.distributed.once(scripts.fine_tuning.keep_statistics, {})"
    distributed["fine_tuning"] = _fine_tuning(distributed, keep)
    configs = {"inference": inference, "train": train, "evaluate": evaluate, "multi_gpu_train": _portable(distributed)}
    for name, config in configs.items():
        _check_paths(config, run, name)
    return configs


def as_yaml(config: dict[str, Any], name: str) -> str:
    """Write a configuration as YAML, under a line that says what it does.

    It is ASCII: MONAI reads it in the encoding of the system, whichever that is.

    Args:
        config: plain dicts, lists and values.
        name: the file's stem.

    Returns:
        The text.
    """
    text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=1000)
    return f"# {HEADERS[name]}\n{text}"


def file_as_released(name: str) -> bytes:
    """Read a file of ``configs/``; YAML beyond ASCII is written anew, see `as_yaml`.

    Args:
        name: the file.
    """
    content = (CONFIGS / name).read_bytes()
    if content.isascii() or not name.endswith(".yaml"):
        return content
    return yaml.safe_dump(yaml.safe_load(content), sort_keys=False).encode()


def named_files(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Files of ``configs/`` that configurations read, such as the clinical schema.

    Args:
        configs: configurations by name.

    Returns:
        Their names, sorted.
    """
    found = {
        literal.removeprefix("/configs/")
        for config in configs.values()
        for _, text in _texts(config)
        if text.startswith("$")
        for _, literal in _literals(text)
        if literal.startswith("/configs/")
    }
    return sorted(found)


class _Dumper(yaml.SafeDumper):
    """Writes short lists of values in one line, as people do, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list_node(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
    short = all(not isinstance(item, dict | list) for item in data) and len(str(data)) < 100
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=short)


_Dumper.add_representer(list, _list_node)


def _training(run: Path, inference: dict[str, Any]) -> dict[str, Any]:
    """The run's training configuration; where the run kept none, that of the repository over its inference."""
    base, overlay = _source("inference"), _source("train")
    if (run / "config.yaml").is_file():
        train = ConfigParser.load_config_file(str(run / "config.yaml"))
    else:
        train = inference | overlay
        if len(train["class_ratios"]) != len(train["labels"]):
            train["class_ratios"] = [1] * len(train["labels"])
    defaults = base | overlay
    train |= {key: defaults[key] for key in MAY_CHANGE if key in defaults}
    train |= {"initial_weights": None, "encoder_weights": None}  # where it started is in the model card
    train.pop("upkern_source", None)
    train["fine_tuning"] = _fine_tuning(train, "scripts.fine_tuning.keep_statistics({})")
    return _portable(train)


def _fine_tuning(train: dict[str, Any], call: str) -> list[str]:
    """The steps of training, but from the bundle's weights and with the clinical scaling that goes with them."""
    begin, *_, train_steps = train["training"]
    keep = call.format("@clinical_schema, @bundle_root, @clinical_statistics")
    return [begin, f"${keep}", f"$scripts.networks.load_weights(@network, {WEIGHTS.removeprefix('$')})", train_steps]


def _evaluation(inference: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    own = {key: train[key] for key in ("dataset_dir", "clinical_table_path")}
    fixed = {"fold": -1, "output_dir": inference["output_dir"], "checkpoint": WEIGHTS}
    return _portable(inference | own | _source("evaluate") | fixed)


def _source(name: str) -> dict[str, Any]:
    return ConfigParser.load_config_file(str(CONFIGS / f"{name}.yaml"))


def _portable(value: Any) -> Any:
    """Plain containers, with the classes that stock tools can run."""
    if isinstance(value, dict):
        plain = {key: _portable(item) for key, item in value.items() if not str(key).startswith("_meta_")}
        return plain | {"_target_": TARGETS.get(plain["_target_"], plain["_target_"])} if "_target_" in plain else plain
    return [_portable(item) for item in value] if isinstance(value, list | tuple) else value


def _check_paths(config: dict[str, Any], run: Path, name: str) -> None:
    for where, text in _texts(config):
        expression = text.startswith("$")
        paths = [path for added, path in _literals(text) if not added] if expression else [text]
        for path in paths:
            if ABSOLUTE.match(path) and len(path) > 1:
                raise ValueError(
                    f"{run}: the id {where} of {name}.yaml holds {path!r}, a path of this machine that nobody else "
                    "has. Set it to a path below @bundle_root in the run's config.yaml and inference.yaml, or to null."
                )


def _literals(expression: str) -> Iterator[tuple[str, str]]:
    """Texts in an expression, each with the plus that puts it behind something else."""
    for single_plus, single, double_plus, double in LITERAL.findall(expression):
        yield single_plus or double_plus, single or double


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration with its id."""
    if isinstance(value, str):
        yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _texts(item, f"{where}::{key}" if where else str(key))
