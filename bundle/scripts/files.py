"""Writes files that are never seen half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that takes the place of ``path`` when the block ends without an error.

    A kill leaves either the old file or the new one, and at most one leftover, ``.{name}.part`` beside it, which the
    next write overwrites. Two processes must therefore not write the same file at once.

    Args:
        path: the file to write; its folder is made.

    Yields:
        The path to write to, in the same folder.

    Example:
        >>> with replacing("run/versions.json") as part:
        ...     part.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}{PART}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may keep the new name without its bytes
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
