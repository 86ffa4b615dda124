"""The folder of a training run: what it holds before the first step, so that anyone can tell what made it."""

from __future__ import annotations

import inspect
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from scripts import BUNDLE_ROOT, datalists
from scripts.clinical import ClinicalSchema, ClinicalTable
from scripts.files import replacing
from scripts.networks import YNet, load_swin_weights, load_weights

logger = logging.getLogger(__name__)
STATISTICS = "clinical.json"
MAY_CHANGE = {
    "dataset_dir",
    "clinical_table_path",
    "output_dir",
    "bundle_root",
    "device",
    "resume",
    "check_data",
    "cache_rate",
}
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scikit-learn", "pandas")


def amp_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type for mixed precision: bfloat16 where the device computes in it, else float16.

    Args:
        device: where the network runs.

    Returns:
        ``torch.bfloat16`` or ``torch.float16``.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native or device.type == "cpu" else torch.float16


def clinical_csv(dataset_dir: str) -> str | None:
    """The clinical table that `prepare` left in a dataset folder.

    Args:
        dataset_dir: the prepared folder.

    Returns:
        Its path, or None when there is none.
    """
    path = Path(dataset_dir) / "clinical.csv"
    return str(path) if path.is_file() else None


def default_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start(output_dir: str, dataset_dir: str, fold: int, labels: Sequence[str], seed: int, check_data: bool) -> None:
    """Open a run: seed everything, check the data, and write down the configuration, the versions and the split.

    A run that has a checkpoint is gone on with only if it was configured the same and split the same; otherwise
    nothing is written, as held-out patients could turn into training patients unnoticed.

    Args:
        output_dir: the run's folder, made when it does not exist.
        dataset_dir: the prepared dataset.
        fold: the held-out fold.
        labels: class names, background first.
        seed: base seed.
        check_data: read every image and label and refuse to start when one is unusable.

    Raises:
        ValueError: problems in the data, each with its file; or another configuration than the run's.
    """
    set_determinism(seed)
    _check_labels(Path(dataset_dir) / "dataset.json", labels)
    cases = datalists.read_datalist(dataset_dir)
    parts = datalists.split(cases, fold)
    config = running_config()
    folder = Path(output_dir)
    if (folder / "checkpoints" / "last.pt").is_file():
        _check_same_run(folder, config, parts)
        return
    if check_data:
        datalists.check_cases(cases, labels)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "datalist.json", json.dumps(parts, indent=1))
    _write(folder / "dataset.json", json.dumps(datalists.about(dataset_dir), indent=1))
    _write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    _write(folder / "inference.yaml", yaml.safe_dump(inference_config(config), sort_keys=False))
    _write(folder / "versions.json", json.dumps(versions(seed), indent=1))


def _check_labels(file: Path, labels: Sequence[str]) -> None:
    """Refuse a configuration that names other classes than the dataset does."""
    declared = json.loads(file.read_text()).get("labels") if file.is_file() else None
    if not isinstance(declared, dict) or not all(str(key).isdigit() for key in declared):
        return
    names = [declared[key] for key in sorted(declared, key=int)]
    if [name.lower() for name in names] != [name.lower() for name in labels]:
        raise ValueError(
            f"{file} has the classes {', '.join(names)}, but the configuration has {', '.join(labels)}. "
            "Add the overlay of this dataset."
        )


def _check_same_run(folder: Path, config: dict[str, Any], parts: dict[str, Any]) -> None:
    """Refuse to go on with a run under another configuration or split."""
    old = yaml.safe_load((folder / "config.yaml").read_text())
    changed = sorted(key for key in old.keys() | config.keys() if old.get(key) != config.get(key))
    changed = [key for key in changed if key not in MAY_CHANGE]
    ids = {name: [case["case_id"] for case in cases] for name, cases in parts.items()}
    old_parts = json.loads((folder / "datalist.json").read_text())
    if ids != {name: [case["case_id"] for case in cases] for name, cases in old_parts.items()}:
        changed.append("the cases of the folds")
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {', '.join(changed)} changed. Go on with the command that "
            "started it, or choose another folder (--initial_weights takes over its weights)."
        )


def fit_clinical(
    schema: ClinicalSchema | None, table: str | None, impute: bool, statistics: str, dataset_dir: str, fold: int
) -> None:
    """Fit scaling and imputation of the clinical variables on the training cases alone.

    Args:
        schema: the clinical schema; None where no clinical data enters, and nothing is done.
        table: the cohort's xlsx or csv.
        impute: also fit the imputer.
        statistics: ``clinical.json`` to write; one that is there beside a checkpoint stays, as the weights go with it.
        dataset_dir: the prepared dataset.
        fold: the held-out fold, whose patients are not looked at.

    Raises:
        ValueError: the network wants clinical data and the dataset has no table, or the file has another name.
    """
    if schema is None:
        return
    check_name(statistics)
    if table is None:
        raise ValueError(
            f"{dataset_dir} has no clinical.csv, but the network takes clinical variables. Give a table "
            "(--clinical_table_path) or add configs/fusion_none.yaml to the configuration."
        )
    if Path(statistics).is_file() and (Path(statistics).parent / "checkpoints" / "last.pt").is_file():
        return
    patients = sorted({case["patient_id"] for case in datalists.part(dataset_dir, fold, "training")})
    fitted = ClinicalTable(path=table, schema=schema, impute=impute)
    fitted.fit(patients)
    fitted.save(statistics)


def check_name(statistics: str) -> None:
    """Refuse to write the clinical scaling under another name: configurations come from strangers, too.

    Args:
        statistics: the file.

    Raises:
        ValueError: it is not called ``clinical.json``.
    """
    if Path(statistics).name != STATISTICS:
        raise ValueError(f"The clinical scaling goes to {statistics}; expected {STATISTICS} in the run's folder.")


def initialise(network: YNet, weights: str | None, encoder_weights: str | None) -> None:
    """Start a network from weights instead of random numbers.

    Args:
        network: the network.
        weights: weights of the same network, or of the same without fusion, which then starts at random; None for none.
        encoder_weights: MONAI's self-supervised ``model_swinvit.pt`` or a SwinUNETR checkpoint; None for none.

    Raises:
        ValueError: weights that do not fit.
    """
    if weights:
        load_weights(network, weights, new="fusion")
    if encoder_weights:
        ignored = load_swin_weights(network.encoder, encoder_weights)
        logger.info("Encoder weights from %s; not used: %s", encoder_weights, ignored)


def running_config() -> dict[str, Any]:
    """The merged configuration of the MONAI workflow that is calling, as text.

    MONAI gives a ``$`` expression no handle on the configuration around it, so it is looked up on the call stack.

    Returns:
        Id to content; empty outside a workflow.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return _plain(owner.parser.get())
        frame = frame.f_back
    return {}


def inference_config(config: dict[str, Any]) -> dict[str, Any]:
    """Take training out of a merged configuration: what remains serves the run's weights.

    Args:
        config: merged base and training configuration.

    Returns:
        A configuration that `monai.bundle run` takes alone, given ``--checkpoint`` and, with clinical data,
        ``--clinical_statistics``: a run folder can be moved, so it holds no path to itself.
    """
    load = ConfigParser.load_config_files
    base = load(str(BUNDLE_ROOT / "configs" / "inference.yaml"))
    training = load(str(BUNDLE_ROOT / "configs" / "train.yaml"))
    several = ConfigParser.load_config_file(str(BUNDLE_ROOT / "configs" / "multi_gpu_train.yaml"))
    serving = {key: value for key, value in config.items() if key in base or key not in training | several}
    replaced = [key for key in training if key in base and training[key] != base[key]]  # not all, in a flat train.yaml
    replaced += [key for key in several if key in base and several[key] == config.get(key)]
    return _plain(serving | {key: base[key] for key in replaced})


def versions(seed: int) -> dict[str, Any]:
    """What made a run: interpreter, packages, bundle, machine, command and time.

    Args:
        seed: base seed of the run.

    Returns:
        Name to version or value.
    """
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    metadata = json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())
    found["bundle"] = metadata["version"]
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    found["seed"] = seed
    found["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    found["command"] = shlex.join(sys.argv)
    return found


def _plain(value: Any) -> Any:
    """Reduce a configuration to what YAML holds; other objects (given by a calling program) become their text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if not str(key).startswith("_meta_")}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _write(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text)
