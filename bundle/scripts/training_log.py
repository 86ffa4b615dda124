"""The training log: one row an epoch in a CSV file, which a run that is gone on with continues."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.files import replacing


def loss_of(output: Mapping[str, Any]) -> float:
    """The loss in a trainer's output."""
    return float(output["loss"].detach())


class TrainingLog:
    """Write one row an epoch to a CSV file: loss, validation scores, learning rate and seconds.

    Args:
        path: the CSV file; rows after the epoch that a resumed run starts from are dropped.
        validator: the validation evaluator, whose metrics fill ``val_*`` in the epochs in which it ran.
        key_metric: name of the validator's scalar metric, written as ``val_dice``.
        class_metric: name of its per-class metric, a tensor of one value per foreground class.
        classes: names of the foreground classes, in order.
        optimizer: whose first group's learning rate is written.

    Raises:
        ValueError: another kind of file, which a configuration may name by mistake or by intent.
    """

    def __init__(
        self,
        *,
        path: str,
        validator: Engine,
        key_metric: str,
        class_metric: str,
        classes: Sequence[str],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if Path(path).suffix != ".csv":
            raise ValueError(f"The training log is {path!r}; expected a .csv file in the run's folder.")
        self.path, self.validator, self.optimizer = Path(path), validator, optimizer
        self.key_metric, self.class_metric, self.classes = key_metric, class_metric, list(classes)
        self.columns = ["epoch", "train_loss", "val_dice", *(f"val_dice_{name}" for name in self.classes)]
        self.columns += ["lr", "seconds"]
        self._losses: list[float] = []
        self._scores: dict[str, float] = {}
        self._clock = 0.0
        self._lr = 0.0

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        self.validator.add_event_handler(Events.COMPLETED, self._add_scores)

    def _start(self) -> None:
        self._losses, self._scores, self._clock = [], {}, time.perf_counter()
        self._lr = self.optimizer.param_groups[0]["lr"]

    def _add_loss(self, engine: Any) -> None:
        loss = loss_of(engine.state.output)
        if not np.isfinite(loss):
            raise RuntimeError(
                f"The training loss is {loss} in epoch {engine.state.epoch}. The last checkpoint is kept; "
                "lower the learning rate or turn AMP off (--amp False) and resume."
            )
        self._losses.append(loss)

    def _add_scores(self, evaluator: Engine) -> None:
        per_class = np.atleast_1d(np.asarray(evaluator.state.metrics[self.class_metric], dtype=float))
        self._scores = {f"val_dice_{name}": float(v) for name, v in zip(self.classes, per_class, strict=True)}
        self._scores["val_dice"] = float(evaluator.state.metrics[self.key_metric])

    def _write(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        row: dict[str, Any] = {"epoch": epoch, "train_loss": f"{np.mean(self._losses):.6f}", "lr": f"{self._lr:.3e}"}
        row |= {name: f"{value:.5f}" for name, value in self._scores.items()}
        row["seconds"] = f"{time.perf_counter() - self._clock:.2f}"
        rows = [old for old in read_log(self.path) if int(old["epoch"]) < epoch] + [row]
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def read_log(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a training log.

    Args:
        path: CSV file of `TrainingLog`.

    Returns:
        One dict a row, values as text; empty when there is no file yet.
    """
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
