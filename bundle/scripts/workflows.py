"""Train, evaluate and infer: the bundle's workflows with their configuration files put together."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts import BUNDLE_ROOT
from scripts.clinical_schema import suggestion
from scripts.prepare.hcc_tace import prepare_hcc_tace
from scripts.prepare.phantom import write_phantom_cohort
from scripts.report import report

CONFIGS = BUNDLE_ROOT / "configs"
DEMO_RUN = BUNDLE_ROOT / "models" / "demo"
DEMO_OVERLAYS = "dataset_phantom,network_swin_next_tiny"
DEMO_SETTINGS = {"learning_rate": 0.005, "warmup_epochs": 3, "val_interval": 20, "train::loss::weight": [1, 1, 2, 2, 1]}


def overlay_paths(overlays: str | Sequence[str]) -> list[str]:
    """Resolve overlays by their name in ``configs/`` or by path.

    Args:
        overlays: names (``network_swin_next_small``), paths to YAML files, or a comma-separated text of them.

    Returns:
        Paths in the given order.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    names = overlays.split(",") if isinstance(overlays, str) else list(overlays)
    kinds = ("network_", "fusion_", "dataset_", "start_", "evaluate_")
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(kinds))
    paths = []
    for name in filter(None, (str(name).strip() for name in names)):
        path = CONFIGS / f"{name}.yaml" if name in known else Path(name)
        if not path.is_file():
            raise ValueError(
                f"There is no overlay {name!r}{suggestion(name, known)}. Known: {', '.join(known)}; "
                "or give the path of a YAML file."
            )
        paths.append(str(path))
    return paths


def _run(run_id: str, files: Sequence[str | Path], overrides: Mapping[str, Any], **settings: Any) -> None:
    """Run one id of the merged configuration files, as ``python -m monai.bundle run`` does.

    Overrides are the user's: they win over `settings`, and an id that does not exist is refused.
    """
    paths = [str(file) for file in files]
    known = ConfigParser.load_config_files(paths)
    for name in overrides:
        top = re.split("::|#", name)[0]
        if top not in known:
            raise ValueError(f"The configuration has no {name!r}{suggestion(top, known)}.")
    workflow = ConfigWorkflow(
        config_file=paths,
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        run_id=run_id,
        **(settings | dict(overrides)),
    )
    workflow.initialize()
    try:
        workflow.run()
    except RuntimeError as error:  # MONAI's "Failed to evaluate" and "applying transform": the cause says what happened
        raise _root(error) from error
    workflow.finalize()


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def train(
    dataset: str,
    output: str,
    overlays: str | Sequence[str] = (),
    *,
    tracking: str | None = None,
    tracking_store: str | None = None,
    **overrides: Any,
) -> None:
    """Train a network; the same command again goes on after the last finished epoch.

    Args:
        dataset: the folder that `prepare` wrote (``dataset.json``, images, labels, ``clinical.csv``).
        output: the run's folder: checkpoints, log, TensorBoard files, configuration.
        overlays: names of overlays in bundle/configs, separated by commas, later ones win:
            network_*, fusion_*, dataset_*.
        tracking: mlflow, to mirror settings, curves and files into a local MLflow store; TensorBoard files are always
            written.
        tracking_store: address of that store; by default sqlite in the run's folder.
        **overrides: any id of the configuration: --epochs 100 --fold 1 --batch_size 4 --seed 3 …
    """
    if tracking not in (None, "mlflow"):
        raise ValueError(
            f"tracking is {tracking!r}; expected mlflow, or nothing (TensorBoard files are always written)."
        )
    files = [CONFIGS / "inference.yaml", CONFIGS / "train.yaml", *overlay_paths(overlays)]
    follow = nullcontext()
    if tracking:
        from scripts.tracking import mirrored  # here, as mlflow is needed for nothing else

        follow = mirrored(_absolute(output), tracking_store)
    with follow:
        _run("training", files, overrides, dataset_dir=_absolute(dataset), output_dir=_absolute(output))


def evaluate(run: str, overlays: str | Sequence[str] = (), **overrides: Any) -> None:
    """Segment the held-out fold of a run and score the masks against the original labels.

    Args:
        run: the run's folder; masks, ``per_case.csv`` and ``summary.json`` go to its ``evaluation/``.
        overlays: merged last, separated by commas: evaluate_calibration also measures calibration.
        **overrides: any id of the configuration: --dataset_dir <another dataset> --fold -1 (all cases) …
    """
    folder = _run_folder(run, "config.yaml")
    files = [folder / "config.yaml", CONFIGS / "evaluate.yaml", *overlay_paths(overlays)]
    _run("evaluating", files, overrides, output_dir=str(folder))


def infer(source: str, output: str, run: str = str(DEMO_RUN), clinical: str | None = None, **overrides: Any) -> None:
    """Segment images: each mask comes in the geometry of its source.

    Args:
        source: a NIfTI file, a folder of them, a folder with one DICOM series, or a folder of such folders.
        output: folder for the masks, ``<case>_seg.nii.gz``.
        run: the run whose weights are used; by default the demo network, trained on phantoms.
        clinical: table (xlsx or csv) with the patients' clinical variables; without it nothing is known of them.
        **overrides: any id of the configuration: --save_probabilities True …
    """
    folder = _run_folder(run, "inference.yaml")
    if clinical is not None and not (folder / "clinical.json").is_file():
        raise ValueError(f"{folder} was trained on images alone; it cannot use {clinical}.")
    _run(
        "inference",
        [folder / "inference.yaml"],
        overrides,
        dataset_dir=_absolute(source),
        output_dir=_absolute(output),
        checkpoint=str(folder / "model.pt"),
        clinical_statistics=str(folder / "clinical.json"),
        clinical_table_path=None if clinical is None else _absolute(clinical),
    )


def demo(output: str = "work/demo", cases: int = 30, epochs: int = 60, seed: int = 0) -> str:
    """Go from a synthetic download to a report: phantom, prepare, train, evaluate, report.

    Args:
        output: folder for everything.
        cases: patients of the synthetic cohort.
        epochs: training epochs.
        seed: seed of the cohort and of training.

    Returns:
        Path of the report.
    """
    folder = Path(output)
    download, data, run = folder / "download", folder / "data", folder / "run"
    steps = {
        "phantom": lambda: _phantom_once(download, cases, seed),
        "prepare": lambda: prepare_hcc_tace(str(download), str(data)),
        "train": lambda: train(str(data), str(run), DEMO_OVERLAYS, epochs=epochs, seed=seed, **DEMO_SETTINGS),
        "evaluate": lambda: evaluate(str(run)),
        "report": lambda: report(str(run)),
    }
    for name, step in steps.items():
        begin = time.perf_counter()
        print(f"== {name}", flush=True)
        step()
        print(f"== {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return str(run / "report.html")


def _phantom_once(download: Path, cases: int, seed: int) -> None:
    """Write the synthetic download, whole or not at all, unless an earlier call finished it."""
    truth = download / "phantom_truth.json"
    if truth.is_file():
        made = json.loads(truth.read_text())
        count = len(made["patients"])
        if (made["seed"], count) != (seed, cases):
            raise ValueError(
                f"{download} holds {count} patients of seed {made['seed']}, not {cases} of seed {seed}. "
                "Choose another --output."
            )
        return
    part = download.with_name(f".{download.name}.{os.getpid()}.part")
    write_phantom_cohort(str(part), cases=cases, seed=seed)
    os.replace(part, download)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _run_folder(run: str, file: str) -> Path:
    folder = Path(run).expanduser().resolve()
    for name in (file, "model.pt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {name}. Train one with `nny train`.")
    return folder
