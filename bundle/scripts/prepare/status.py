"""What is known of each case of a ``prepare`` run, so that it can be stopped and gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.prepare.output import nifti_paths

STATUS_FOLDER = ".prepare"


def status_path(output: Path, case_id: str) -> Path:
    """Returns where the record of a case is kept; its thumbnail is beside it, as PNG."""
    return output / STATUS_FOLDER / f"{case_id}.json"


def finished(output: Path, case_id: str, expected: str) -> dict[str, Any] | None:
    """Returns the record of a case that an earlier run finished, or None.

    Args:
        output: the dataset folder.
        case_id: name of the case.
        expected: the case's fingerprint now; a record with another one does not count.
    """
    status = status_path(output, case_id)
    try:
        record = json.loads(status.read_text(encoding="utf-8"))
        sizes = [path.stat().st_size for path in nifti_paths(output, case_id)]
    except (OSError, ValueError):
        return None
    whole = record.get("status") == "done" and record.get("bytes") == sizes and status.with_suffix(".png").is_file()
    return record if whole and record.get("fingerprint") == expected else None


def remove_case(output: Path, case_id: str) -> None:
    """Removes what an earlier run wrote for a case that is dropped or broken now."""
    status = status_path(output, case_id)
    for path in (status, status.with_suffix(".png"), *nifti_paths(output, case_id)):
        path.unlink(missing_ok=True)


def list_files(sources: Sequence[str]) -> list[Path]:
    """Returns the files in folders (and the files named themselves), sorted."""
    paths = [Path(source) for source in sources]
    return sorted({f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()})


def fingerprint(files: Sequence[Path], salt: object) -> str:
    """Returns a text that changes when a file is added, removed, resized or written again, or with ``salt``."""
    digest = hashlib.sha256(f"{salt}\n".encode())
    for path in files:
        stat = path.stat()
        digest.update(f"{path.parent.name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
