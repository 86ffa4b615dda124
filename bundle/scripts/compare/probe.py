"""Measures while a run is evaluated: calibration of each case, and the seconds that it takes."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines.utils import IterationEvents

from scripts.compare.calibration import Reliability, region
from scripts.files import replacing
from scripts.transforms import slabs_on_source

FILE = "calibration.json"


class CaseProbe:
    """Handler that writes ``calibration.json`` next to the scores of an evaluation.

    Probabilities are compared on the grid of the source, before postprocessing, within a box around the reference.
    The seconds of a case are those of reading, preprocessing, network, postprocessing and saving; this handler's own
    and those of scoring are not counted.

    Args:
        folder: where the file goes.
    """

    def __init__(self, *, folder: str) -> None:
        self.file = Path(folder) / FILE
        self._begin = self._spent = 0.0
        self._cases: list[dict[str, Any]] = []
        self._all = Reliability()

    def attach(self, engine: Engine) -> None:
        """Register on the evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin_case)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._measure)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._end_case)  # after the postprocessing
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self._cases, self._all = [], Reliability()

    def _begin_case(self) -> None:
        self._begin, self._spent = time.perf_counter(), 0.0

    def _measure(self, engine: Any) -> None:
        begin = time.perf_counter()
        found = {key: engine.state.output[key] for key in ("image", "pred")}
        for case_id, reference, part in zip(
            engine.state.batch["case_id"], engine.state.batch["reference"], decollate_batch(found), strict=True
        ):
            own = Reliability()
            label = np.asanyarray(nib.load(reference).dataobj)
            *plane, depth = region(label)
            wanted = range(label.shape[-1])[depth]
            for place, logits in slabs_on_source(part["pred"], part["image"]):
                inside = slice(max(place.start, wanted.start), min(place.stop, wanted.stop))
                if inside.start >= inside.stop:
                    continue
                seen = logits[(slice(None), *plane, slice(inside.start - place.start, inside.stop - place.start))]
                true = torch.from_numpy(label[(*plane, inside)].astype(np.int64))
                for counts in (own, self._all):
                    counts.add(seen.softmax(0), true)
            self._cases.append({"case_id": case_id, "ece": own.summary()["ece"]})
        self._spent = time.perf_counter() - begin

    def _end_case(self) -> None:
        self._cases[-1]["seconds"] = time.perf_counter() - self._begin - self._spent

    def _write(self) -> None:
        seconds = [case["seconds"] for case in self._cases if "seconds" in case]
        content = {"cases": self._cases, "all": self._all.summary(), "seconds_per_case": statistics.median(seconds)}
        with replacing(self.file) as part:
            part.write_text(json.dumps(content, indent=1))
