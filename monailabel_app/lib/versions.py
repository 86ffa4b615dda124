"""The versions of a model: what was given is 0, every accepted training adds one, and one of them is served."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from scripts.files import replacing

from monailabel_app.lib.models import Source, run_source

BASE = "0"


class Versions:
    """Keeps the versions of one model in a folder, and which of them is served.

    ``<folder>/served.json`` is replaced in one step, so a kill leaves the old choice or the new one; every process
    that reads it sees the same. ``<folder>/<number>/`` is a version's training: ``run/``, the folder of a run, and
    ``verdict.json`` once it was judged.

    Args:
        folder: the model's folder; made when something is written.
        base: what the operator gave, version 0.

    Raises:
        ValueError: the folder holds versions of another network.
    """

    def __init__(self, folder: Path, base: Source) -> None:
        self.folder, self.base = folder, base
        self._fingerprint = _fingerprint(base)
        known = self._read().get("base")
        if known is not None and known != self._fingerprint:
            raise ValueError(
                f"{folder} holds versions of another network than {base.weights or base.inference[0]}. Choose another "
                "name for the model (--conf bundle name=path) or another --conf output."
            )

    @property
    def served(self) -> str:
        """The version that answers requests."""
        return str(self._read().get("served", BASE))

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes whenever another version is served."""
        try:
            found = (self.folder / "served.json").stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    def known(self) -> list[str]:
        """All versions that can be served, the oldest first."""
        accepted = [name for name in self._numbers() if self.verdict(name).get("accepted")]
        return [*([BASE] if self.base.weights else []), *accepted]

    def new(self) -> tuple[str, Path]:
        """Make the folder of the next version; a number is never used twice."""
        number = str(max(map(int, self._numbers()), default=0) + 1)
        folder = self.folder / number
        folder.mkdir(parents=True)
        return number, folder

    def source(self, version: str) -> Source:
        """What a version is made of.

        Raises:
            ValueError: no such version; says which there are.
        """
        if version not in self.known():
            raise ValueError(f"There is no version {version!r} of {self.base.name}; there are {_listed(self.known())}.")
        if version == BASE:
            return self.base
        return run_source(self.base.name, self.folder / version / "run")

    def verdict(self, version: str) -> dict[str, Any]:
        """How a version was judged; empty for one that was not (given, unfinished, stopped)."""
        return _json(self.folder / version / "verdict.json")

    def judge(self, version: str, verdict: dict[str, Any]) -> None:
        """Write down how a version was judged."""
        _write(self.folder / version / "verdict.json", verdict)

    def serve(self, version: str) -> None:
        """Serve a version from now on; running servers notice at the next request.

        Raises:
            ValueError: no such version.
        """
        self.source(version)
        before = self._read()
        history = [*before.get("history", []), before.get("served", BASE)]
        _write(self.folder / "served.json", {"served": version, "history": history, "base": self._fingerprint})

    def _numbers(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted((path.name for path in self.folder.iterdir() if path.name.isdigit()), key=int)

    def _read(self) -> dict[str, Any]:
        return _json(self.folder / "served.json")


def _listed(versions: list[str]) -> str:
    return ", ".join(versions) or "none yet"


def _fingerprint(base: Source) -> str:
    """Identity of the given network: its weights, or the configuration of one that has none."""
    content = [base.weights] if base.weights else list(base.inference)
    return hashlib.sha256(b"".join(file.read_bytes() for file in content)).hexdigest()


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    with replacing(file) as part:
        part.write_text(json.dumps(content, indent=1))
