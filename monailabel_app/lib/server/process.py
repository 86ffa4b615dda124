"""Runs a training in a process of its own, listed where MONAI Label lists its tasks."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import cache
from queue import SimpleQueue
from typing import Any

from monailabel.utils.async_tasks.utils import background_processes, background_tasks

from monailabel_app.lib.children import child_environment

logger = logging.getLogger(__name__)
METHOD = "train"
LINES = 20  # of its output, shown to clients


def submit(request: dict[str, Any], ended: Callable[[], None]) -> dict[str, Any]:
    """Start a training, or put it in the line.

    MONAI Label's own loses what a process prints last, which is where it says how it ended.

    Args:
        request: the model and its parameters.
        ended: called when it has ended, however it did.

    Returns:
        The task as MONAI Label lists it; it changes while it runs.
    """
    task = {"id": str(uuid.uuid4()), "status": "SUBMITTED", "request": request, "start_ts": _now()}
    background_processes.setdefault(METHOD, {})
    background_tasks.setdefault(METHOD, []).append(task)
    _line().put((task, ended))
    return task


@cache
def _line() -> SimpleQueue[tuple[dict[str, Any], Callable[[], None]]]:
    """The trainings that wait: one runs after the other, in a thread that does not keep a server from ending."""
    waiting: SimpleQueue[tuple[dict[str, Any], Callable[[], None]]] = SimpleQueue()

    def work() -> None:
        while True:
            _run(*waiting.get())

    threading.Thread(target=work, name="training", daemon=True).start()
    return waiting


def _run(task: dict[str, Any], ended: Callable[[], None]) -> None:
    try:
        code = _follow(task)
        if task["status"] == "RUNNING":
            task["status"] = "DONE" if code == 0 else "ERROR"
        ended()
    except Exception:
        task["status"] = "ERROR"
        logger.exception("the training %s", task["id"])
    finally:
        task["end_ts"] = _now()


def _follow(task: dict[str, Any]) -> int:
    command = [sys.executable, "-m", "monailabel.interfaces.utils.app", "-m", METHOD, "-r", json.dumps(task["request"])]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=child_environment(MONAI_LABEL_DATASTORE_AUTO_RELOAD="false"),
    )
    task["details"] = deque(maxlen=LINES)
    task["status"] = "RUNNING"
    background_processes[METHOD][task["id"]] = process
    for line in process.stdout:
        if line.strip():
            task["details"].append(line.rstrip())
            logger.info(line.rstrip())
    code = process.wait()
    background_processes[METHOD].pop(task["id"], None)
    return code


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
