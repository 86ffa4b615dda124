"""Reads the clinical variables of KiTS19, ``kits.json``, as a table with one row per case."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.prepare.spreadsheet import Spreadsheet

ID = "case_id"
_NOT_CLINICAL = ("voxel_spacing", "captured_")  # of the image
_CEILING = re.compile(r">=?\s*(\d+(?:\.\d+)?)")  # how laboratories report a value above what they measure


def read_kits_json(source: Path) -> Spreadsheet:
    """Reads ``kits.json``.

    Nested entries become columns named ``comorbidities.copd``; true and false stay words, null becomes an empty cell,
    and an eGFR of ``>=90`` or ``>90`` becomes 90, the highest value that is reported. Nothing else is changed.

    Args:
        source: the download.

    Returns:
        Spreadsheet: one row per case.

    Raises:
        FileNotFoundError: no ``kits.json``.
        ValueError: several of them, or one that is no list of cases with a ``case_id`` each, once.
    """
    found = sorted(source.rglob("kits.json"))
    if not found:
        raise FileNotFoundError(f"{source} holds no kits.json; it is in the folder data of the repository kits19")
    if len(found) > 1:
        raise ValueError(f"{len(found)} files named kits.json: {', '.join(map(str, found))}; keep one")
    try:
        entries = json.loads(found[0].read_text(encoding="utf-8"))
        table = pd.json_normalize(entries)
        table.index = table[ID].astype(str)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{found[0]} is no list of cases with a {ID} each ({error}); download it again") from error
    repeated = sorted(set(table.index[table.index.duplicated()]))
    if repeated:
        raise ValueError(f"{found[0]} has several entries for {', '.join(repeated)}; delete all but one")
    header = [name for name in table.columns if not name.startswith(_NOT_CLINICAL)]
    rows = {case: [_cell(name, value) for name, value in row.items()] for case, row in _rows(table, header)}
    return Spreadsheet(header, rows, found[0])


def _rows(table: pd.DataFrame, header: list[str]) -> list[tuple[str, dict[str, Any]]]:
    kept = table[header].astype(object)
    kept = kept.where(kept.notna(), "")
    return list(zip(table.index, kept.to_dict("records"), strict=True))


def _cell(name: str, value: Any) -> Any:
    """A cell as the CSV file holds it."""
    if isinstance(value, bool):
        return str(value).lower()
    if "egfr" in name and isinstance(value, str) and (match := _CEILING.fullmatch(value.strip())):
        return match[1]
    return value
