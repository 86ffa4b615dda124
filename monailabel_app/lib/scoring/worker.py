"""Scores cases in a process of its own, which gives way to everything else: one JSON line in, one out.

The first line says which network; the answer is a line once it is loaded. Each further one is a case,
``{"id", "path", "info"}``. The answer to a case is its scores, or ``{"id", "error"}``. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.acquisition import CaseScorer, CaseScores
from scripts.networks import load_weights

from monailabel_app.lib.children import end_with_the_server
from monailabel_app.lib.models import Source, read_config, takes_clinical
from monailabel_app.lib.patients import find_row, patient_of

DROPOUT = 0.2  # where the network was trained without
OVERLAP = 0.25  # of windows; the mask that a client gets is made with more


class Scoring:
    """One version of a network with dropout, and what prepares its cases.

    Args:
        source: the version.
        clinical: the clinical table, or None.
    """

    def __init__(self, source: Source, clinical: Path | None) -> None:
        config = read_config(source, clinical)
        if not config["network_def"].get("dropout"):
            config["network_def"]["dropout"] = DROPOUT
        if "overlap" in config["inferer"]:
            config["inferer"]["overlap"] = OVERLAP
        self._device = config.get_parsed_content("device")
        self._preprocessing = config.get_parsed_content("preprocessing")
        self._table = config.get_parsed_content("clinical_table") if takes_clinical(config) else None
        network = config.get_parsed_content("network")
        load_weights(network, source.weights)
        axes = config.get_parsed_content("spatial_dims")
        self._scorer = CaseScorer(
            network=network, inferer=config.get_parsed_content("inferer"), flip_axes=tuple(range(axes))
        )

    def __call__(self, name: str, path: str, info: Mapping[str, Any]) -> CaseScores:
        """Score one case.

        Args:
            name: id of the image.
            path: where it is.
            info: what the datastore knows of it, for the patient's id.
        """
        known = self._table.patient_ids if self._table else ()
        values = find_row(self._table, patient_of(name, info, known), {}).values
        case = {"image": path, "case_id": name} | ({} if values is None else {"clinical": values})
        ready = self._preprocessing(case)
        clinical = ready["clinical"][None].to(self._device) if self._table else None
        image = torch.as_tensor(ready["image"])[None].to(self._device)
        return self._scorer(image, clinical, seed=zlib.crc32(name.encode()))


def to_json(name: str, scored: CaseScores) -> str:
    """A case's scores as one line."""
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(scored).items()}
    return json.dumps({"id": name, **plain})


def from_json(line: str) -> tuple[str, CaseScores | str]:
    """Name and scores of a line of `to_json`, or name and error."""
    content = json.loads(line)
    name = content.pop("id")
    if "error" in content:
        return name, content["error"]
    scores = content.pop("scores")
    return name, CaseScores(scores=scores, **{key: np.asarray(value, np.float32) for key, value in content.items()})


def main() -> None:
    """Answer lines until there are no more."""
    end_with_the_server()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads the answers any more: end without a word
    os.nice(19)
    torch.set_num_threads(1)
    lines, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not become an answer
    given = json.loads(lines.readline())
    paths = {key: given[key] and Path(given[key]) for key in ("weights", "statistics", "root")}
    source = Source(name=given["name"], inference=[Path(file) for file in given["inference"]], training=[], **paths)
    scoring = Scoring(source, given["clinical"] and Path(given["clinical"]))
    print("{}", file=answers, flush=True)
    for line in lines:
        case = json.loads(line)
        try:
            answer = to_json(case["id"], scoring(case["id"], case["path"], case["info"]))
        except Exception as error:  # a damaged image, or one without memory for it: the next may be fine
            answer = json.dumps({"id": case["id"], "error": f"{type(error).__name__}: {error}"})
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
