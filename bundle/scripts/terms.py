"""Terms on which a folder was begun, written beside what came of it, also by several processes at once."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_terms(file: Path) -> dict[str, Any]:
    """The terms that are written, or none.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}. Delete it to begin anew.") from error


def write_terms(file: Path, terms: Mapping[str, Any]) -> None:
    """Write terms, whole or not at all; processes that do so at once do not disturb each other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    part.write_text(as_json(terms), encoding="utf-8")
    os.replace(part, file)


def keep_terms(file: Path, terms: Mapping[str, Any], reason: str) -> None:
    """Write down the terms that a folder is begun with, or refuse others than those that are written.

    Args:
        file: where they are kept.
        terms: name to anything that JSON holds, or has a text.
        reason: why others are refused, for the message.

    Raises:
        ValueError: other terms.
    """
    if not file.is_file():
        write_terms(file, terms)
    old, new = read_terms(file), json.loads(as_json(terms))
    changed = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    if changed:
        raise ValueError(
            f"{file} was begun with other terms: {', '.join(f'{name} {old.get(name)}' for name in changed)}. Use the "
            f"same, or another --output; {reason}."
        )


def as_json(terms: Mapping[str, Any]) -> str:
    """Terms as text, the same for the same terms."""
    return json.dumps(terms, indent=1, sort_keys=True, default=str)
