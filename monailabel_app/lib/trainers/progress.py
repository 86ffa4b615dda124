"""What clients see of a training: files in the version's folder, which outlive the process that wrote them."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from scripts.files import replacing
from scripts.handlers import read_log

RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


class Job:
    """The state of one training in ``<folder>/job.json``.

    Args:
        folder: the version's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def running(self, **facts: Any) -> Iterator[Callable[..., None]]:
        """Note that this process trains, and at the end how it ended; gives a function that notes more facts."""
        process = psutil.Process()
        state = facts | {"state": RUNNING, "pid": process.pid, "born": process.create_time(), "started": time.time()}

        def note(**more: Any) -> None:
            state.update(more)
            self._write(state)

        note()
        try:
            yield note
        except BaseException as error:
            self._write(state | {"state": FAILED, "message": str(error), "ended": time.time()})
            raise
        self._write(state | {"state": DONE, "ended": time.time()})

    def stats(self) -> dict[str, Any]:
        """What clients show: ``epoch`` of ``total_epochs``, ``best_metric`` (held-out Dice) and more.

        While it runs there is a ``current_time``, afterwards a ``total_time``: by this clients tell the two apart.
        """
        file = self.folder / "job.json"
        if not file.is_file():
            return idle()
        state = json.loads(file.read_text())
        running = state["state"] == RUNNING and _alive(state)
        rows = read_log(self.folder / "run" / "log.csv")
        scores = {int(row["epoch"]): float(row["val_dice"]) for row in rows if row.get("val_dice")}
        scores = {epoch: score for epoch, score in scores.items() if math.isfinite(score)}
        best = max(scores, key=lambda epoch: scores[epoch], default=0)
        spent = timedelta(
            seconds=int(state.get("ended", time.time() if running else file.stat().st_mtime) - state["started"])
        )
        verdict = self.folder / "verdict.json"
        return {
            "version": self.folder.name,
            "state": state["state"] if running or state["state"] != RUNNING else STOPPED,
            "epoch": int(rows[-1]["epoch"]) if rows else 0,
            "total_epochs": state["epochs"],
            "train_loss": float(rows[-1]["train_loss"]) if rows else None,
            "best_metric": scores.get(best, 0.0),
            "best_metric_epoch": best,
            "start_ts": int(state["started"]),
            "current_time" if running else "total_time": str(spent),
            "cases": state.get("cases"),
            "message": state.get("message", ""),
            "verdict": json.loads(verdict.read_text()) if verdict.is_file() else None,
        }

    def _write(self, state: dict[str, Any]) -> None:
        with replacing(self.folder / "job.json") as part:
            part.write_text(json.dumps(state, indent=1))


def idle() -> dict[str, Any]:
    """The statistics of a model that was never trained here."""
    return {"epoch": 0, "total_epochs": 1, "best_metric": 0.0, "total_time": "0:00:00", "state": "not started"}


@contextlib.contextmanager
def printing(run: Path, epochs: int) -> Iterator[None]:
    """Print one line an epoch, and send everything else that is printed to ``<run>/output.txt``.

    MONAI Label shows clients the last 20 lines of a training, which progress bars would fill.

    Args:
        run: folder of the run, made.
        epochs: their number.
    """
    run.mkdir(parents=True, exist_ok=True)
    end = threading.Event()

    def follow() -> None:
        shown, last = 0, False
        while not last:
            last = end.wait(0.5)
            for row in read_log(run / "log.csv")[shown:]:
                shown += 1
                score = f", Dice {float(row['val_dice']):.3f}" if row.get("val_dice") else ""
                print(
                    f"epoch {row['epoch']}/{epochs}: loss {float(row['train_loss']):.4f}{score}", file=out, flush=True
                )

    out = sys.stdout
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        file = (run / "output.txt").open("a", buffering=1)  # left open: the loggers that training sets up hold on to it
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    finally:
        end.set()
        thread.join()


def _alive(state: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(state["pid"])
        return abs(process.create_time() - state["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
