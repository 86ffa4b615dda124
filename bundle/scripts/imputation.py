"""Measure how well unknown clinical cells are filled, by hiding known ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from .clinical import HCC_TACE_SCHEMA, ClinicalColumn, ClinicalSchema, ClinicalTable, Fitted
from .imputers import ForestImputer, GaussianImputer, Imputer

__all__ = ["IMPUTERS", "imputation_quality", "quality"]

ORDERED = ("numeric", "ordinal")


def _iterative(schema: ClinicalSchema) -> Imputer:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  (scikit-learn only for this comparison)
    from sklearn.impute import IterativeImputer

    return IterativeImputer(keep_empty_features=True)


def _neighbours(schema: ClinicalSchema) -> Imputer:
    from sklearn.impute import KNNImputer

    return KNNImputer(n_neighbors=10, weights="distance", keep_empty_features=True)


IMPUTERS: dict[str, Callable[[ClinicalSchema], Imputer]] = {
    "forest": lambda schema: ForestImputer(groups=schema.groups),  # what ClinicalTable uses
    "gaussian": lambda schema: GaussianImputer(),
    "iterative": _iterative,
    "neighbours": _neighbours,
}


def imputation_quality(
    table: ClinicalTable,
    *,
    models: Sequence[str] = ("forest",),
    fraction: float = 0.2,
    folds: int = 5,
    seeds: int = 3,
) -> pd.DataFrame:
    """Hide known cells of patients that the model was not fitted on, fill them, and compare.

    The patients are split into folds; the model is fitted on the others and fills hidden cells of the fold. With a cell
    those that tell its value are hidden too: with the age the age group, with the AFP its group and the CLIP score.

    Args:
        table: the table, fitted or not.
        models: names among `IMPUTERS`.
        fraction: share of the known cells to hide, above 0 and below 1.
        folds: number of folds, 2 to the number of patients.
        seeds: number of repetitions with other folds and cells, at least 1.

    Returns:
        One row per column: kind, metric, number of hidden cells, the result of filling with median or mode, and of each
        model. `nrmse`, for numeric and ordinal columns: root mean square error over the standard deviation of the known
        cells, on the scale that the network sees (logarithm, ranks), smaller is better. `accuracy`, for binary and
        nominal ones, larger is better.

    Raises:
        ValueError: for a wrong setting or a table without cells to hide.
    """
    codes, schema = table.codes, table.schema
    if not 0 < fraction < 1 or not 2 <= folds <= len(codes) or seeds < 1:
        raise ValueError(
            f"fraction {fraction}, folds {folds}, seeds {seeds} for {len(codes)} patients; "
            "expected 0 < fraction < 1, 2 <= folds <= patients, seeds >= 1"
        )
    if unknown := set(models) - set(IMPUTERS):
        raise ValueError(f"models {sorted(unknown)}; expected some of {', '.join(IMPUTERS)}")
    hidden: list[tuple[int, float, list[float]]] = []  # column, truth, what median or mode and each model say
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        fold_of = rng.permutation(len(codes)) % folds
        for fold in range(folds):
            train, test = codes[fold_of != fold], codes[fold_of == fold]
            hide = (rng.random(test.shape) < fraction) & ~np.isnan(test)
            visible = test.copy()
            for i, relatives in enumerate(schema.relatives):
                visible[np.ix_(hide[:, i], relatives)] = np.nan
            guesses = [np.tile(middle(schema, train), (len(test), 1))]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn on convergence
                guesses += [Fitted.of(schema, train, IMPUTERS[model](schema)).fill(visible) for model in models]
            hidden += [(i, test[r, i], [guess[r, i] for guess in guesses]) for r, i in np.argwhere(hide)]
    return _score(schema, codes, hidden, ["median/mode", *models])


def middle(schema: ClinicalSchema, codes: np.ndarray) -> np.ndarray:
    """Return the median (numeric, ordinal) or mode of each column, shape (columns,), NaN where nothing is known."""
    values = np.full(codes.shape[1], np.nan)
    for i, column in enumerate(schema.columns):
        known = codes[~np.isnan(codes[:, i]), i]
        if len(known):
            ordered = column.kind in ORDERED
            values[i] = np.median(known) if ordered else np.bincount(known.astype(int)).argmax()
    return values


def _score(
    schema: ClinicalSchema, codes: np.ndarray, hidden: Sequence[tuple[int, float, list[float]]], names: Sequence[str]
) -> pd.DataFrame:
    rows = []
    for i, column in enumerate(schema.columns):
        truth = np.array([t for j, t, _ in hidden if j == i])  # (cells,)
        guesses = np.array([g for j, _, g in hidden if j == i]).reshape(len(truth), len(names))
        possible = ~np.isnan(guesses).any(axis=1)  # where nothing else is known, no model answers
        truth, guesses = truth[possible], guesses[possible]
        metric = "nrmse" if column.kind in ORDERED else "accuracy"
        row = {"column": column.name, "kind": column.kind, "metric": metric, "n": len(truth)}
        scores = {name: _measure(column, truth, guesses[:, k], codes[:, i]) for k, name in enumerate(names)}
        rows.append(row | scores)
    return pd.DataFrame(rows)


def _measure(column: ClinicalColumn, truth: np.ndarray, guess: np.ndarray, cells: np.ndarray) -> float:
    if not len(truth):
        return float("nan")
    if column.kind not in ORDERED:
        return float(np.mean(guess == truth))
    scale = np.std([column.encode(c)[0] for c in cells[~np.isnan(cells)]])
    error = [column.encode(g)[0] - column.encode(t)[0] for g, t in zip(guess, truth, strict=True)]
    return float(np.sqrt(np.mean(np.square(error))) / scale) if scale > 0 else float("nan")


def quality(
    table: str,
    schema: str | None = None,
    preset: str = "pre_treatment",
    columns: Sequence[str] | None = None,
    compare: bool = False,
    fraction: float = 0.2,
    folds: int = 5,
    seeds: int = 3,
) -> str:
    """Measure how well unknown cells of a clinical table are filled, by hiding known ones.

    Example: python -m scripts clinical quality --table clinical.xlsx --compare

    Args:
        table: path of the table, xlsx or csv.
        schema: path of the schema; the one of HCC-TACE-Seg if left out.
        preset: pre_treatment or paper.
        columns: names of columns to use instead of a preset.
        compare: also try the normal distribution alone, and scikit-learn's IterativeImputer and KNNImputer.
        fraction: share of the known cells to hide.
        folds: number of folds.
        seeds: number of repetitions.

    Returns:
        A printable table: per column the normalised RMSE (smaller is better) or accuracy (larger is better) of filling
        with the median or mode and with the learned model, and the mean of each over the columns.
    """
    chosen = ClinicalSchema.from_yaml(schema or HCC_TACE_SCHEMA, preset, columns)
    models = list(IMPUTERS) if compare else ["forest"]
    read = ClinicalTable(path=table, schema=chosen)
    result = imputation_quality(read, models=models, fraction=fraction, folds=folds, seeds=seeds)
    means = result.groupby("metric", as_index=False)[["median/mode", *models]].mean()
    text = result.to_string(index=False, float_format="%.3f", na_rep="-")
    return f"{text}\n\nMean over the columns\n{means.to_string(index=False, float_format='%.3f', na_rep='-')}"
