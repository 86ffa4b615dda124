"""Everything that a comparison says, worked out of the runs and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from scripts.compare.collect import Run, differences, scores
from scripts.compare.cost import costs
from scripts.compare.groups import group_table
from scripts.compare.ranking import CriticalDifference, Stability, critical_difference, rank_stability
from scripts.compare.statistics import interval, paired_tests

TOTAL = "Total"
HIGHER = {"dice": True, "iou": True, "surface_dice": True, "hd95": False, "assd": False, "recall": True}
HIGHER |= {"precision": True, "accuracy": True}
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        metric: what the variants are ranked by.
        runs: the runs.
        variants: names, the best first.
        cases: variant, class (with `TOTAL`), case_id, patient, group and metrics, averaged over the seeds.
        board: variant, class, metric, mean, low, high (95 % bootstrap over patients), n, seed_std.
        tests: paired tests of the metric for each class and in total; Holm's correction within each class.
        ranks: mean ranks and critical difference; None with a single variant or patient.
        stability: of the ranks; None likewise.
        groups: per vendor or site; empty where the dataset names fewer than two.
        costs: variant to its costs.
        calibration: variant to ``ece`` and its bins; without the variants that were not probed.
        differences: settings that differ between the variants.
        notes: what a careful reader should know before believing the numbers.
    """

    metric: str
    runs: Sequence[Run]
    variants: list[str]
    cases: pd.DataFrame
    board: pd.DataFrame
    tests: pd.DataFrame
    ranks: CriticalDifference | None
    stability: Stability | None
    groups: pd.DataFrame
    costs: Mapping[str, Mapping[str, float | None]]
    calibration: Mapping[str, Mapping[str, Any]]
    differences: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Foreground classes in label order, and `TOTAL` last."""
        return list(dict.fromkeys(self.cases["class"]))

    def cell(self, variant: str, name: str, metric: str) -> dict[str, float]:
        """Mean, ends of the interval, n and spread over seeds of a variant, class and metric."""
        board = self.board
        rows = board[(board["variant"] == variant) & (board["class"] == name) & (board["metric"] == metric)]
        return rows.iloc[0].to_dict() if len(rows) else {}

    def like_the_best(self, variant: str, name: str = TOTAL) -> bool:
        """Whether a variant cannot be told apart from the best of a class by the corrected test."""
        best = self.best(name)
        pair = self.tests[(self.tests["class"] == name) & self.tests["a"].isin([variant, best])]
        pair = pair[pair["b"].isin([variant, best])]
        return variant != best and len(pair) > 0 and float(pair["p_holm"].iloc[0]) >= LEVEL

    def best(self, name: str = TOTAL, metric: str | None = None) -> str | None:
        """The variant with the best mean of a class; None where no variant has one."""
        metric = metric or self.metric
        rows = self.board[(self.board["class"] == name) & (self.board["metric"] == metric)].dropna(subset="mean")
        if rows.empty:
            return None
        return str(rows.sort_values("mean", ascending=not HIGHER[metric], kind="stable")["variant"].iloc[0])


def analyse(runs: Sequence[Run], *, metric: str = "dice", seed: int = 0) -> Comparison:
    """Compare finished runs.

    Args:
        runs: of `read_runs`.
        metric: what to rank by, a column of ``per_case.csv``.
        seed: of every bootstrap.

    Returns:
        The comparison.

    Raises:
        ValueError: an unknown metric.
    """
    long = scores(runs)
    metrics = [name for name in HIGHER if name in long]
    if metric not in metrics:
        raise ValueError(f"There is no metric {metric!r} to rank by; the runs have {', '.join(metrics)}.")
    seeds = _with_total(long, metrics)
    keys = ["variant", "class", "case_id", "patient", "group"]
    cases = seeds.groupby(keys, sort=False, dropna=False)[metrics].mean().reset_index()
    board = _board(cases, seeds, metrics, seed)
    own = board[(board["class"] == TOTAL) & (board["metric"] == metric)]
    variants = own.sort_values("mean", ascending=not HIGHER[metric], kind="stable")["variant"].tolist()
    by_class = {name: patient_scores(cases, name, metric)[variants] for name in dict.fromkeys(cases["class"])}
    tests = [{"class": name} | row for name, table in by_class.items() for row in paired_tests(table, seed=seed)]
    complete = by_class[TOTAL].dropna()
    rankable = min(complete.shape) > 1
    total = cases[cases["class"] == TOTAL].rename(columns={metric: "value"})
    found = Comparison(
        metric=metric,
        runs=runs,
        variants=variants,
        cases=cases,
        board=board,
        tests=pd.DataFrame(tests, columns=["class", "a", "b", "patients", "difference", "low", "high", "p", "p_holm"]),
        ranks=critical_difference(complete, higher_is_better=HIGHER[metric]) if rankable else None,
        stability=rank_stability(complete, higher_is_better=HIGHER[metric], seed=seed) if rankable else None,
        groups=group_table(total, higher_is_better=HIGHER[metric], seed=seed),
        costs={name: costs([run for run in runs if run.name == name]) for name in variants},
        calibration=_calibration(runs, variants),
        differences=differences(runs),
    )
    found.notes.extend(_notes(found))
    return found


def patient_scores(cases: pd.DataFrame, name: str, metric: str) -> pd.DataFrame:
    """Scores of one class as the tests take them: one row a patient, one column a variant."""
    part = cases[cases["class"] == name]
    return part.pivot_table(metric, "patient", "variant", aggfunc="mean", dropna=False)


def _with_total(long: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The rows, and for each case its mean over the classes that count (see ``scripts.metrics.CONVENTIONS``)."""
    keys = ["variant", "seed", "case_id", "patient", "group"]
    total = long.groupby(keys, sort=False, dropna=False)[metrics].mean().reset_index().assign(**{"class": TOTAL})
    return pd.concat([long, total], ignore_index=True)


def _board(cases: pd.DataFrame, seeds: pd.DataFrame, metrics: list[str], seed: int) -> pd.DataFrame:
    rows = []
    for (variant, name), part in cases.groupby(["variant", "class"], sort=False):
        own = seeds[(seeds["variant"] == variant) & (seeds["class"] == name)]
        for metric in metrics:
            low, high = interval(part[metric], part["patient"], seed=seed)
            means = own.groupby("seed")[metric].mean()
            rows.append(
                {
                    "variant": variant,
                    "class": name,
                    "metric": metric,
                    "mean": float(part[metric].mean()),
                    "low": low,
                    "high": high,
                    "n": int(part[metric].notna().sum()),
                    "seed_std": float(means.std(ddof=1)) if len(means) > 1 else math.nan,
                }
            )
    return pd.DataFrame(rows)


def _calibration(runs: Sequence[Run], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bins summed over the seeds of each variant, and the ECE that follows."""
    found = {}
    for name in variants:
        parts = [run.calibration["all"] for run in runs if run.name == name and run.calibration]
        if not parts:
            continue
        sums = {
            k: pd.DataFrame([part[k] for part in parts]).sum().to_numpy() for k in ("voxels", "confidence", "right")
        }
        gap = abs(sums["confidence"] - sums["right"]).sum() / max(sums["voxels"].sum(), 1)
        found[name] = {"ece": float(gap)} | sums
    return found


def _notes(found: Comparison) -> list[str]:
    """What a careful reader should know."""
    notes, runs = [], found.runs
    patients = found.cases["patient"].nunique()
    if patients < 10:
        notes.append(f"Only {patients} patients: intervals are wide, and the tests find large differences alone.")
    counts = {name: sum(run.name == name for run in runs) for name in found.variants}
    if min(counts.values()) < 2:
        once = [name for name, count in counts.items() if count < 2]
        notes.append(f"One seed alone of {', '.join(once)}: how much another start changes is not known.")
    trained = {i for run in runs for i in _ids(run, "training")} & set(found.cases["case_id"])
    if trained:
        notes.append(f"{len(trained)} of the scored cases were also trained on by a run.")
    chosen = [run.name for run in runs if _chosen_on_held_out(run)]
    if chosen:
        notes.append(
            f"The best epoch of {', '.join(dict.fromkeys(chosen))} was chosen on the scored cases: its numbers are "
            "a little too good."
        )
    parts = {tuple(sorted(_ids(run, "training"))) for run in runs}
    if len(parts) > 1:
        notes.append("The runs were not trained on the same cases.")
    return notes


def _ids(run: Run, part: str) -> list[str]:
    return [str(case.get("case_id")) for case in run.files.datalist.get(part, [])]


def _chosen_on_held_out(run: Run) -> bool:
    """Whether several epochs were validated, so that the best of them is the one that was kept."""
    log = run.files.log
    return not run.note and log is not None and "val_dice" in log and int(log["val_dice"].notna().sum()) > 1
