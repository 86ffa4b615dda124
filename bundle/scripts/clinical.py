"""The clinical table of a cohort: reads and checks it, and turns patients into standardised vectors."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .cells import read_cells
from .clinical_fitted import Fitted
from .clinical_schema import HCC_TACE_SCHEMA, ClinicalColumn, ClinicalSchema, normalise, suggestion
from .files import replacing
from .imputers import ForestImputer

__all__ = [
    "HCC_TACE_SCHEMA",
    "ClinicalColumn",
    "ClinicalSchema",
    "ClinicalTable",
    "Fitted",
    "check",
    "describe_table",
]

logger = logging.getLogger(__name__)


class ClinicalTable:
    """A table with one row per patient, checked against a schema, that gives the clinical vector of each patient.

    Args:
        path: the table, xlsx or csv (comma, semicolon or tab); None: no table, every patient is unknown.
        schema: what the columns mean and which to use.
        fitted: JSON written by `save`; without it call `fit` before asking for vectors.
        impute: fill unknown cells of known patients with the learned model, instead of leaving NaN.
        id_column: header of the column with the patients' ids; None: the schema's, or `patient_id`.
        on_error: what a refused cell or a repeated patient does: `raise`, `warn` (the cell counts as unknown, the first
            row of a patient is used), or `ignore` (the same, silently; see `problems`).
        on_missing: what asking for a patient without a row does: `warn` (once each, and all NaN) or `raise`.

    Raises:
        ValueError: for a table that cannot be read, lacks the ids or every column, or holds refused cells or repeated
            patients; names file, row, patient, column, value and what was expected.
        FileNotFoundError: if the table or `fitted` is not there.
    """

    def __init__(
        self,
        *,
        path: str | Path | None,
        schema: ClinicalSchema,
        fitted: str | Path | None = None,
        impute: bool = False,
        id_column: str | None = None,
        on_error: str = "raise",
        on_missing: str = "warn",
    ) -> None:
        """Read and check the table."""
        if type(schema).__name__ != ClinicalSchema.__name__:  # by name, as MONAI Label imports bundles anew each time
            raise TypeError(f"schema is a {type(schema).__name__}; expected what ClinicalSchema.from_yaml returns")
        if on_error not in ("raise", "warn", "ignore") or on_missing not in ("raise", "warn"):
            raise ValueError(
                f"on_error {on_error!r}, on_missing {on_missing!r}; expected raise, warn or ignore; raise or warn"
            )
        self.path, self.schema, self.impute, self.on_missing = path, schema, impute, on_missing
        self.problems: list[str] = []
        self.absent: list[str] = []  # columns of the schema that the table lacks
        self.ignored: list[str] = []  # columns of the table that the schema does not use
        self._rows: dict[str, np.ndarray] = {}  # patient -> parsed cells
        self._warned: set[str] = set()
        self._fitted: Fitted | None = None
        if path is not None:
            self._read(Path(path), id_column)
            self._report(on_error)
        if fitted is not None:
            self._load(Path(fitted))

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """The patients of the table, in its order."""
        return tuple(self._rows)

    @property
    def codes(self) -> np.ndarray:
        """The parsed cells, shape (patients, columns of the schema): number, rank or index of the category, or NaN."""
        return np.array(list(self._rows.values())).reshape(len(self._rows), len(self.schema.columns))

    def fit(self, patient_ids: Iterable[str]) -> dict[str, Any]:
        """Learn the scaling, and with `impute` the imputer, from these patients only: the training folds.

        Args:
            patient_ids: training patients; repeated ids count once, ids without a row are left out with a warning.

        Returns:
            What `save` writes: mean and standard deviation per feature, and the imputer, as plain numbers.

        Raises:
            ValueError: if none of the patients has a row.
        """
        wanted = list(dict.fromkeys(str(p).strip() for p in patient_ids))
        rows = [self._rows[p] for p in wanted if p in self._rows]
        if not rows:
            raise ValueError(f"none of the {len(wanted)} training patients {wanted[:3]} ... has a row in {self.path}")
        if absent := [p for p in wanted if p not in self._rows]:
            warnings.warn(f"{self.path}: no row for the training patients {', '.join(absent)}", stacklevel=2)
        imputer = ForestImputer(groups=self.schema.groups) if self.impute else None
        self._fitted = Fitted.of(self.schema, np.stack(rows), imputer)
        names = np.array(self.schema.feature_names)[~self._fitted.observed]
        if len(names):
            warnings.warn(f"{self.path}: no training patient has a value for {', '.join(names)}", stacklevel=2)
        return self._fitted.to_dict()

    def save(self, path: str | Path) -> None:
        """Write what was fitted as JSON, whole or not at all; ValueError before `fit`."""
        text = json.dumps(self._need_fit().to_dict())
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")

    def vector(self, patient_id: str) -> np.ndarray:
        """Return the clinical vector of one patient.

        Args:
            patient_id: id as in the table.

        Returns:
            float32 (F,), standardised, NaN where not known; all NaN for a patient without a row.

        Raises:
            ValueError: if the table has rows but was not fitted; for a patient without a row if `on_missing="raise"`.
        """
        row = self._rows.get(str(patient_id).strip())
        if row is None:
            if self.path is not None or self.on_missing == "raise":
                self._miss(str(patient_id))
            return np.full(self.schema.n_features, np.nan, dtype=np.float32)
        return self._vector(row)

    def encode(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the clinical vector of a row given by hand, under the same checks as the table.

        Args:
            values: column name -> value; columns left out are unknown.

        Returns:
            float32 (F,), standardised, NaN where not known.

        Raises:
            ValueError: for a name that the schema does not have, or a value that it does not accept.
        """
        names = {normalise(c.name): c.name for c in self.schema.columns}
        for name in values:
            if normalise(name) not in names:
                hint = suggestion(name, names.values())
                raise ValueError(f"no clinical column {name!r}{hint}; there are {', '.join(names.values())}")
        problems: list[str] = []
        row = {names[normalise(name)]: value for name, value in values.items()}
        codes = self.schema.parse(row, "the given values", problems)
        if problems:
            raise ValueError("\n".join(problems))
        return self._vector(codes)

    def _vector(self, codes: np.ndarray) -> np.ndarray:
        fitted = self._need_fit()
        codes = codes[None]  # (1, columns)
        return fitted.vectors(fitted.fill(codes) if self.impute else codes)[0].astype(np.float32)

    def _need_fit(self) -> Fitted:
        if self._fitted is None:
            raise ValueError("the clinical table is not fitted; call fit(training patients) or pass fitted=<json>")
        return self._fitted

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"fitted clinical statistics {path} do not exist; ClinicalTable.save writes them")
        try:
            self._fitted = Fitted.from_dict(json.loads(path.read_text(encoding="utf-8")), self.schema)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} cannot be used as fitted statistics: {error}") from error
        if self.impute and self._fitted.imputer is None:
            raise ValueError(f"{path} holds no imputer; fit with impute=True and save again, or set impute to false")

    def _miss(self, patient: str) -> None:
        text = f"missing clinical row: patient {patient!r} is not in {self.path}{suggestion(patient, self._rows)}"
        if self.on_missing == "raise":
            raise ValueError(text)
        if patient not in self._warned:
            self._warned.add(patient)
            warnings.warn(f"{text}; all of its clinical variables count as unknown", stacklevel=3)

    def _read(self, path: Path, id_column: str | None) -> None:
        header, rows = read_cells(path, self.schema.sheet)
        wanted = {normalise(c.name): c.name for c in self.schema.columns}
        names = [wanted.get(normalise(h), str(h).strip()) for h in header]
        if repeated := [n for n, count in Counter(n for n in names if n).items() if count > 1]:
            raise ValueError(f"{path.name} has more than one column {', '.join(map(repr, repeated))}; keep one")
        ids = [c for c in ([id_column] if id_column else [self.schema.id_column, "patient_id"]) if c in names]
        if not ids:
            expected = id_column or self.schema.id_column
            raise ValueError(f"{path.name} has no column {expected!r} with the patients' ids; it has {names}")
        self.absent = [c.name for c in self.schema.columns if c.name not in names]
        self.ignored = [n for n in names if n and n != ids[0] and n not in wanted.values()]
        if len(self.absent) == len(self.schema.columns):
            raise ValueError(f"{path.name} has none of the schema's columns {self.absent[:5]} ...; it has {names}")
        first_row: dict[str, int] = {}
        for number, cells in rows:
            row = dict(zip(names, cells, strict=False))
            patient = str(row.get(ids[0], "")).strip().removesuffix(".0")  # spreadsheets store 7 as 7.0
            if not patient:
                self.problems.append(f"{path.name}, row {number}: no patient id in column {ids[0]!r}")
            elif patient in first_row:
                both = f"rows {first_row[patient]} and {number}"
                self.problems.append(f"{path.name}: patient {patient!r} is in {both}; keep one row per patient")
            else:
                first_row[patient] = number
                where = f"{path.name}, row {number} (patient {patient})"
                self._rows[patient] = self.schema.parse(row, where, self.problems)
        if not self._rows:
            raise ValueError(f"{path.name} has a header but no patient")

    def _report(self, on_error: str) -> None:
        if self.ignored:
            logger.info("%s: columns that the schema does not use: %s", self.path, ", ".join(self.ignored))
        if self.absent and on_error != "ignore":
            names = ", ".join(self.absent)
            warnings.warn(f"{self.path} lacks the columns {names}; they count as unknown", stacklevel=3)
        if self.problems and on_error != "ignore":
            more = f"\n... and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
            text = "\n".join(self.problems[:20]) + more
            if on_error == "raise":
                raise ValueError(text)
            warnings.warn(f"{text}\nsuch cells count as unknown; of a repeated patient the first row", stacklevel=3)


def describe_table(table: ClinicalTable) -> pd.DataFrame:
    """Summarise a table column by column.

    Args:
        table: the table, fitted or not.

    Returns:
        One row per column of the schema: kind, unit, when known, cells known and missing, refused cells, and what it
        holds: smallest, median and largest value, or how often each category occurs.
    """
    rows = []
    for column, codes in zip(table.schema.columns, table.codes.T, strict=True):
        known = codes[~np.isnan(codes)]
        if column.name in table.absent:
            holds = "not in the table"
        elif column.kind == "numeric":
            holds = " / ".join(f"{v:g}" for v in np.quantile(known, (0, 0.5, 1))) if len(known) else ""
        else:
            counts = np.bincount(known.astype(int), minlength=len(column.categories))
            holds = ", ".join(f"{c}: {n}" for c, n in zip(column.categories, counts, strict=True) if n)
        rows.append(
            {
                "column": column.name,
                "kind": column.kind,
                "unit": column.unit,
                "known when": column.known,
                "known": len(known),
                "missing": len(codes) - len(known),
                "refused": sum(f'column "{column.name}":' in p for p in table.problems),
                "holds": holds,
            }
        )
    return pd.DataFrame(rows)


def check(
    table: str,
    schema: str | None = None,
    preset: str = "pre_treatment",
    columns: Sequence[str] | None = None,
    id_column: str | None = None,
) -> str:
    """Check a clinical table against a schema: what each column holds, what is missing, and every problem at once.

    Example: python -m scripts clinical check --table clinical.xlsx

    Args:
        table: path of the table, xlsx or csv.
        schema: path of the schema; the one of HCC-TACE-Seg if left out.
        preset: pre_treatment or paper.
        columns: names of columns to use instead of a preset.
        id_column: header of the column with the patients' ids; the schema's if left out.

    Returns:
        A printable report; its last line says whether the table can be used.
    """
    chosen = ClinicalSchema.from_yaml(schema or HCC_TACE_SCHEMA, preset, columns)
    read = ClinicalTable(path=table, schema=chosen, id_column=id_column, on_error="ignore")
    ignored = f"\nnot used: {', '.join(read.ignored)}" if read.ignored else ""
    summary = f"{len(read.patient_ids)} patients, {len(chosen.columns)} columns, {chosen.n_features} features{ignored}"
    verdict = "\n".join([f"{len(read.problems)} problems:", *read.problems]) if read.problems else "no problems"
    rows = describe_table(read).astype(str)
    rows = pd.concat([pd.DataFrame([rows.columns], columns=rows.columns), rows])
    text = rows.apply(lambda column: column.str.ljust(column.str.len().max())).agg("  ".join, axis=1).str.rstrip()
    return "\n".join([*text, "", summary, verdict])
