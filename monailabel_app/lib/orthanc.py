"""Runs Orthanc, a small DICOM archive, next to the annotation server: on this computer only, behind a password."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import requests
from pydicom.misc import is_dicom
from tqdm import tqdm

CURE = "Install it: sudo apt-get install --no-install-recommends orthanc orthanc-dicomweb"
PLACES = (
    "/usr/share/orthanc/plugins",
    "/usr/local/share/orthanc/plugins",
    "/usr/lib/orthanc/plugins",
    "/usr/local/lib/orthanc/plugins",
)
PLUGIN = "libOrthancDicomWeb.so"
USER = "nny"
PATIENCE = 60.0  # seconds for it to start
PR_SET_PDEATHSIG = 1


class Orthanc:
    """One Orthanc with DICOMweb, which ends with the ``with`` block and with this process.

    Args:
        folder: keeps the scans (``storage/``), the configuration with its password, and the log; made when missing.
        port: port on the loopback address; 0 takes a free one.

    Raises:
        FileNotFoundError: Orthanc or its DICOMweb plugin is not installed.
        ValueError: another Orthanc uses the folder or the port.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        binary, plugin = find_orthanc()
        self.folder = folder.resolve()
        (self.folder / "storage").mkdir(parents=True, exist_ok=True)
        self.port = port or _free_port()
        self.password = _password(self.folder / "password")
        self.log = self.folder / "orthanc.log"
        config = self.folder / "orthanc.json"
        _write_private(config, json.dumps(self._config(plugin), indent=1))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [binary, str(config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl+C goes to the server alone, which then ends this one
                preexec_fn=_end_with_parent,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def dicomweb(self) -> str:
        """Its DICOMweb address, what ``--studies`` takes."""
        return f"{self.address}/dicom-web"

    @property
    def login(self) -> tuple[str, str]:
        """User and password."""
        return USER, self.password

    def __enter__(self) -> Orthanc:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it, so that its database is whole."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def count(self) -> int:
        """How many DICOM instances it holds."""
        answer = requests.get(f"{self.address}/statistics", auth=self.login, timeout=30)
        answer.raise_for_status()
        return int(answer.json()["CountInstances"])

    def upload(self, folder: Path) -> int:
        """Put the DICOM files of a folder, and of the folders below it, into the archive.

        Args:
            folder: files that are no DICOM are passed over; what the archive holds already stays as it is.

        Returns:
            How many files it took.

        Raises:
            ValueError: no DICOM file there, or one that the archive refuses.
        """
        files = list(_dicom_files(folder))
        if not files:
            raise ValueError(f"{folder} holds no DICOM file.")
        with requests.Session() as session:
            session.auth = self.login
            for file in tqdm(files, "into Orthanc", leave=False):
                answer = session.post(f"{self.address}/instances", data=file.read_bytes(), timeout=60)
                if not answer.ok:
                    raise ValueError(f"Orthanc refuses {file}: {answer.status_code} {answer.text[:200]}")
        return len(files)

    def _config(self, plugin: str) -> dict[str, object]:
        storage = str(self.folder / "storage")
        return {
            "Name": "nny",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "Plugins": [plugin],
            "DicomServerEnabled": False,
            "HttpPort": self.port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: self.password},
            "ExecuteLuaEnabled": False,
            "OverwriteInstances": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ValueError(f"Orthanc did not start (is another one using {self.folder}?): {self._said()}")
            try:
                answer = requests.get(f"{self.dicomweb}/studies?limit=1", auth=self.login, timeout=5)
                if answer.ok:
                    return
                if answer.status_code in (401, 403, 404) and self.process.poll() is None:
                    raise ValueError(f"Something else answers on port {self.port}: {answer.status_code}.")
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        raise ValueError(f"Orthanc did not answer within {PATIENCE:.0f} s: {self._said()}")

    def _said(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:]) + f" (whole log: {self.log})"


def find_orthanc() -> tuple[str, str]:
    """The paths of Orthanc and of its DICOMweb plugin.

    Raises:
        FileNotFoundError: not installed; the message says how to.
    """
    binary = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise FileNotFoundError(f"Orthanc, the DICOM archive, is not installed. {CURE}")
    plugin = next((Path(place) / PLUGIN for place in PLACES if (Path(place) / PLUGIN).is_file()), None)
    if plugin is None:
        raise FileNotFoundError(f"Orthanc has no DICOMweb plugin ({PLUGIN}). {CURE}")
    return binary, str(plugin)


def _dicom_files(folder: Path) -> Iterator[Path]:
    files: Iterable[Path] = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*"))
    return (path for path in files if path.is_file() and path.name != "DICOMDIR" and is_dicom(path))


def _password(file: Path) -> str:
    if not file.is_file():
        _write_private(file, secrets.token_urlsafe(24))
    return file.read_text().strip()


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner reads."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    """Called in the new process: let Linux end it when the one that started it is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
