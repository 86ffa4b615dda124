"""A private copy of a bundle: what is judged is what is used, and it goes away."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

CLONES = (".git", ".cache")  # what git and Hugging Face keep beside a bundle's files


@contextmanager
def private_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it whatever happens, SIGTERM and SIGHUP included.

    Args:
        parent: where to make it; None for the system's temporary folder.

    Yields:
        The folder.
    """
    in_main = threading.current_thread() is threading.main_thread()
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if in_main and hasattr(signal, name)]
    watched = [number for number in ends if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, _leave) for number in watched}
    folder = Path(tempfile.mkdtemp(prefix=".nny-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def list_files(folder: Path, *, clone: bool) -> tuple[list[str], list[str]]:
    """List the files of a bundle's folder, without following a link.

    Args:
        folder: the bundle.
        clone: leave out what git and Hugging Face keep at its top; a zip has none of it, and git would run it.

    Returns:
        Paths relative to the folder with ``/``, sorted; and one message for each entry that is no plain file.
    """
    files, problems, folders = [], [], [folder]
    while folders:
        for entry in os.scandir(folders.pop()):
            name = Path(entry.path).relative_to(folder).as_posix()
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if not (clone and name in CLONES):
                    folders.append(Path(entry.path))
            elif stat.S_ISREG(mode):
                files.append(name)
            elif stat.S_ISLNK(mode):
                problems.append(f"{name}: is a symbolic link; put the file itself in its place")
            else:
                problems.append(f"{name}: is no plain file; remove it")
    return sorted(files), problems


def copy_files(source: Path, names: list[str], target: Path) -> None:
    """Copy files into a private folder.

    Args:
        source: the bundle.
        names: relative paths.
        target: the private folder.

    Raises:
        OSError: a file turned into a link, or is gone, since it was listed.
    """
    for name in tqdm(names, desc="copying", leave=False, disable=None):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file, open(path, "xb") as copy:
            shutil.copyfileobj(file, copy)
