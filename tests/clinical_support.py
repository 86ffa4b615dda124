"""A small clinical table and its schema."""

import pandas as pd
import yaml

COLUMNS = [
    {"name": "age", "kind": "numeric", "unit": "years", "range": [0, 120], "known": "before"},
    {"name": "agegp", "kind": "ordinal", "categories": ["<=50", ">50"], "known": "before", "derived_from": ["age"]},
    {"name": "Sex", "kind": "binary", "categories": [1, 2], "aliases": {"male": 1, "female": 2}, "known": "before"},
    {"name": "Tr_Size", "kind": "numeric", "unit": "cm", "range": [0.1, 35], "log1p": True, "known": "before"},
    {"name": "Stage", "kind": "ordinal", "categories": ["Stage_ 0-2", "Stage-IIIA", "Stage-IV"], "known": "before"},
    {"name": "Drug", "kind": "nominal", "categories": ["a", "b", "c"], "missing": ["no drug"], "known": "before"},
    {"name": "OS", "kind": "numeric", "unit": "weeks", "range": [0, 900], "known": "after", "leak": "the outcome"},
]
ROWS = [
    ["P1", 40, "<=50", 1, 2.0, "Stage_ 0-2", "a", 10],
    ["P2", 60, ">50", 2, "", "Stage-IIIA", "b", 20],
    ["P3", 80, ">50", 1, 4.0, "stage iv", "NA", 30],
    ["P4", 90, ">50", 1, 8.0, "Stage-IV", "no drug", 40],
]
HEADER = ["id", *(c["name"] for c in COLUMNS)]


def write_schema(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump({"id": "id", "missing": ["NA", "unknown"], "columns": COLUMNS}))
    return path


def write(tmp_path, rows=ROWS, header=HEADER, name="table.csv", **options):
    path = tmp_path / name
    frame = pd.DataFrame(rows, columns=header)
    frame.to_excel(path, index=False) if path.suffix == ".xlsx" else frame.to_csv(path, index=False, **options)
    return path


def changed(patient, column, value):
    rows = [list(row) for row in ROWS]
    rows[patient][HEADER.index(column)] = value
    return rows
