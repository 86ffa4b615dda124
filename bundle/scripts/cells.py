"""Reads the cells of a table, xlsx or csv, without guessing what they mean."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pandas as pd


def read_cells(path: Path, sheet: str | None) -> tuple[list[Any], list[tuple[int, list[Any]]]]:
    """Read a table as it is, without guessing what its cells mean.

    Args:
        path: xlsx, or csv separated by comma, semicolon or tab.
        sheet: preferred sheet of a workbook; the first if it has none of that name.

    Returns:
        The header, and for each row that is not blank its number in the file (the header is row 1) and its cells.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither xlsx nor csv, cannot be read, or is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"clinical table {path} does not exist")
    try:
        if path.suffix.lower() == ".xlsx":
            with pd.ExcelFile(path) as book:
                name = sheet if sheet in book.sheet_names else book.sheet_names[0]
                frame = book.parse(name, header=None, dtype=object, keep_default_na=False)
            lines = frame.astype(object).where(frame.notna(), "").to_numpy().tolist()
        elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
            text = path.read_text(encoding="utf-8-sig")
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        else:
            raise ValueError("expected an xlsx or csv file")
    except Exception as error:  # zip, xml, encoding and csv errors have no common class
        raise ValueError(f"clinical table {path} cannot be read: {error}") from error
    rows = [(i, line) for i, line in enumerate(lines, 1) if any(str(cell).strip() for cell in line)]
    if not rows or rows[0][0] != 1:
        raise ValueError(f"clinical table {path} is empty or its first row is blank; expected the header there")
    header = rows[0][1]
    for i, line in rows:
        if len(line) > len(header) and any(str(cell).strip() for cell in line[len(header) :]):
            raise ValueError(f"{path.name}, row {i} has {len(line)} cells, but the header has {len(header)}")
    return header, rows[1:]
