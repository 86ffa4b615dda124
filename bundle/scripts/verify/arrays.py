"""Judges the stored case, `models/check.npz`, before NumPy loads it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .archive import zip_problems
from .weights import DAMAGED

NEEDED, OPTIONAL = {"image", "logits"}, {"clinical"}
MAX_BYTES = 2**30
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
CURE = "do not load this file"


def arrays_problems(path: Path) -> Iterator[str]:
    """Judge the arrays' headers against the bytes that follow.

    Args:
        path: the npz file.

    Yields:
        One message for each reason not to load it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = list(_zip(archive)) or [f for entry in archive.infolist() for f in _entry_problems(archive, entry)]
    except DAMAGED as error:
        found = [f"is no file of arrays ({error})"]
    yield from (f"{problem}; {CURE}" for problem in found)


def _zip(archive: zipfile.ZipFile) -> Iterator[str]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if not names >= NEEDED or names - NEEDED - OPTIONAL:
        yield f"holds {', '.join(sorted(names)) or 'nothing'}; expected image, logits and, with clinical data, clinical"
    # each array is an entry at the top, where a bundle has one folder
    yield from (problem for problem in zip_problems(archive) if "at the top" not in problem)


def _entry_problems(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[str]:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in READ_HEADER:
            yield f"{entry.filename}: format {version} is unknown"
            return
        shape, _, dtype = READ_HEADER[version](file)
        content = entry.file_size - file.tell()
    size = math.prod(shape) * dtype.itemsize
    if dtype != np.float32:
        yield f"{entry.filename}: has the type {dtype}, expected float32 (objects would be unpickled)"
    elif size != content or size > MAX_BYTES or min(shape, default=0) < 1:
        yield f"{entry.filename}: declares the shape {shape}, {size} bytes, but {content} follow"
