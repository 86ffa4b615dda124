"""Processes that the server starts end with it, however it ended: nobody could stop them then."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

SERVER = "NNY_SERVER"  # environment variable: id of the process that a child ends with


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment for a child that calls `end_with_the_server`, and what else it needs."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return dict(os.environ) | {"PYTHONPATH": paths, SERVER: str(os.getpid())} | more


def end_with_the_server() -> None:
    """Kill this process within a second after the one that started it has ended; does nothing outside a server."""
    server = os.environ.get(SERVER)
    if server is None:
        return

    def watch() -> None:
        while str(os.getppid()) == server:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end with the server", daemon=True).start()
