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

from scripts import BUNDLE_ROOT, cohort
from scripts.clinical_schema import suggestion
from scripts.datalists import inference_cases
from scripts.distributed import device
from scripts.ensemble import Ensemble, members_of
from scripts.prepare.hcc_tace import prepare_hcc_tace
from scripts.prepare.phantom import write_phantom_cohort
from scripts.report import report
from scripts.shares import launched, own_share, share

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
    kinds = ("network_", "fusion_", "dataset_", "protocol_", "start_", "evaluate_")
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


def _check_used(overrides: Mapping[str, Any], own: Path, files: Sequence[str | Path]) -> None:
    """Refuse ids that are younger than a run, where nothing that it merges with asks for them."""
    base, known = (ConfigParser.load_config_file(str(file)) for file in (files[0], own))
    text = str(ConfigParser.load_config_files([str(file) for file in files]))
    for name in overrides:
        top = re.split("::|#", name)[0]
        if top in base and top not in known and not re.search(rf"[@%]{re.escape(top)}\b", text):
            raise ValueError(
                f"{own.parent} was trained before there was {top!r}, and would not use it. Leave it out, or train anew."
            )


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

    Started by torchrun, the processes train together; batch_size is that of each.

    Args:
        dataset: the folder that `prepare` wrote (``dataset.json``, images, labels, ``clinical.csv``).
        output: the run's folder: checkpoints, log, TensorBoard files, configuration.
        overlays: names of overlays in bundle/configs, separated by commas, later ones win:
            network_*, fusion_*, dataset_*, protocol_*.
        tracking: mlflow, to mirror settings, curves and files into a local MLflow store; TensorBoard files are always
            written.
        tracking_store: address of that store; by default sqlite in the run's folder.
        **overrides: any id of the configuration: --epochs 100 --fold 1 --batch_size 4 --seed 3 …
    """
    if tracking not in (None, "mlflow"):
        raise ValueError(
            f"tracking is {tracking!r}; expected mlflow, or nothing (TensorBoard files are always written)."
        )
    files = [CONFIGS / "inference.yaml", CONFIGS / "train.yaml", *overlay_paths(overlays), *_several("train")]
    follow = nullcontext()
    if tracking and own_share()[0] == 0:
        from scripts.tracking import mirrored  # here, as mlflow is needed for nothing else

        follow = mirrored(_absolute(output), tracking_store)
    with follow:
        _run("training", files, overrides, dataset_dir=_absolute(dataset), output_dir=_absolute(output))


def evaluate(run: str, overlays: str | Sequence[str] = (), **overrides: Any) -> None:
    """Segment the held-out fold of a run and score the masks against the original labels.

    Started by torchrun, the processes share the cases.

    Args:
        run: the run's folder; masks, ``per_case.csv`` and ``summary.json`` go to its ``evaluation/``.
        overlays: merged last, separated by commas: evaluate_calibration also measures calibration.
        **overrides: any id of the configuration: --dataset_dir <another dataset> --fold -1 (all cases) …
    """
    folder = _run_folder(run, "config.yaml")
    base = CONFIGS / "inference.yaml"  # for ids that are younger than the run
    files = [base, folder / "config.yaml", CONFIGS / "evaluate.yaml", *_several("evaluate"), *overlay_paths(overlays)]
    if launched() and "evaluate_calibration" in [Path(file).stem for file in files]:
        raise ValueError("evaluate_calibration measures a single process; evaluate without it, or without torchrun.")
    _check_used(overrides, folder / "config.yaml", files)
    _run("evaluating", files, overrides, output_dir=str(folder))


def infer(
    source: str,
    output: str,
    run: str = str(DEMO_RUN),
    clinical: str | None = None,
    *,
    runs: str | Sequence[str] = (),
    shard: str | None = None,
    **overrides: Any,
) -> None:
    """Segment images: each mask comes in the geometry of its source. The same command again makes what is missing.

    Started by torchrun, the processes share the cases.

    Args:
        source: a NIfTI file, a folder of them, a folder with one DICOM series, or a folder of such folders.
        output: folder for the masks, ``<case>_seg.nii.gz``.
        run: the run whose weights are used; by default the demo network, trained on phantoms.
        clinical: table (xlsx or csv) with the patients' clinical variables; without it nothing is known of them.
        runs: several runs in place of one, separated by commas, whose probabilities are averaged; a folder of
            `nny crossval` stands for all its folds.
        shard: 0/4 to 3/4: the first to the last quarter of the cases, for a Slurm array.
        **overrides: any id of the configuration: --save_probabilities True --tta_axes "[0,1]" …
    """
    names = runs.split(",") if isinstance(runs, str) else [str(name) for name in runs]
    names = [name.strip() for name in names if name.strip()]
    folders, settings = members_of(names, overrides) if names else ([_run_folder(run, "inference.yaml")], overrides)
    target, table = Path(_absolute(output)), None if clinical is None else _absolute(clinical)
    if table is not None and not names and not (folders[0] / "clinical.json").is_file():
        raise ValueError(f"{folders[0]} was trained on images alone; it cannot use {clinical}.")
    mine = share(inference_cases(source), own_share(shard))
    cohort.begin(target, cohort.identity(_absolute(source), folders, table, settings))
    probabilities = bool(settings.get("save_probabilities", False))
    cases = cohort.open_cases(mine, target, probabilities)
    if len(cases) < len(mine):
        print(f"{len(mine) - len(cases)} of {len(mine)} masks are there already.")
    settings = ({"device": device()} if launched() else {}) | dict(settings)
    if cases and names:
        settings.pop("save_probabilities", None)
        cohort.segment_cases(Ensemble(folders, clinical_table=table, **settings), cases, target, probabilities)
    elif cases:
        _infer_one(folders[0], cases, target, table, settings)


def _infer_one(
    run: Path, cases: Sequence[Mapping[str, Any]], target: Path, table: str | None, settings: Mapping[str, Any]
) -> None:
    """Segment cases with the network of one run."""
    with cohort.workshop(target) as place:
        _run(
            "inference",
            [run / "inference.yaml", CONFIGS / "infer_cohort.yaml"],
            settings,
            output_dir=str(place),
            masks_dir=str(target),
            checkpoint=str(run / "model.pt"),
            clinical_statistics=str(run / "clinical.json"),
            clinical_table_path=table,
            **{"dataset::data": tuple(cases)},  # no list: texts in it would be read as expressions
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


def _several(workflow: str) -> list[Path]:
    """What a workflow needs besides where torchrun started several processes."""
    return [CONFIGS / f"multi_gpu_{workflow}.yaml"] if launched() else []


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _run_folder(run: str, file: str) -> Path:
    folder = Path(run).expanduser().resolve()
    for name in (file, "model.pt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a finished run: it has no {name}. Train one with `nny train`.")
    return folder
