"""Ignite handlers that MONAI does not have: seeds, clipping, averaged weights, last validation, resumable state."""

from __future__ import annotations

import random
from collections.abc import Mapping
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
from scripts.training_log import TrainingLog, loss_of, read_log

__all__ = [
    "EMA",
    "EMAUpdate",
    "EpochSeed",
    "FinalValidation",
    "GradientClipping",
    "TrainingLog",
    "TrainingState",
    "loss_of",
    "read_log",
    "save_atomically",
]


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
