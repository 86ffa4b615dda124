"""Ignite handlers that MONAI does not have: seeds, clipping, averaged weights, the training log and resumable state."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from torch.optim.swa_utils import AveragedModel

from scripts.files import replacing


@idist.one_rank_only()
def save_atomically(content: Any, path: str | Path) -> None:
    """Save with ``torch.save`` so that a kill leaves either the old file or the new one, never a part.

    Of several processes the first one saves.

    Args:
        content: anything ``torch.save`` takes.
        path: the file to write; its folder is made.
    """
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)


def loss_of(output: Mapping[str, Any]) -> float:
    """The loss in a trainer's output."""
    return float(output["loss"].detach())


class EpochSeed:
    """Reseed everything random at the start of each epoch, so that an epoch depends on ``(seed, epoch)`` alone.

    This is what makes a resumed run equal to an uninterrupted one: no generator state has to survive the process.
    The order of cases, the augmentation (also in loader workers, which draw their seeds from torch's generator),
    dropout and the dropping of clinical values all follow from it. It needs loaders without persistent workers.

    Args:
        seed: base seed, a non-negative integer.
        dataset: the training dataset, whose random transforms are reseeded.
    """

    def __init__(self, *, seed: int, dataset: Any) -> None:
        self.seed, self.dataset = seed, dataset

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Reseed python, numpy, torch and the transforms."""
        rank = idist.get_rank()  # each of several processes draws its own augmentation
        state = np.random.SeedSequence([self.seed, engine.state.epoch, *([rank] if rank else [])]).generate_state(1)
        value = int(state[0])
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
        set_rnd(self.dataset, value)


class GradientClipping:
    """Clip the global gradient norm between the backward pass and the optimiser's step (unscaling first under AMP).

    Args:
        max_norm: largest allowed L2 norm over all parameters, > 0.
    """

    def __init__(self, *, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm is {max_norm}, expected a positive number; drop the handler to not clip.")
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip in place."""
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class EMA(AveragedModel):
    """Exponential moving average of a network's weights, a module with the averaged copy as ``.module``.

    The decay warms up, ``min(decay, (1 + n) / (10 + n))`` after n updates, so that a short run is not held back by
    its first weights. Buffers are averaged as well.

    Args:
        model: the network in training.
        decay: weight of the past, in [0, 1); 0 copies the network.
    """

    def __init__(self, model: torch.nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 <= decay < 1.")

        def average(averaged: torch.Tensor, current: torch.Tensor, n: torch.Tensor | int) -> torch.Tensor:
            weight = min(decay, (1 + int(n)) / (10 + int(n))) if decay else 0.0
            return torch.lerp(current, averaged, weight) if averaged.is_floating_point() else current

        super().__init__(model, avg_fn=average, use_buffers=True)


class EMAUpdate:
    """Update averaged weights after each step of the optimiser.

    Args:
        ema: the averaged weights.
        model: the network in training.
    """

    def __init__(self, *, ema: EMA, model: torch.nn.Module) -> None:
        self.ema, self.model = ema, model

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self) -> None:
        """Update the average."""
        self.ema.update_parameters(self.model)


class FinalValidation:
    """Validate after the last epoch when MONAI's `ValidationHandler` did not, so that every run ends with weights.

    Args:
        validator: the validation evaluator.
        interval: epochs between the validations of that handler.
    """

    def __init__(self, *, validator: Any, interval: int) -> None:
        self.validator, self.interval = validator, interval

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate if this is the last epoch and its turn has not come."""
        if engine.state.epoch == engine.state.max_epochs and engine.state.epoch % self.interval:
            self.validator.run(engine.state.epoch)


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


class TrainingState:
    """Save everything that a run needs to go on, each epoch; keep the best weights; stop when nothing improves.

    Args:
        folder: the run's folder. ``checkpoints/last.pt`` is the state to resume from, ``model.pt`` the weights of
            the best validated epoch (averaged weights when given as ``deployed``).
        objects: name -> object with ``state_dict``/``load_state_dict`` (network, averaged weights, optimiser,
            schedule …). The trainer's epoch and loss scaler are added.
        deployed: the module whose weights are written to ``model.pt``.
        validator: the validation evaluator.
        key_metric: name of its scalar metric, higher is better.
        patience: epochs without a better score after which a validated epoch is the last; None never stops early.
        resume: go on from ``checkpoints/last.pt`` when it exists. A fresh start over an existing state is refused.
    """

    def __init__(
        self,
        *,
        folder: str,
        objects: Mapping[str, Any],
        deployed: torch.nn.Module,
        validator: Engine,
        key_metric: str,
        patience: int | None = None,
        resume: bool = True,
    ) -> None:
        self.folder, self.objects, self.deployed = Path(folder), dict(objects), deployed
        self.validator, self.key_metric, self.patience, self.resume = validator, key_metric, patience, resume
        self.best_score, self.best_epoch = -float("inf"), 0
        self.stopped = False
        self._score: float | None = None

    @property
    def path(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.pt"

    def attach(self, engine: Engine) -> None:
        """Register on the trainer, after every handler whose state is saved."""
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        self.validator.add_event_handler(Events.COMPLETED, self._note_score)

    def _note_score(self, evaluator: Engine) -> None:
        self._score = float(evaluator.state.metrics[self.key_metric])

    def _restore(self, engine: Any) -> None:
        if not self.path.exists():
            return
        if not self.resume:
            raise FileExistsError(
                f"{self.path} holds an earlier run. Resume it (--resume True) or choose another folder."
            )
        state = torch.load(self.path, map_location=engine.state.device, weights_only=True)
        missing = self.objects.keys() - state["objects"].keys()
        if missing:
            raise ValueError(f"{self.path} does not hold {sorted(missing)}; it was written by another configuration.")
        for name, item in self.objects.items():
            try:
                item.load_state_dict(state["objects"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.path}: the saved {name} does not fit this configuration, nothing was resumed: {error}"
                ) from error
        if engine.scaler is not None and state["scaler"] is not None:
            engine.scaler.load_state_dict(state["scaler"])
        self.best_score, self.best_epoch, self.stopped = state["best_score"], state["best_epoch"], state["stopped"]
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        engine.logger.info(f"Resumed {self.path} after epoch {state['epoch']}.")
        if self.stopped:
            engine.terminate()

    def _save(self, engine: Any) -> None:
        epoch = engine.state.epoch
        validated = self._score is not None
        if self._score is not None and self._score > self.best_score:
            self.best_score, self.best_epoch = self._score, epoch
            save_atomically(self.deployed.state_dict(), self.folder / "model.pt")
        self._score = None
        self.stopped = validated and self.patience is not None and epoch - self.best_epoch >= self.patience
        state = {
            "epoch": epoch,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else None,
        }
        save_atomically(state, self.path)
        if self.stopped:
            engine.logger.info(f"No better score in {self.patience} epochs: stopped after epoch {epoch}.")
            engine.terminate()
