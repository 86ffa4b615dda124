"""Chooses how masks are cleaned, for each fold on the other folds alone, so that its own score stays honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scripts.crossval.candidates import NONE, OPTIONS

GAIN = 0.001  # Dice; less is left alone, as the simpler way


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        options: class to option.
        evidence: class, option, patients, dice, gain (over leaving the mask as it is) and chosen.
    """

    options: dict[str, str]
    evidence: pd.DataFrame


def choose(table: pd.DataFrame) -> Choice:
    """Choose for each class the option with the best mean Dice, if it is better than none by `GAIN`.

    Args:
        table: columns patient, class, option and dice; a row for each case, class and option.

    Returns:
        The choice.

    Raises:
        ValueError: no rows.
    """
    if table.empty:
        raise ValueError("There are no predictions to choose on; at least two folds are needed.")
    keys = ["class", "option"]
    patients = table.groupby([*keys, "patient"], sort=False)["dice"].mean()
    means = patients.groupby(keys, sort=False).agg(["mean", "count"])
    options, rows = {}, []
    for name in dict.fromkeys(table["class"]):
        dice = {option: float(means.loc[(name, option), "mean"]) for option in OPTIONS}
        best = max(OPTIONS, key=dice.__getitem__)  # of equal ones the first
        options[name] = best if dice[best] - dice[NONE] >= GAIN else NONE
        for option in OPTIONS:
            count = int(means.loc[(name, option), "count"])
            row = {"class": name, "option": option, "patients": count, "dice": dice[option]}
            rows.append(row | {"gain": dice[option] - dice[NONE], "chosen": option == options[name]})
    return Choice(options, pd.DataFrame(rows))


def choose_nested(table: pd.DataFrame, folds: Sequence[int]) -> dict[int, Choice]:
    """Choose for each fold on the predictions for all other folds.

    Args:
        table: as of `choose`, with a column fold.
        folds: all folds.

    Returns:
        Fold to choice. Labels of a fold's own patients have no part in it.
    """
    return {fold: choose(table[table["fold"] != fold]) for fold in folds}
