"""Scores masks in files as `nny evaluate` scores those of a network, by the configuration of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.cohort import MASK
from scripts.crossval.candidates import cleaned
from scripts.datalists import evaluation_cases
from scripts.evaluation import CaseScores
from scripts.files import replacing
from scripts.workflows import CONFIGS


def score(masks: str, dataset: str, run: str, fold: int = -1) -> str:
    """Score masks in files against the labels of a dataset: those of an ensemble, of flips, or of another program.

    Args:
        masks: folder of <case>_seg.nii.gz, as `nny infer` writes them, or <case>.nii.gz; evaluation/ and datalist.json
            go there, so that `nny compare` takes it like a run.
        dataset: the prepared dataset.
        run: a run of the same task, whose classes and tolerances count; a folder of `nny crossval` will do.
        fold: the fold to score; -1: all cases.

    Returns:
        Path of the summary.

    Raises:
        FileNotFoundError: a case without a mask, or no run.
    """
    folder, source = (Path(name).expanduser().resolve() for name in (masks, run))
    if not (source / "config.yaml").is_file():
        raise FileNotFoundError(f"{source} is not a run: it has no config.yaml. Give one of the same task (--run).")
    cases = evaluation_cases(dataset, fold)
    files = {case["case_id"]: _mask_of(folder, case["case_id"]) for case in cases}
    score_masks(source, cases, lambda case: cleaned(files[case["case_id"]], {}), folder / "evaluation")
    with replacing(folder / "datalist.json") as part:
        part.write_text(json.dumps({"validation": cases}, indent=1))
    return str(folder / "evaluation" / "summary.json")


def _mask_of(folder: Path, case: str) -> Path:
    """The mask of a case."""
    for file in (folder / f"{case}{MASK}", folder / f"{case}.nii.gz"):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} holds no {case}{MASK} and no {case}.nii.gz; segment the case first (nny infer).")


def score_masks(
    run: Path, cases: Sequence[Mapping[str, Any]], mask: Callable[[Mapping[str, Any]], MetaTensor], folder: Path
) -> None:
    """Write ``per_case.csv``, ``summary.json`` and ``datalist.json`` of masks.

    Args:
        run: the run whose labels, tolerances and regions count.
        cases: of `scripts.datalists.evaluation_cases`.
        mask: gives the label map ``(1, *spatial)`` of a case.
        folder: where to.
    """
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "inference.yaml"), str(run / "config.yaml"), str(CONFIGS / "evaluate.yaml")])
    parser["evaluation_dir"] = str(folder)
    engine = Engine(lambda _, batch: [{"pred": mask(case)} for case in batch])
    ProgressBar(desc="scoring").attach(engine)
    for handler in parser.get_parsed_content("handlers"):
        if isinstance(handler, CaseScores):
            handler.attach(engine)
    engine.run([[case] for case in cases])
