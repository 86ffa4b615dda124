"""Puts finished folds together: every patient scored once, by a network that never saw him; how to clean masks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
import yaml
from monai.data import MetaTensor

from scripts import datalists
from scripts.compare.statistics import interval
from scripts.crossval.candidates import cleaned, settings_of
from scripts.crossval.choice import Choice, choose, choose_nested
from scripts.crossval.running import AS_THEY_ARE, CANDIDATES, RAW, Plan, class_names
from scripts.crossval.scoring import score_masks
from scripts.ensemble import SETTINGS
from scripts.files import replacing
from scripts.metrics import METRICS, write_evaluation
from scripts.runs import MAY_CHANGE

TOTAL = "Total"
TEXT = {"case_id": str, "class": str, "patient": str, "option": str}
OF_A_FOLD = MAY_CHANGE | {"fold", "checkpoint", "clinical_statistics"}  # what the runs of the folds may differ in


@dataclass(frozen=True)
class Gathered:
    """What a cross-validation found.

    Attributes:
        folds: numbers of the folds.
        cases: fold, patient, case_id, class (with `TOTAL`) and metrics, cleaned by what the other folds chose.
        raw: the same of the masks as the networks gave them.
        nested: fold to the choice made on the other folds.
        choice: made on all folds, for the ensemble of all networks.
        labels: class names, background first.
        config: configuration of the first fold.
    """

    folds: Sequence[int]
    cases: pd.DataFrame
    raw: pd.DataFrame
    nested: Mapping[int, Choice]
    choice: Choice
    labels: Sequence[str]
    config: Mapping[str, Any]


def gather(plan: Plan, folds: Sequence[int]) -> Gathered:
    """Read finished folds, choose how masks are cleaned, and write the evaluation of the whole cohort.

    What is written is what a run has (``evaluation/``, ``datalist.json``, ``config.yaml``), so that `nny report` and
    `nny compare` take the folder for one.

    Args:
        plan: the cross-validation.
        folds: all folds of the dataset.

    Returns:
        The numbers.

    Raises:
        ValueError: folds of another split than the dataset's, or that were configured differently.
    """
    cases = datalists.read_datalist(plan.dataset)
    config = _check_folds(plan, folds, cases)
    labels = class_names(plan.run(folds[0]))
    table = pd.concat([pd.read_csv(plan.run(f) / CANDIDATES, dtype=TEXT, keep_default_na=False) for f in folds])
    nested, choice = choose_nested(table, folds), choose(table)
    for fold in folds:
        _score_fold(plan, fold, settings_of(nested[fold].options, labels))
    _write_as_run(plan, folds, cases, config, choice, labels)
    patients = {case["case_id"]: (case["fold"], case["patient_id"]) for case in cases}
    return Gathered(
        folds=folds,
        cases=_with_total(_read(plan.output / "evaluation"), patients),
        raw=_with_total(pd.concat([_read(plan.run(fold) / RAW) for fold in folds]), patients),
        nested=nested,
        choice=choice,
        labels=labels,
        config=config,
    )


def summary(found: Gathered) -> pd.DataFrame:
    """Means over the whole cohort.

    Args:
        found: of `gather`.

    Returns:
        Columns class, metric, mean, sd (over cases), low, high (95 % bootstrap over patients), n, fold_sd (of the
        folds' means) and raw (mean before cleaning).
    """
    rows = []
    for (name, metric), values, raw in _by_class(found):
        low, high = interval(values[metric], values["patient"])
        means = values.groupby("fold")[metric].mean()
        rows.append(
            {
                "class": name,
                "metric": metric,
                "mean": values[metric].mean(),
                "sd": values[metric].std(ddof=1),
                "low": low,
                "high": high,
                "n": int(values[metric].notna().sum()),
                "fold_sd": means.std(ddof=1),
                "raw": raw[metric].mean(),
            }
        )
    return pd.DataFrame(rows)


def by_fold(found: Gathered) -> pd.DataFrame:
    """Means of each fold: columns fold, class, metric, mean, sd (over cases) and n."""
    rows = []
    for (name, metric), values, _ in _by_class(found):
        for fold, part in values.groupby("fold"):
            own = {"fold": fold, "class": name, "metric": metric, "mean": part[metric].mean()}
            rows.append(own | {"sd": part[metric].std(ddof=1), "n": int(part[metric].notna().sum())})
    return pd.DataFrame(rows).sort_values("fold", kind="stable")


def _by_class(found: Gathered) -> list[tuple[tuple[str, str], pd.DataFrame, pd.DataFrame]]:
    names = sorted(dict.fromkeys(found.cases["class"]), key=lambda name: name != TOTAL)  # the total first
    return [
        ((name, metric), found.cases[found.cases["class"] == name], found.raw[found.raw["class"] == name])
        for name in names
        for metric in METRICS
    ]


def _check_folds(plan: Plan, folds: Sequence[int], cases: Sequence[datalists.Case]) -> dict[str, Any]:
    """The configuration, if the folds share it and are those of the dataset."""
    configs = {fold: yaml.safe_load((plan.run(fold) / "config.yaml").read_text()) for fold in folds}
    first = configs[folds[0]]
    for fold, config in configs.items():
        other = sorted(k for k in first.keys() | config.keys() if first.get(k) != config.get(k))
        other = [name for name in other if name not in OF_A_FOLD]
        if other:
            raise ValueError(
                f"{plan.run(fold)} was trained with other settings than {plan.run(folds[0])}: {', '.join(other)}. "
                "Delete the one that is wrong and run the same command again."
            )
        held = json.loads((plan.run(fold) / "datalist.json").read_text())["validation"]
        if {case["case_id"] for case in held} != {case["case_id"] for case in cases if case["fold"] == fold}:
            raise ValueError(
                f"{plan.run(fold)} held out other cases than those that {plan.dataset} has in fold {fold}: the dataset "
                "has changed. Use another --output."
            )
    return first


def _score_fold(plan: Plan, fold: int, settings: Mapping[str, list]) -> None:
    """Clean the masks of a fold and score them, unless that was done in the same way."""
    folder, record = plan.run(fold) / "cleaned", plan.run(fold) / "cleaned" / "settings.json"
    if record.is_file() and json.loads(record.read_text()) == settings:
        return
    source = plan.run(fold) / RAW
    shutil.rmtree(folder, ignore_errors=True)

    def clean(case: Mapping[str, Any]) -> MetaTensor:
        mask = cleaned(source / "masks" / f"{case['case_id']}.nii.gz", settings)
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(mask.as_tensor().numpy()[0], mask.affine.numpy())
        nib.save(image, folder / "masks" / f"{case['case_id']}.nii.gz")
        return mask

    if settings == AS_THEY_ARE:
        shutil.copytree(source, folder)
    else:
        score_masks(plan.run(fold), datalists.evaluation_cases(plan.dataset, fold), clean, folder)
    with replacing(record) as part:
        part.write_text(json.dumps(settings))


def _write_as_run(
    plan: Plan,
    folds: Sequence[int],
    cases: Sequence[datalists.Case],
    config: Mapping[str, Any],
    choice: Choice,
    labels: Sequence[str],
) -> None:
    """Write the evaluation of all folds, what it was of, and how an ensemble cleans its masks."""
    folder = plan.output / "evaluation"
    own = [plan.run(fold) / "cleaned" for fold in folds]
    rows = pd.concat([_read(part) for part in own]).to_dict("records")
    settings = json.loads((own[0] / "summary.json").read_text())["settings"]
    settings = {name: value for name, value in settings.items() if name != "conventions"}
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for part in own:
        for file in sorted((part / "masks").iterdir()):
            _link(file, folder / "masks" / file.name)
    write_evaluation(rows, folder, settings)
    held = [case for part in own for case in json.loads((part / "datalist.json").read_text())["validation"]]
    chosen = settings_of(choice.options, labels)
    texts = {
        "evaluation/datalist.json": json.dumps({"validation": held}, indent=1),
        "datalist.json": json.dumps({"validation": list(cases)}, indent=1),
        "config.yaml": yaml.safe_dump({**config, "fold": None}, sort_keys=False),
        "versions.json": (plan.run(folds[0]) / "versions.json").read_text(),
        SETTINGS: f"# Chosen by `nny crossval` on out-of-fold masks; postprocessing.csv has the scores.\n"
        f"{yaml.safe_dump(chosen, default_flow_style=None)}",
    }
    for name, text in texts.items():
        with replacing(plan.output / name) as part:
            part.write_text(text, encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    """Put a file into a second place, where possible without a second copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def _read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "per_case.csv", dtype=TEXT, keep_default_na=False, na_values=[""])


def _with_total(rows: pd.DataFrame, patients: Mapping[str, tuple[int, str]]) -> pd.DataFrame:
    """The rows with fold and patient, and for each case its mean over the classes that count."""
    rows = rows.copy()
    rows.insert(0, "fold", [patients[name][0] for name in rows["case_id"]])
    rows.insert(1, "patient", [patients[name][1] for name in rows["case_id"]])
    total = rows.groupby(["fold", "patient", "case_id"], sort=False)[list(METRICS)].mean().reset_index()
    return pd.concat([rows, total.assign(**{"class": TOTAL})], ignore_index=True)
