"""MLflow, offline: a run's settings, curves and scores in a local store, mirrored from the files of its folder.

TensorBoard files are always written; MLflow is for those who compare many runs in its pages
(``mlflow ui --backend-store-uri sqlite:///<run>/mlflow.db``). Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scripts.handlers import read_log

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
EXPERIMENT, FOLDER_TAG = "nny", "nny.folder"
ARTIFACTS = ("config.yaml", "versions.json", "datalist.json", "evaluation/per_case.csv", "evaluation/summary.json")


def track(run: str, *, store: str | None = None) -> str:
    """Copy what is new in a run's folder to MLflow: settings once, each epoch once, scores, files.

    Args:
        run: the run's folder.
        store: address of the store, ``sqlite:///<file>`` or another of MLflow's; by default ``mlflow.db`` in the run.

    Returns:
        MLflow's id of the run; the same for the same folder, however often it is called.

    Raises:
        FileNotFoundError: the folder is not a run.
    """
    folder = Path(run).expanduser().resolve()
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no config.yaml. Give the folder that `nny train` wrote.")
    return _Mirror(folder, store).copy(finished=True)


@contextmanager
def mirrored(folder: str | Path, store: str | None = None, *, seconds: float = 10.0) -> Iterator[None]:
    """Copy a run to MLflow while the block trains it, and once more when it ends.

    Args:
        folder: the run's folder, which need not exist yet.
        store: as of `track`.
        seconds: between two looks at the folder.
    """
    folder, done = Path(folder).expanduser().resolve(), threading.Event()

    def follow() -> None:
        mirror = None
        while not done.wait(seconds):
            if not (folder / "log.csv").is_file():
                continue
            try:  # a locked database must not end a training
                mirror = mirror or _Mirror(folder, store)
                mirror.copy()
            except Exception as error:
                logger.warning(f"MLflow: {error}; trying again.")

    thread = threading.Thread(target=follow, name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if (folder / "config.yaml").is_file():
            _Mirror(folder, store).copy(finished=True)


class _Mirror:
    """One run folder and its place in a store."""

    def __init__(self, folder: Path, store: str | None) -> None:
        self.folder = folder
        file = folder / "mlflow.db"
        self.client = _client(store or f"sqlite:///{file}")
        place = Path(store.removeprefix("sqlite:///")) if store and store.startswith("sqlite:///") else file
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        where = (place.parent / "mlflow_files").as_uri() if place.parent.is_dir() else None
        self.experiment = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(EXPERIMENT, artifact_location=where)
        )
        self.id = self._run()

    def _run(self) -> str:
        """The run of this folder, made with its settings where there is none."""
        quoted = str(self.folder).replace("'", "")
        found = self.client.search_runs([self.experiment], f"tags.`{FOLDER_TAG}` = '{quoted}'")
        if found:
            return found[0].info.run_id
        made = self.client.create_run(self.experiment, tags={FOLDER_TAG: quoted}, run_name=self.folder.name)
        from mlflow.entities import Param

        config = yaml.safe_load((self.folder / "config.yaml").read_text())
        plain = {k: str(v)[:500] for k, v in config.items() if isinstance(v, str | int | float | bool)}
        self.client.log_batch(made.info.run_id, params=[Param(k, v) for k, v in sorted(plain.items())])
        return made.info.run_id

    def copy(self, *, finished: bool = False) -> str:
        """Copy the epochs that are not there yet; at the end also scores and files."""
        from mlflow.entities import Metric

        known = {point.step for point in self.client.get_metric_history(self.id, "train_loss")}
        metrics = []
        for row in read_log(self.folder / "log.csv"):
            epoch = int(row["epoch"])
            if epoch not in known:
                values = {name.replace(" ", "_"): float(v) for name, v in row.items() if v and name != "epoch"}
                metrics += [Metric(name, value, _now(), epoch) for name, value in values.items()]
        if finished:
            metrics += [Metric(name, value, _now(), 0) for name, value in _scores(self.folder).items()]
        for start in range(0, len(metrics), 1000):  # MLflow takes a thousand at once
            self.client.log_batch(self.id, metrics=metrics[start : start + 1000])
        if finished:
            for name in filter(lambda name: (self.folder / name).is_file(), ARTIFACTS):
                self.client.log_artifact(self.id, str(self.folder / name))
            self.client.set_terminated(self.id)
        return self.id


def _client(store: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow.store.db.utils"):  # forty lines about making the tables
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ValueError("--tracking mlflow needs the package mlflow: pip install mlflow.") from error
    if store.startswith("sqlite:///"):
        Path(store.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=store)


def _scores(folder: Path) -> dict[str, float]:
    """Means of an evaluation by name, ``test_dice`` and ``test_dice_liver`` for example."""
    file = folder / "evaluation" / "summary.json"
    summary: Mapping[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    parts = {"": summary.get("total", {})} | {f"_{k}": v for k, v in summary.get("classes", {}).items()}
    return {
        f"test_{metric}{suffix}".replace(" ", "_"): float(found["mean"])
        for suffix, metrics in parts.items()
        for metric, found in metrics.items()
        if found.get("mean") is not None
    }


def _now() -> int:
    return int(time.time() * 1000)
