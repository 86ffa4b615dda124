"""Starts the annotation server as a user does, for the tests that talk to a process."""

import signal
import subprocess
import sys
import time
import urllib.request

from support import ROOT

PATIENCE = 180  # seconds for the server to start


class Server:
    """``nny serve`` on a free port, in a folder of its own; ``command`` starts another one."""

    def __init__(self, *arguments, cwd, command=None):
        command = command or [str(ROOT / "nny"), "serve", "--port", "0", *map(str, arguments)]
        self.log = cwd / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, text=True)
        self.address = self._wait("Ready. 3D Slicer: give ", "Uvicorn running on ")

    def _wait(self, *signs):
        end = time.monotonic() + PATIENCE
        while True:
            text = self.log.read_text()
            for sign in signs:
                if sign in text:
                    return text.split(sign)[1].split()[0].removesuffix("\x1b[0m").removeprefix("\x1b[1m")
            assert self.process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.2)

    def get(self, path, method="GET", origin=None):
        headers = {} if origin is None else {"Origin": origin}
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert "access-control-allow-origin" not in answer.headers
            return answer.read()

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


def stock_command(app, studies, port, *conf):
    """MONAI Label's own way to start an app."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for key, value in conf:
        command += ["--conf", key, str(value)]
    return command
