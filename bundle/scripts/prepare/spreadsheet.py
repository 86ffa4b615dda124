"""Finds and reads the clinical spreadsheet of a download, without touching a value."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import openpyxl


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
        path: the table (.xlsx or .csv).
        id_column: name of the column that holds the patient id.
        sheet: sheet of a spreadsheet; its first one when there is none of that name.

    Returns:
        Spreadsheet: one row per patient, cells as the file holds them.

    Raises:
        FileNotFoundError: no table.
        ValueError: several tables, no id column, or two rows of one patient.
    """
    file = _given(path) if path is not None else _search(source)
    table = [row for row in _cells(file, sheet) if any(cell not in (None, "") for cell in row)]
    if not table or id_column not in table[0]:
        raise ValueError(
            f"{file} has no column {id_column!r} in its first row; expected one row per patient, in the sheet "
            f"{sheet!r} of a spreadsheet"
        )
    at = table[0].index(id_column)
    rows: dict[str, list[Any]] = {}
    for row in table[1:]:
        patient = str(row[at]).strip()
        if patient in rows:
            raise ValueError(f"{file} has two rows for {patient}; delete one")
        rows[patient] = row
    return Spreadsheet(["" if name is None else str(name) for name in table[0]], rows, file)


def _cells(path: Path, sheet: str) -> list[list[Any]]:
    if path.suffix.lower() == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [list(row) for row in csv.reader(file)]
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a spreadsheet ({type(error).__name__}: {error}); expected .xlsx or .csv"
        ) from error
    page = book[sheet] if sheet in book.sheetnames else book.worksheets[0]
    cells = [list(row) for row in page.iter_rows(values_only=True)]
    book.close()
    return cells


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
