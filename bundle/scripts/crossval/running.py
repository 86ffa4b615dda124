"""Trains and evaluates folds, each in a process of its own; what is finished stays, what was begun goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from monai.bundle import ConfigParser
from tqdm import tqdm

from scripts import workflows
from scripts.compare.running import FIRST_CASE, alone, merged
from scripts.crossval.candidates import candidate_rows
from scripts.datalists import read_datalist
from scripts.files import replacing
from scripts.regions import Regions
from scripts.shares import by_itself

NOTE = "crossval.json"  # a fold that has it is finished
CANDIDATES = "candidates.csv"
RAW = "raw"  # evaluation of a fold with masks as the network gave them: how to clean them is chosen later
AS_THEY_ARE: dict[str, list] = {"keep_largest": [], "remove_small": []}


@dataclass(frozen=True)
class Plan:
    """A cross-validation.

    Attributes:
        dataset: folder of the prepared dataset.
        output: folder for everything.
        overlays: names or paths.
        settings: ids of the configuration, the same for all folds.
    """

    dataset: str
    output: Path
    overlays: tuple[str, ...]
    settings: Mapping[str, Any]

    def run(self, fold: int) -> Path:
        """Folder of a fold's run."""
        return self.output / f"fold{fold}"

    def finished(self, fold: int) -> bool:
        """Whether a fold is trained, evaluated and ready to be gathered."""
        return (self.run(fold) / NOTE).is_file()


def run_folds(plan: Plan, folds: Sequence[int]) -> None:
    """Train and evaluate folds that are not finished, one after the other.

    Args:
        plan: the cross-validation.
        folds: which.

    Raises:
        RuntimeError: folds that failed, after the others were tried.
    """
    failed = {}
    bar = tqdm([fold for fold in folds if not plan.finished(fold)], desc="folds")
    for fold in bar:
        bar.set_postfix_str(f"fold {fold}")
        try:
            with by_itself():
                alone(make_fold, plan, fold)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            failed[fold] = error
            tqdm.write(f"fold {fold} failed: {error}")
    if failed:
        fold, error = next(iter(failed.items()))
        raise RuntimeError(
            f"{len(failed)} of {len(folds)} folds failed, fold {fold} by: {error} The same command goes on."
        ) from error


def make_fold(plan: Plan, fold: int) -> None:
    """Train and evaluate one fold in this process.

    The weights of the last epoch count, so that nothing is chosen on held-out patients, unless ``val_interval`` is set.

    Args:
        plan: the cross-validation.
        fold: which one is held out.
    """
    begin, folder, settings = time.perf_counter(), plan.run(fold), dict(plan.settings)
    if "val_interval" not in settings:
        epochs = int(merged(plan.overlays, settings)["epochs"])
        settings = {"val_interval": epochs, "validate::dataset::data": FIRST_CASE} | settings
    workflows.train(plan.dataset, str(folder), list(plan.overlays), fold=fold, **settings)
    workflows.evaluate(str(folder), dataset_dir=plan.dataset, evaluation_dir=str(folder / RAW), **AS_THEY_ARE)
    write_candidates(plan, fold)
    with replacing(folder / NOTE) as part:
        part.write_text(json.dumps({"fold": fold, "minutes": (time.perf_counter() - begin) / 60}))


def write_candidates(plan: Plan, fold: int) -> None:
    """Score every way to clean the masks of a fold.

    Args:
        plan: the cross-validation.
        fold: evaluated without cleaning.
    """
    folder, rows = plan.run(fold), []
    labels, regions = class_names(folder), regions_of(folder)
    for case in (case for case in read_datalist(plan.dataset) if case["fold"] == fold):
        mask = nib.load(folder / RAW / "masks" / f"{case['case_id']}.nii.gz")
        label = np.asarray(nib.load(case["label"]).dataobj)
        own = {"fold": fold, "case_id": case["case_id"], "patient": case["patient_id"]}
        rows += [own | row for row in candidate_rows(np.asarray(mask.dataobj), label, mask.affine, labels, regions)]
    with replacing(folder / CANDIDATES) as part:
        pd.DataFrame(rows).to_csv(part, index=False)


def class_names(run: Path) -> list[str]:
    """Class names of a run, background first."""
    return [str(name) for name in _value(run, "labels")]


def regions_of(run: Path) -> Regions:
    """Overlapping regions that a run trains and scores in place of its classes; empty for a run of classes."""
    return _value(run, "regions") or {}


def _value(run: Path, name: str) -> Any:
    """An id of a run's configuration; None in a run that is older than it."""
    parser = ConfigParser()
    parser.read_config(str(run / "config.yaml"))
    return parser.get_parsed_content(name) if name in parser.get() else None
