"""Writes a plan as an overlay that `nny train` takes: each value with its reason beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.files import replacing
from scripts.plan.geometry import Choice

WIDTH = 120
IMAGE_ONLY = {  # what makes the base, which takes clinical variables, a network of images
    "clinical_schema": None,
    "fusion_def": {"_target_": "scripts.networks.NoFusion"},
    "clinical_transform": {"_target_": "Identityd", "keys": "image"},
    "prepare_batch": "$monai.engines.default_prepare_batch",
}


def overlay_text(choices: Mapping[str, Choice], header: Sequence[str], footnote: str) -> str:
    """Put choices into YAML.

    Args:
        choices: id -> value and reason, in the order in which they are written.
        header: sentences for the top.
        footnote: the reason of what turns clinical data off.

    Returns:
        The file's text.
    """
    lines = [line for sentence in header for line in _comment(sentence)]
    for name, choice in choices.items():
        lines += _entry(name, choice.value, choice.reason)
    lines += [*_comment(footnote), yaml.safe_dump(IMAGE_ONLY, sort_keys=False).rstrip()]
    return "\n".join(lines) + "\n"


def write_overlay(path: str | Path, text: str) -> None:
    """Write an overlay, whole or not at all.

    Raises:
        ValueError: the text is not YAML of ids.
    """
    if not isinstance(yaml.safe_load(text), dict):
        raise ValueError(f"{path} would not hold ids of a configuration.")
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _entry(name: str, value: Any, reason: str) -> list[str]:
    """An id with its reason: behind the value where there is room, else above it."""
    nested = isinstance(value, Mapping) and any(isinstance(v, list | Mapping) for v in value.values())
    style = {"sort_keys": False, "allow_unicode": True, "width": WIDTH - len(name) - 20}
    text = yaml.safe_dump(value, default_flow_style=None if nested else True, **style).removesuffix("...\n").rstrip()
    first, *rest = [f"{name}:", *text.split("\n")] if nested else f"{name}: {text}".split("\n")
    rest = [f"  {line}" for line in rest]
    if len(first) + len(reason) + 4 <= WIDTH and (nested or not rest):
        return [f"{first}  # {reason}", *rest]
    return [*_comment(reason), first, *rest]


def _comment(sentence: str) -> list[str]:
    """Lines that begin with ``#``; names of classes may hold line breaks, which must not end a comment."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(sentence.split()), WIDTH - 2)] or ["#"]
