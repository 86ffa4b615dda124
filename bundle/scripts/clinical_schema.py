"""What the columns of a clinical table mean: kind, unit, categories, and when each is known."""

from __future__ import annotations

import datetime
import difflib
import math
import numbers
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

__all__ = ["HCC_TACE_SCHEMA", "ClinicalColumn", "ClinicalSchema", "normalise", "suggestion"]

HCC_TACE_SCHEMA = str(Path(__file__).resolve().parents[1] / "configs" / "clinical_hcc_tace.yaml")
KINDS = ("numeric", "binary", "ordinal", "nominal")
PRESETS = ("pre_treatment", "paper")
QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s.,+-].*)?", re.IGNORECASE)


def normalise(value: Any) -> str:
    """Bring a cell to the spelling under which texts are compared: `Stage_ 0-2` -> `stage0-2`, `2.0` -> `2`."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return "" if math.isnan(value) else f"{float(value):g}"
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    text = str(value).strip().casefold().replace("≤", "<=").replace("≥", ">=").replace("–", "-").replace("²", "2")
    if re.fullmatch(r"[+-]?\d+\.0*", text):
        text = text.split(".")[0]
    return re.sub(r"(?<=[a-z])-(?=\w)", "", re.sub(r"[\s_]+", "", text))


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean "x" or "y"?)` for the names nearest to `name`, or nothing."""
    spelled = {normalise(n): n for n in names}
    close = difflib.get_close_matches(normalise(name), list(spelled), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(spelled[c]) for c in close)}?)" if close else ""


@dataclass(frozen=True, kw_only=True)
class ClinicalColumn:
    """One column of a clinical table: what its cells may hold, in which unit, and when it is known.

    Args:
        name: header of the column in the table.
        kind: `numeric`, `binary` (negative, positive category), `ordinal` (from least to most) or `nominal`.
        known: `before` or `after` treatment.
        unit: unit of a numeric column, "" for none.
        range: smallest and largest accepted value of a numeric column, in `unit`.
        log1p: whether a numeric column goes through `sign(x) log(1 + |x|)` first (heavy tails).
        categories: the texts (or codes) that a binary, ordinal or nominal column may hold.
        aliases: other spellings, each with the category it stands for.
        missing: texts that mean "not known".
        derived_from: columns of which this one is a function.
        leak: what an `after` column gives away; required for those.
        description: one line for people.

    Raises:
        ValueError: for a declaration that contradicts itself.
    """

    name: str
    kind: str
    known: str
    unit: str = ""
    range: Sequence[float] = ()
    log1p: bool = False
    categories: Sequence[Any] = ()
    aliases: Mapping[Any, Any] = field(default_factory=dict, hash=False)
    missing: Sequence[str] = ()
    derived_from: Sequence[str] = ()
    leak: str = ""
    description: str = ""
    _codes: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _missing: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the declaration and turn its lists into tuples of text."""
        where = f"clinical column {self.name!r}"
        if self.kind not in KINDS or self.known not in ("before", "after"):
            raise ValueError(
                f"{where}: kind {self.kind!r}, known {self.known!r}; expected a kind among {', '.join(KINDS)} and "
                "known: before or after"
            )
        if self.known == "after" and not self.leak:
            raise ValueError(f"{where} is known after treatment; say in `leak` what it gives away")
        if self.kind == "numeric":
            if len(self.range) != 2 or not self.range[0] < self.range[1] or self.categories:
                raise ValueError(f"{where} is numeric: give range: [smallest, largest] in its unit, and no categories")
        elif self.range or self.unit or self.log1p:
            raise ValueError(f"{where} is {self.kind}: range, unit and log1p belong to numeric columns")
        elif len(self.categories) != 2 if self.kind == "binary" else len(self.categories) < 2:
            raise ValueError(
                f"{where} is {self.kind} with {len(self.categories)} categories; expected 2 (binary) or 2 and more"
            )
        object.__setattr__(self, "range", tuple(self.range))
        for name in ("categories", "missing", "derived_from"):
            object.__setattr__(self, name, tuple(str(v) for v in getattr(self, name)))
        codes = {normalise(c): i for i, c in enumerate(self.categories)}
        if len(codes) < len(self.categories):
            raise ValueError(f"{where}: two of the categories {list(self.categories)} differ only in case or spaces")
        for alias, category in self.aliases.items():
            if normalise(category) not in codes:
                raise ValueError(f"{where}: alias {alias!r} stands for {category!r}, which is not among the categories")
            codes.setdefault(normalise(alias), codes[normalise(category)])
        object.__setattr__(self, "_codes", codes)
        object.__setattr__(self, "_missing", frozenset(normalise(m) for m in self.missing))

    @property
    def n_features(self) -> int:
        """Number of entries of the vector that this column fills: one, or one per category if it is nominal."""
        return len(self.categories) if self.kind == "nominal" else 1

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of those entries: the column's, or `column=category`."""
        return tuple(f"{self.name}={c}" for c in self.categories) if self.kind == "nominal" else (self.name,)

    @property
    def expected(self) -> str:
        """What a cell may hold, in words."""
        if self.kind == "numeric":
            return f"a number from {self.range[0]:g} to {self.range[1]:g} {self.unit}".rstrip()
        return "one of " + ", ".join(map(repr, self.categories))

    def parse(self, value: Any) -> float:
        """Read one cell.

        Args:
            value: what the cell holds: a number, a text, or nothing.

        Returns:
            The number, the index of the category, or NaN where the cell says that it is not known.

        Raises:
            ValueError: if the value is not accepted; says what was expected.
        """
        text = normalise(value)
        if not text or (text in self._missing and text not in self._codes):
            return math.nan
        if isinstance(value, datetime.date):
            raise ValueError(f"{value} is a date (spreadsheets make dates of texts like 1-2); expected {self.expected}")
        if self.kind == "numeric":
            return self._parse_number(value)
        if text not in self._codes:
            raise ValueError(f"{value!r} is no category of this column; expected {self.expected}")
        return float(self._codes[text])

    def _parse_number(self, value: Any) -> float:
        number, unit = value, self.unit
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            match = QUANTITY.fullmatch(str(value).strip())
            if match is None:
                hint = ", with a point as decimal mark and no separators" if "," in str(value) else ""
                raise ValueError(f"{value!r} is not a number; expected {self.expected}{hint}")
            number, unit = float(match[1]), match[2] or self.unit
        if normalise(unit) != normalise(self.unit):
            raise ValueError(f"{value!r} is in {unit!r}; this column is in {self.unit or 'no unit'}: {self.expected}")
        if not self.range[0] <= number <= self.range[1]:
            shown = f"{number:g} {self.unit}".rstrip()
            raise ValueError(f"{shown} is out of range; expected {self.expected}; check the unit")
        return float(number)

    def encode(self, code: float) -> np.ndarray:
        """Turn a parsed cell into features that are not standardised yet, shape (n_features,), NaN where not known."""
        if self.kind == "nominal":
            return np.full(self.n_features, math.nan) if math.isnan(code) else np.eye(self.n_features)[int(code)]
        return np.array([math.copysign(math.log1p(abs(code)), code) if self.log1p else code])

    def decode(self, features: np.ndarray) -> float:
        """Turn features of shape (n_features,), such as imputed ones, into the nearest valid parsed cell."""
        if np.isnan(features).any():
            return math.nan
        if self.kind == "nominal":
            return float(np.argmax(features))
        value = float(features[0])
        if self.kind == "numeric":
            value = math.copysign(math.expm1(abs(value)), value) if self.log1p else value
            return min(max(value, self.range[0]), self.range[1])
        return float(np.clip(round(value), 0, len(self.categories) - 1))


@dataclass(frozen=True, kw_only=True)
class ClinicalSchema:
    """The columns of a clinical table that a network gets, in order; usually made by `from_yaml`.

    Args:
        columns: the chosen columns.
        id_column: header of the column with the patients' ids.
        sheet: name of the sheet in a workbook; None or absent there: the first.
    """

    columns: tuple[ClinicalColumn, ...]
    id_column: str = "patient_id"
    sheet: str | None = None

    @classmethod
    def from_yaml(
        cls, path: str | Path, preset: str = "pre_treatment", columns: Sequence[str] | str | None = None
    ) -> ClinicalSchema:
        """Read a schema file and choose columns from it.

        Args:
            path: YAML file with `id`, `sheet`, `missing` and `columns`.
            preset: `pre_treatment`: what is known before treatment and not a function of other columns; `paper`:
                every column of the table, outcome included (it warns). Ignored where `columns` is given.
            columns: names of the columns to use instead, in this order; a text is split at commas.

        Raises:
            ValueError: for an unknown preset or column name, or a schema file with a wrong declaration.
        """
        declared, known = read_schema(Path(path))
        if columns is not None:
            if isinstance(columns, str):  # from a command line
                columns = [columns] if columns in known else [name.strip() for name in columns.split(",")]
            if not columns:
                raise ValueError(f"no columns chosen from {path}; it has {list(known)}")
            for name in columns:
                if name not in known:
                    raise ValueError(f"{path} has no column {name!r}{suggestion(name, known)}; it has {list(known)}")
            chosen = [known[name] for name in dict.fromkeys(columns)]
        elif preset == "paper":
            chosen = list(known.values())
        elif preset == "pre_treatment":
            chosen = [c for c in known.values() if c.known == "before" and not c.derived_from]
        else:
            raise ValueError(f"preset {preset!r}; expected one of {', '.join(PRESETS)}, or a list of columns")
        leaks: dict[str, list[str]] = {}
        for column in chosen:
            if column.known == "after":
                leaks.setdefault(column.leak, []).append(column.name)
        if leaks:
            text = "; ".join(f"{', '.join(names)} ({leak})" for leak, names in leaks.items())
            warnings.warn(f"clinical columns that are known only after treatment leak: {text}", stacklevel=2)
        return cls(columns=tuple(chosen), id_column=declared.get("id", "patient_id"), sheet=declared.get("sheet"))

    @property
    def n_features(self) -> int:
        """Length F of a clinical vector."""
        return sum(c.n_features for c in self.columns)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the F entries."""
        return tuple(name for c in self.columns for name in c.feature_names)

    @property
    def groups(self) -> list[int]:
        """For each of the F entries the index of its column: entries of one column are known or unknown together."""
        return [i for i, c in enumerate(self.columns) for _ in range(c.n_features)]

    @property
    def relatives(self) -> list[list[int]]:
        """For each column the indices of those that tell its value: itself, its sources, what derives from it."""
        return [
            [
                j
                for j, other in enumerate(self.columns)
                if other is column or other.name in column.derived_from or column.name in other.derived_from
            ]
            for column in self.columns
        ]

    @property
    def fingerprint(self) -> list[list[Any]]:
        """What fitted statistics depend on: feature, kind, index of a category or rank, log1p."""
        return [[n, c.kind, list(c.categories), c.log1p] for c in self.columns for n in c.feature_names]

    def parse(self, row: Mapping[str, Any], where: str, problems: list[str]) -> np.ndarray:
        """Read one row into parsed cells, shape (columns,); what is refused becomes NaN and a line of `problems`."""
        codes = np.full(len(self.columns), math.nan)
        for i, column in enumerate(self.columns):
            try:
                codes[i] = column.parse(row.get(column.name))
            except ValueError as error:
                problems.append(f'{where}, column "{column.name}": {error}')
        return codes

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Turn parsed cells, shape (columns,), into features that are not standardised yet, shape (F,)."""
        return np.concatenate([c.encode(code) for c, code in zip(self.columns, codes, strict=True)])

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Turn features, shape (F,), into the nearest valid parsed cells, shape (columns,)."""
        parts = np.split(features, np.cumsum([c.n_features for c in self.columns])[:-1])
        return np.array([c.decode(part) for c, part in zip(self.columns, parts, strict=True)])

    def statistics(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the mean and standard deviation of every feature over the cells that are known.

        Args:
            codes: parsed cells, shape (patients, columns), NaN where not known.

        Returns:
            Mean, standard deviation (1 for constant features) and whether the feature was ever known, shape (F,) each.
            Nominal features keep mean 0 and deviation 1: they stay 0 or 1.
        """
        features = np.stack([self.encode(row) for row in codes])  # (patients, F)
        known = ~np.isnan(features)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, features, 0).sum(axis=0) / count
        std = np.sqrt((np.where(known, features - mean, 0) ** 2).sum(axis=0) / count)
        nominal = np.array([self.columns[g].kind == "nominal" for g in self.groups])
        return np.where(nominal, 0.0, mean), np.where(nominal | (std < 1e-12), 1.0, std), known.any(axis=0)


def read_schema(path: Path) -> tuple[dict[str, Any], dict[str, ClinicalColumn]]:
    """Read a schema file: what it says, and all of its columns by name; ValueError names the wrong entry."""
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(declared, dict) or not isinstance(declared.get("columns"), list):
        raise ValueError(f"{path} is no clinical schema: expected the keys id and columns (a list)")
    everywhere = declared.get("missing", [])
    known: dict[str, ClinicalColumn] = {}
    for entry in declared["columns"]:
        try:
            sources = list(entry.get("derived_from", []))
            if undeclared := [s for s in sources if s not in known]:
                raise ValueError(f"derived_from names {undeclared}; expected columns that are declared above it")
            sources += [name for s in sources for name in known[s].derived_from]
            missing = [*everywhere, *entry.get("missing", [])]
            column = ClinicalColumn(**{**entry, "missing": missing, "derived_from": dict.fromkeys(sources)})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; in the entry {entry}") from error
        if known.setdefault(column.name, column) is not column:
            raise ValueError(f"{path} declares the column {column.name!r} twice")
    return declared, known
