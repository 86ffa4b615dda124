"""Judges a TorchScript file without loading it: archive, pickles, sizes, and the operators that its code names."""

from __future__ import annotations

import ast
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from .pickles import OPCODES as PLAIN_OPCODES
from .weights import weights_problems

HELPERS = "torch.jit._pickle"  # type tags and typed lists
HOLDERS = {"data": True, "constants": True, "traced_inputs": False}  # pickles, and whether each has to be there
REFUSED_OPERATORS = {"from_file", "save", "load", "manual_seed", "read_file", "write_file", "Print", "open"}
ROOTS = {"torch", "ops"}
NAMESPACES = {"aten", "prim", "quantized"}
CLASSES = "__torch__.torch.classes"  # written in C++; some open files and connections
MAX_CODE = 4 * 2**20  # bytes of a module's text
MAX_PATH = 2000  # characters; modules within modules
OPCODES = PLAIN_OPCODES | {"NEWOBJ"}  # modules; only our stand-in is ever built


def torchscript_problems(path: Path, weights: Path) -> Iterator[str]:
    """Judge a TorchScript file.

    What its code computes is not checked: TorchScript cannot reach Python, but it can be wrong, slow, or use much
    memory.

    Args:
        path: the file.
        weights: ``model.pt``, of which the file must hold the same numbers.

    Yields:
        One message for each reason not to load it.
    """
    try:
        with open_zip(path) as archive:
            found = list(zip_problems(archive)) or sorted(set(_content_problems(archive)))
            if not found and not list(weights_problems(weights)):
                with open_zip(weights) as other:
                    found = list(_other_numbers(archive, other))
    except DAMAGED as error:
        found = [f"is not what torch.jit.save writes ({type(error).__name__}: {error})"]
    yield from (f"{problem}; {CURE}" for problem in found)


def _content_problems(archive: zipfile.ZipFile) -> Iterator[str]:
    root = archive.namelist()[0].split("/")[0]
    stored = {entry.filename: entry.file_size for entry in archive.infolist()}
    for holder, needed in HOLDERS.items():
        name = f"{root}/{holder}.pkl"
        if name not in stored:
            if needed:
                yield f"has no {holder}.pkl"
            continue
        data = read_pickle(archive, name)
        problems = list(pickle_problems(data, _accepted, OPCODES))
        yield from problems
        if not problems:
            for record in _tensors(read_records(data, _stand_in)).values():
                yield from record_problems(record, stored, f"{root}/{holder}")
    known = {f"{root}/{holder}.pkl" for holder in HOLDERS}
    for name in stored:
        if name.endswith(".py"):
            too_large = stored[name] > MAX_CODE
            yield from [f"{name} has {stored[name]} bytes"] if too_large else code_problems(archive.read(name))
        elif name.endswith(".pkl") and name not in known:
            yield f"holds another pickle, {name}"


def _other_numbers(archive: zipfile.ZipFile, weights: zipfile.ZipFile) -> Iterator[str]:
    """Compare the parameters, found by name, with those of the state dict."""
    mine, theirs = (opened.namelist()[0].split("/")[0] for opened in (archive, weights))
    here = _tensors(read_records(archive.read(f"{mine}/data.pkl"), _stand_in))
    there = read_records(weights.read(f"{theirs}/data.pkl"))
    both = [name for name in there if name in here]
    if not both:
        yield "holds none of the parameters of models/model.pt"
    for name in both:
        if here[name].shape != there[name].shape:
            yield f"{name} has another shape than in models/model.pt"
        elif _numbers(archive, f"{mine}/data", here[name]) != _numbers(weights, f"{theirs}/data", there[name]):
            yield f"{name} has other numbers than in models/model.pt"


def _numbers(archive: zipfile.ZipFile, folder: str, record: TensorRecord) -> bytes:
    """The bytes of a contiguous tensor."""
    item, count = record.storage.item, math.prod(record.shape)
    data = archive.read(f"{folder}/{record.storage.key}")
    return data[record.offset * item : (record.offset + count) * item]


def _accepted(name: str) -> bool:
    if name.startswith(CLASSES):
        return False
    return name in GLOBALS or name.startswith(("__torch__.", "__torch__ ", f"{HELPERS} "))


def code_problems(source: bytes) -> Iterator[str]:
    """Look for operators that read or write files, or that come from outside of torch.

    Args:
        source: TorchScript's own text, which has the syntax of Python; parsed and never run.

    Yields:
        One message for each operator that is refused.
    """
    text = source.decode("utf-8")
    if not text.isascii() or "\r" in text:  # torch and Python would not read the same lines
        yield "its code has characters that torch.jit.save does not write"
    tree = ast.parse(text)
    called = {id(base) for node in ast.walk(tree) if isinstance(node, ast.Call) for base in _bases(node.func)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ROOTS and id(node) not in called:
            yield f"its code uses the name {node.id} for something else than a call"
        if not isinstance(node, ast.Attribute):
            continue
        name = ast.unparse(node)
        parts = name.split(".")
        outside = parts[0] == "ops" and len(parts) > 2 and parts[1] not in NAMESPACES
        if outside or name == CLASSES or (parts[0] in ("ops", "torch") and parts[-1] in REFUSED_OPERATORS):
            yield f"its code uses the operator {name}"


def _bases(function: ast.expr) -> Iterator[ast.expr]:
    """The name at the root of a dotted function."""
    dotted = isinstance(function, ast.Attribute)
    while isinstance(function, ast.Attribute):
        function = function.value
    if dotted:
        yield function


class _Object:
    """Stands for a module or a list of TorchScript: keeps what it is given."""

    def __init__(self, *content: Any) -> None:
        self.content: Any = list(content)

    def __setstate__(self, state: Any) -> None:
        self.content = state


def _stand_in(name: str) -> type[_Object]:
    return _Object


def _tensors(value: Any) -> dict[str, TensorRecord]:
    """All tensors below a value by their path, each object visited once."""
    found: dict[str, TensorRecord] = {}
    left, seen = [("", value)], set()
    while left:
        name, item = left.pop()
        if len(name) > MAX_PATH:
            raise ValueError(f"{name[:50]}… lies too deep")
        if isinstance(item, TensorRecord):
            found[name] = item
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        item = getattr(item, "content", item)
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list | tuple) else ()
        left.extend((f"{name}.{key}" if name else str(key), child) for key, child in pairs)
    return found
