"""The folder of a training run: what it holds before the first step, so that anyone can tell what made it."""

from __future__ import annotations

import inspect
import json
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


def start(output_dir: str, dataset_dir: str, fold: int, labels: Sequence[str], seed: int, check_data: bool) -> None:
    """Open a run: seed everything, check the data, and write down the configuration, the versions and the split.

    Args:
        output_dir: the run's folder, made when it does not exist.
        dataset_dir: the prepared dataset.
        fold: the held-out fold.
        labels: class names, background first.
        seed: base seed.
        check_data: read every image and label and refuse to start when one is unusable.

    Raises:
        ValueError: problems in the data, each with its file.
    """
    set_determinism(seed)
    cases = datalists.read_datalist(dataset_dir)
    parts = datalists.split(cases, fold)
    if check_data:
        datalists.check_cases(cases, labels)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "datalist.json", json.dumps(parts, indent=1))
    config = running_config()
    _write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    _write(folder / "inference.yaml", yaml.safe_dump(inference_config(config), sort_keys=False))
    _write(folder / "versions.json", json.dumps(versions(seed), indent=1))


def fit_clinical(
    schema: ClinicalSchema | None, table: str | None, impute: bool, statistics: str, dataset_dir: str, fold: int
) -> None:
    """Fit scaling and imputation of the clinical variables on the training cases alone.

    Args:
        schema: the clinical schema; None where no clinical data enters, and nothing is done.
        table: the cohort's xlsx or csv.
        impute: also fit the imputer.
        statistics: JSON file to write.
        dataset_dir: the prepared dataset.
        fold: the held-out fold, whose patients are not looked at.

    Raises:
        ValueError: the network wants clinical data and the dataset has no table.
    """
    if schema is None:
        return
    if table is None:
        raise ValueError(
            f"{dataset_dir} has no clinical.csv, but the network takes clinical variables. Give a table "
            "(--clinical_table_path) or add configs/fusion_none.yaml to the configuration."
        )
    patients = sorted({case["patient_id"] for case in datalists.part(dataset_dir, fold, "training")})
    fitted = ClinicalTable(path=table, schema=schema, impute=impute)
    fitted.fit(patients)
    fitted.save(statistics)


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
        A configuration that `monai.bundle run` takes alone; its paths point into the run.
    """
    base = ConfigParser.load_config_files(str(BUNDLE_ROOT / "configs" / "inference.yaml"))
    serving = {key: value for key, value in config.items() if key in base}
    serving |= {key: base[key] for key in ("bundle_root", "dataset_dir", "keys", "modes", "run", "device")}
    serving["clinical_table_path"] = None
    return _plain(serving)


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
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)
