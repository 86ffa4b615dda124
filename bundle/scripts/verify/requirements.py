"""Judges `requirements.txt`: names with versions, and no place to fetch them from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LINE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?\s*([=<>!~]=?=?[\w.*+!]+(\s*,\s*[=<>!~]=?=?[\w.*+!]+)*)?"
)


def requirement_problems(path: Path) -> Iterator[str]:
    """Judge each line.

    Args:
        path: the file.

    Yields:
        One message for each line that is more than a package and its versions.
    """
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        text = line.split(" #")[0].strip()
        if text and not text.startswith("#") and not LINE.fullmatch(text):
            yield f"line {number}: {text[:100]!r} is more than a package and its versions; do not install from it"
