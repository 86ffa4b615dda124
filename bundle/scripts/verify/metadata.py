"""Judges `metadata.json` against the schema of MONAI, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from scripts import BUNDLE_ROOT

from .configs import read_config

SCHEMAS = {
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json": (
        BUNDLE_ROOT / "docs" / "schema.json"
    ),
}
CURE = "release the bundle again"


def schema_of(metadata: Any) -> Path | None:
    """The schema that metadata names, from this installation; None when it is not known here.

    Args:
        metadata: content of ``metadata.json``.
    """
    url = metadata.get("schema") if isinstance(metadata, dict) else None
    return SCHEMAS.get(url) if isinstance(url, str) else None


def metadata_problems(folder: Path) -> Iterator[str]:
    """Judge a bundle's metadata.

    Args:
        folder: the private copy of the bundle.

    Yields:
        One message for each problem.
    """
    path, own = folder / "configs" / "metadata.json", folder / "docs" / "schema.json"
    try:
        metadata = read_config(path)
    except ValueError:
        return  # said by the check of configurations
    known = schema_of(metadata)
    if known is None:
        named = metadata.get("schema") if isinstance(metadata, dict) else None
        yield f"configs/metadata.json: the schema {named!r} is unknown; known: {', '.join(SCHEMAS)}"
        return
    schema = json.loads(known.read_text("utf-8"))
    for error in sorted(
        jsonschema.validators.validator_for(schema)(schema).iter_errors(metadata), key=lambda e: str(e.path)
    ):
        where = "::".join(str(part) for part in error.absolute_path)
        yield f"configs/metadata.json, {where or 'top'}: {error.message[:200]}; {CURE}"
    if own.is_file() and _content(own) != schema:
        yield f"docs/schema.json: is not the schema that configs/metadata.json names; {CURE}"
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if not isinstance(changelog, dict) or str(version) not in changelog:
        yield f"configs/metadata.json: the changelog says nothing of version {version}; {CURE}"


def _content(path: Path) -> Any:
    try:
        return read_config(path)
    except ValueError:
        return None
