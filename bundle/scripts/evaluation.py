"""Score predicted masks against the original labels while an evaluator runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from scripts.distributed import gathered
from scripts.files import replacing
from scripts.metrics import case_metrics, write_evaluation
from scripts.regions import Regions, region_metrics


class CaseScores:
    """Handler that scores each case on the grid of its source and writes the evaluation when all are done.

    Of several processes each scores its own cases, and the first one writes them all.

    Args:
        folder: where ``per_case.csv`` and ``summary.json`` go.
        labels: class names, background first.
        surface_tolerance: distance in mm up to which surfaces agree, for the surface Dice.
        spacing_known: False when the files carry no true spacing; distances are then in voxels.
        regions: name to label values of overlapping regions, which are scored in place of the classes; none: classes.
    """

    def __init__(
        self,
        *,
        folder: str,
        labels: Sequence[str],
        surface_tolerance: float,
        spacing_known: bool = True,
        regions: Regions | None = None,
    ) -> None:
        self.folder, self.labels, self.regions = Path(folder), dict(enumerate(labels)), dict(regions or {})
        self.settings = {"surface_tolerance_mm": surface_tolerance, "spacing_known": spacing_known}
        self.rows: list[list[dict[str, Any]]] = []  # of each case
        self.cases: list[dict[str, str]] = []

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.rows, self.cases = [], []

    def _score(self, engine: Any) -> None:
        cases = engine.state.batch
        for case, output in zip(cases, engine.state.output, strict=True):
            reference = nib.load(case["reference"])
            check_grid(output["pred"], reference, case)
            self.cases.append({"case_id": case["case_id"], "image": case["file"], "label": case["reference"]})
            spacing = [float(size) for size in reference.header.get_zooms()[: len(reference.shape)]]
            metrics, what = (region_metrics, self.regions) if self.regions else (case_metrics, self.labels)
            scores = metrics(
                np.asarray(output["pred"][0]),
                np.asanyarray(reference.dataobj),
                spacing,
                what,
                self.settings["surface_tolerance_mm"],
                case["case_id"],
            )
            self.rows.append(scores)

    def _write(self, engine: Engine) -> None:
        rows, cases = gathered(self.rows), gathered(self.cases)
        if idist.get_rank():
            return
        summary = write_evaluation([row for case in rows for row in case], self.folder, self.settings)
        with replacing(self.folder / "datalist.json") as part:
            part.write_text(json.dumps({"validation": cases}, indent=1))
        engine.state.metrics["mean_dice"] = summary["total"]["dice"]["mean"]


def check_grid(mask: MetaTensor, reference: nib.Nifti1Image, case: Mapping[str, str]) -> None:
    """Check that a mask and its reference lie on one grid, because voxel is compared with voxel.

    Args:
        mask: predicted labels (1, *spatial) on the grid of the case's image.
        reference: the true labels.
        case: paths of the image (``file``) and of the labels (``reference``), for the message.

    Raises:
        ValueError: another shape, or an affine that differs by more than 1e-3 mm.
    """
    affine = np.asarray(mask.affine)
    if tuple(mask.shape[1:]) == reference.shape and np.allclose(affine, reference.affine, atol=1e-3):
        return
    raise ValueError(
        f"{case['reference']} lies on another grid than {case['file']}: shape {reference.shape} and affine "
        f"{np.round(reference.affine, 3).tolist()}, expected {tuple(mask.shape[1:])} and "
        f"{np.round(affine, 3).tolist()}. Resample the reference to the image, or correct its header."
    )
