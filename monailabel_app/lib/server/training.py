"""Starts, watches and stops training for clients, in place of MONAI Label's endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.utils.async_tasks.utils import processes, stop_background_task, tasks

from monailabel_app.lib.server.process import submit

ACTIVE = ("SUBMITTED", "RUNNING")
START = 15.0  # seconds within which a submitted training has its process


class Training:
    """The endpoints under ``/train``: one training at a time, each in a process of its own.

    Args:
        app: gives the running app.
    """

    def __init__(self, app: Callable[[], Any]) -> None:
        self.app = app

    def all(self) -> dict[str, Callable[..., Any]]:
        """Name of MONAI Label's endpoint -> what is called in its place."""
        return {
            "train.api_run_model": self.start,
            "train.api_run": self.start_all,
            "train.api_status": self.status,
            "train.api_stop": self.stop,
        }

    def start(
        self, *, model: str, params: Mapping[str, Any] | None, run_sync: bool = False, enqueue: bool = False, **_: Any
    ) -> dict[str, Any]:
        """POST /train/<model>: refuse now what would fail later, then start.

        Raises:
            HTTPException: 429 when a training runs and the client does not want to wait in line.
            ValueError: an unknown model, a parameter or the data cannot be used.
        """
        app = self.app()
        task = app.train_task(model)
        if run_sync:
            raise ValueError("run_sync is not offered: training has a process of its own. Ask GET /train/ how it goes.")
        settings = task.check(params or {})
        task.check_data(app.datastore(), settings["pretrained"])
        if active() and not enqueue:
            raise HTTPException(429, "A training is running. Wait for it, stop it, or send enqueue=true.")
        before = task.versions.served

        def ended() -> None:
            if task.versions.served != before:
                app.on_new_version(model, task.versions.served)

        return shown(submit({"model": model, **settings}, ended))

    def start_all(self, *, params: Mapping[str, Any] | None, run_sync: bool = False, **_: Any) -> dict[str, Any]:
        """POST /train/: every model, one after the other; ``params`` may hold parameters by model."""
        trainers = list(self.app().trainers)
        given = {name: (params or {}).get(name) or {} for name in trainers}
        for name in trainers:
            self.app().train_task(name).check(given[name])
        return {
            name: {
                "result": self.start(model=name, params=given[name], run_sync=run_sync, enqueue=True),
                "detail": None,
            }
            for name in trainers
        }

    def status(self, *, all: bool = False, check_if_running: bool = False, **_: Any) -> Any:
        """GET /train/: the latest training, or all; with ``check_if_running`` 404 unless one runs or is about to."""
        listed = active() if check_if_running else tasks("train")
        if not listed:
            raise HTTPException(404, "No training is running." if check_if_running else "There was no training yet.")
        if all and not check_if_running:
            return [shown(task) for task in listed]
        return shown(listed[0] if check_if_running else listed[-1])

    def stop(self, **_: Any) -> dict[str, Any] | None:
        """DELETE /train/: stop the running training; one that was just submitted is stopped as soon as it exists."""
        end = time.monotonic() + START
        while active() and not processes("train") and time.monotonic() < end:
            time.sleep(0.05)
        running = list(processes("train").values())
        stopped = stop_background_task("train")
        for process in running[:1]:
            process.wait(START)  # killed, so at once; then whoever asks next is told that it has ended
        return shown(stopped) if stopped else None


def active() -> list[dict[str, Any]]:
    """The trainings that run or wait, the running one first."""
    return [task for task in tasks("train") if task["status"] in ACTIVE]


def shown(task: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for the client; the task's own lines go on changing in another thread."""
    return {key: list(value) if key == "details" else value for key, value in dict(task).items()}
