"""Judges the configurations of a bundle, every `$` expression, `_target_`, macro and reader, before MONAI sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from .allowed import LOADING, READERS, WRITERS, AllowList
from .expressions import expression_problems

MAX_BYTES = {".json": 5 * 2**20, ".yaml": 2**20}  # YAML takes its time
MAX_VALUES = 200_000  # a merged configuration has some 600
MAX_DEPTH = 60
MACRO = re.compile(r"%\w+(?:(?:::|#)\w+)*", re.ASCII)
LOADERS = {"LoadImage", "LoadImaged"}
SPECIAL = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
MERGE = "tag:yaml.org,2002:merge"
CURE = "docs/verify.md says what is accepted; do not run this bundle"


class _Loader(yaml.SafeLoader):
    """Plain data; without merge keys, as copies of copies fill the memory before anyone can count them."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys where they would be unfolded."""
        if any(key.tag == MERGE for key, _ in node.value):
            raise yaml.constructor.ConstructorError(problem="merge keys (<<) are not read")
        super().flatten_mapping(node)


def read_config(path: Path) -> Any:
    """Read YAML or JSON as plain data, without building objects.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        ValueError: the file is too large, no text, or holds more than plain data.
    """
    most = MAX_BYTES[path.suffix]
    if path.stat().st_size > most:
        raise ValueError(f"has {path.stat().st_size} bytes, at most {most} are read")
    try:
        text = path.read_bytes().decode("ascii")  # MONAI reads it in the system's encoding, which may see other lines
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()
        raise ValueError(f"is not plain {path.suffix[1:]}: {first[0] if first else type(error).__name__}") from error


def plain_problems(path: Path) -> Iterator[str]:
    """Judge a file of numbers and names that no tool evaluates.

    Args:
        path: JSON.

    Yields:
        At most one message.
    """
    try:
        read_config(path)
    except ValueError as error:
        yield f"{error}; download the bundle again"


def config_problems(path: Path, allowed: AllowList) -> Iterator[str]:
    """Judge one file.

    Args:
        path: YAML or JSON.
        allowed: the names it may use.

    Yields:
        One message for each value that is refused, beginning with its id.
    """
    try:
        content = read_config(path)
    except ValueError as error:
        yield f"{error}; download the bundle again"
        return
    yield from content_problems(content, allowed)


def content_problems(content: Any, allowed: AllowList) -> Iterator[str]:
    """Judge what a file holds; also for configurations that are not in a file.

    Args:
        content: plain data.
        allowed: the names it may use.

    Yields:
        One message for each value that is refused, beginning with its id.
    """
    left, count = [("", content)], 0
    while left:
        where, value = left.pop()
        count += 1
        if count > MAX_VALUES or where.count("::") > MAX_DEPTH:
            yield f"{where[:80]}: unfolds to more than {MAX_VALUES} values, an alias bomb; do not run this bundle"
            return
        if isinstance(value, dict):
            for key, child in value.items():
                if not isinstance(key, str | int):
                    yield f"{where}: the key {key!r} is no id; {CURE}"
                else:
                    yield from (f"{_join(where, key)}: {found}; {CURE}" for found in _key_problems(key, value, allowed))
                    left.append((_join(where, key), child))
        elif isinstance(value, list):
            left.extend((_join(where, i), child) for i, child in enumerate(value))
        elif isinstance(value, str):
            yield from (f"{where}: {_short(value)} {found}; {CURE}" for found in _text_problems(value, allowed))
        elif value is not None and not isinstance(value, int | float | date):
            yield f"{where}: is a {type(value).__name__}, which is no plain value; {CURE}"


def _key_problems(key: str | int, parent: dict[Any, Any], allowed: AllowList) -> Iterator[str]:
    """Judge values whose key gives them a meaning; `a::_target_` sets `_target_` of `a` when files are merged."""
    value = parent[key]
    name = re.split("::|#", str(key))[-1].lstrip("+")
    if name in SPECIAL and key != name:
        yield "changes a component from afar, which nobody could judge before files are merged"
    elif str(key).startswith("+") and isinstance(value, dict) and SPECIAL & value.keys():
        yield "adds to a component that another file describes"
    elif str(parent.get("_target_")).split(".")[-1] in LOADERS and name not in SPECIAL | LOADING:
        yield f"is no argument of {parent['_target_']} that is accepted"
    elif name == "allow_pickle":
        yield "lets files run code"
    elif name == "compile_kwargs":
        yield "may name the compiler that torch.compile starts"
    elif name == "_target_":
        if not allowed.target(value):
            yield f"_target_ {_short(value)} is not on the list of allowed names"
    elif name == "_mode_":
        ours = str(parent.get("_target_")).startswith("scripts.")
        if value != "default" and not (value == "callable" and ours):
            yield f"_mode_ {_short(value)} is neither default nor, for a name of scripts, callable"
    elif name.startswith("_") and name not in SPECIAL:
        yield "a key with a leading underscore has a meaning of its own"
    elif name in ("reader", "writer"):  # MONAI imports these by name
        known = READERS if name == "reader" else WRITERS
        for item in value if isinstance(value, list) else [value]:
            if item is not None and str(item).lower() not in known:
                yield f"{name} {_short(item)} is none of MONAI's"


def _text_problems(text: str, allowed: AllowList) -> Iterator[str]:
    if re.match(r"[$@%]", text) and re.search(r"[@%](::|#)", text):
        yield "is a relative reference"
    elif text.startswith("$"):
        yield from expression_problems(text, allowed)
    elif text.startswith("%") and not (MACRO.fullmatch(text) and not re.search(r"(?i)\.(json|ya?ml)", text)):
        yield "reads a file outside the configuration"


def _join(where: str, key: str | int) -> str:
    return f"{where}::{key}" if where else str(key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
