"""Finds and reads the clinical spreadsheet of a download, without touching a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from scripts.cells import read_cells


class Spreadsheet(NamedTuple):
    """Column names, patient id -> row, and the file they come from."""

    header: list[str]
    rows: dict[str, list[Any]]
    path: Path


def read_clinical_table(
    source: Path, path: str | None = None, *, id_column: str, sheet: str = "data table"
) -> Spreadsheet:
    """Reads the clinical table.

    Args:
        source: the downloaded folder, searched when ``path`` is not given.
        path: the table, xlsx, or csv separated by comma, semicolon or tab.
        id_column: name of the column that holds the patient id.
        sheet: sheet of a spreadsheet; its first one when there is none of that name.

    Returns:
        Spreadsheet: one row per patient, cells as the file holds them.

    Raises:
        FileNotFoundError: no table.
        ValueError: several tables, one that cannot be read, no id column, or a row without a patient or with one seen.
    """
    file = _given(path) if path is not None else _search(source)
    header, lines = read_cells(file, sheet)
    if id_column not in header:
        raise ValueError(
            f"{file} has no column {id_column!r} in its first row; expected one row per patient, in the sheet "
            f"{sheet!r} of a spreadsheet"
        )
    at = header.index(id_column)
    rows: dict[str, list[Any]] = {}
    for number, row in lines:
        patient = str(row[at]).strip() if at < len(row) else ""
        if not patient:
            raise ValueError(f"{file}, row {number}: no patient id in column {id_column!r}")
        if patient in rows:
            raise ValueError(f"{file} has two rows for {patient}; delete one")
        rows[patient] = row
    return Spreadsheet([str(name) for name in header], rows, file)


def _given(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"the clinical table {file} does not exist; give its .xlsx or .csv with --clinical")
    return file


def _search(source: Path) -> Path:
    found = [p for pattern in ("*.xlsx", "*/*.xlsx", "*/*/*.xlsx") for p in sorted(source.glob(pattern))]
    found = [p for p in found or sorted(source.resolve().parent.glob("*.xlsx")) if not p.name.startswith("~$")]
    named = [p for p in found if "clinical" in p.name.lower()] or found
    if not named:
        raise FileNotFoundError(
            f"no clinical spreadsheet (*.xlsx) found in {source}; download it from the page of the collection "
            "into that folder, or name it with --clinical"
        )
    if len(named) > 1:
        raise ValueError(
            f"{len(named)} spreadsheets found: {', '.join(map(str, named))}; name the right one with --clinical"
        )
    return named[0]
