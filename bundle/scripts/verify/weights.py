"""Judges stored numbers, the state dict and the case with its answer, before anything loads them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .archive import open_zip, zip_problems
from .pickles import (
    CURE,
    DAMAGED,
    GLOBALS,
    TensorRecord,
    pickle_problems,
    read_pickle,
    read_records,
    record_problems,
)

NEEDED, OPTIONAL = {"image", "logits"}, {"clinical"}
MAX_ARRAY = 2**30  # bytes
MAX_HEADER = 2**16
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def weights_problems(path: Path) -> Iterator[str]:
    """Judge a state dict as `torch.save` writes it.

    Args:
        path: the file.

    Yields:
        One message for each reason not to load it.
    """
    try:
        with open_zip(path) as archive:
            found = list(zip_problems(archive)) or list(_content_problems(archive))
            damaged = None if found else archive.testzip()
            found += [f"{damaged} in it is damaged"] if damaged else []
    except DAMAGED as error:
        found = [f"is not what torch.save(network.state_dict(), path) writes ({type(error).__name__}: {error})"]
    yield from (f"{problem}; {CURE}" for problem in found)


def _content_problems(archive: zipfile.ZipFile) -> Iterator[str]:
    root = archive.namelist()[0].split("/")[0]
    pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
    if pickles != [f"{root}/data.pkl"]:
        yield f"holds the pickles {pickles}, expected data.pkl alone"
        return
    stored = {i.filename: i.file_size for i in archive.infolist()}
    data = read_pickle(archive, pickles[0])
    problems = list(pickle_problems(data, GLOBALS.__contains__))
    if problems:
        yield from problems
        return
    state = read_records(data)
    if not isinstance(state, Mapping) or not state:
        yield f"holds a {type(state).__name__}, expected a state dict"
        return
    for name, value in state.items():
        if not isinstance(value, TensorRecord):
            yield f"{name} is a {type(value).__name__}, expected a tensor"
        else:
            yield from (f"{name}: {problem}" for problem in record_problems(value, stored, f"{root}/data"))


def arrays_problems(path: Path) -> Iterator[str]:
    """Judge the arrays' headers against the bytes that follow.

    Args:
        path: the npz file.

    Yields:
        One message for each reason not to load it.
    """
    try:
        with open_zip(path) as archive:
            found = list(_array_names(archive)) or [
                f for entry in archive.infolist() for f in _header_problems(archive, entry)
            ]
    except DAMAGED as error:
        found = [f"is no file of arrays ({error})"]
    yield from (f"{problem}; {CURE}" for problem in found)


def _array_names(archive: zipfile.ZipFile) -> Iterator[str]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if not names >= NEEDED or names - NEEDED - OPTIONAL:
        yield f"holds {', '.join(sorted(names)) or 'nothing'}; expected image, logits and, with clinical data, clinical"
    # each array is an entry at the top, where a bundle has one folder
    yield from (problem for problem in zip_problems(archive) if "at the top" not in problem)


def _header_problems(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[str]:
    if entry.file_size > MAX_ARRAY + MAX_HEADER:
        yield f"{entry.filename}: has {entry.file_size} bytes, at most {MAX_ARRAY} are read"
        return
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
    elif size != content or size > MAX_ARRAY or min(shape, default=0) < 1:
        yield f"{entry.filename}: declares the shape {shape}, {size} bytes, but {content} follow"
