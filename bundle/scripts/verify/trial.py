"""Runs in a process of its own, on a bundle whose files were all judged: builds, loads, computes, asks MONAI's checks.

It is started as a file with the bundle's folder on the path, so that `scripts` is the bundle's code and not ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_FILE = 2**26  # bytes; training handlers open their logs
TOLERANCE = 1e-3  # of the largest expected logit; other processors round otherwise, by some 1e-5
SHOWN = 5
CASES = 64
CPU = "$torch.device('cpu')"


def main() -> None:
    """Run all checks and write what they found as one JSON line for each."""
    job = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (job["bytes"], job["bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    runpy.run_path(str(Path(__file__).with_name("confine.py")))["confine"](job["work"])  # `scripts` is the bundle's
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not a finding
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    bundle = Bundle(Path(job["folder"]), Path(job["work"]), Path(job["schema"]))
    for check in (bundle.load, bundle.compare, bundle.metadata, bundle.shapes, bundle.inference, bundle.training):
        problem = _problem_of(check)
        out.write(json.dumps({"check": check.__name__, "problem": problem}) + "\n")
        out.flush()
        if problem and check == bundle.load:
            break  # nothing to compute with


def _problem_of(check: Callable[[], str]) -> str:
    """What a check says, or what it died of; empty if all is well."""
    try:
        return check()
    except MemoryError:
        return "needs more memory than it is given"
    except SystemExit:
        return "ends the program"
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        text = str(error).strip().splitlines()
        if "tried to allocate" in str(error):
            return "needs more memory than it is given"
        return f"{type(error).__name__}: {text[0][:300] if text else ''}"


class Bundle:
    """A bundle under trial.

    Args:
        folder: its private copy.
        work: an empty folder that may be written to.
        schema: the schema of its metadata.
    """

    def __init__(self, folder: Path, work: Path, schema: Path) -> None:
        self.configs = folder / "configs"
        self.models = folder / "models"
        self.meta = str(self.configs / "metadata.json")
        self.work = work
        self.schema = schema
        self.network: Any = None
        self.clinical: Any = None

    def load(self) -> str:
        """Build the network that the configuration describes and load the weights strictly."""
        import numpy as np
        import torch
        from monai.bundle import ConfigParser

        with np.load(self.models / "check.npz", allow_pickle=False) as case:
            self.case = {name: torch.from_numpy(case[name]) for name in case.files}
        self.clinical = self.case.get("clinical")
        parser = ConfigParser()
        parser.read_config(str(self.configs / "inference.yaml"))
        parser["device"] = CPU
        network = parser.get_parsed_content("network_def").eval()
        state = torch.load(self.models / "model.pt", map_location="cpu", weights_only=True)
        problem = _difference(network.state_dict(), state)
        if not problem:
            network.load_state_dict(state, strict=True)
            self.network = network
        return problem

    def compare(self) -> str:
        """Compute the stored case and compare it with the stored answer."""
        import torch

        with torch.inference_mode():
            logits = self.network(self.case["image"], **self._clinical())
        expected = self.case["logits"]
        if logits.shape != expected.shape:
            return f"the stored case gives logits of shape {tuple(logits.shape)}, expected {tuple(expected.shape)}"
        if not torch.isfinite(expected).all():
            return "the stored answer has values that are no numbers"
        off, scale = (logits - expected).abs().max().item(), max(expected.abs().max().item(), 1.0)
        if not off <= TOLERANCE * scale:
            return (
                f"the stored case gives logits that are off by {off:.3g}; at most {TOLERANCE * scale:.3g} is accepted"
            )
        return ""

    def metadata(self) -> str:
        """MONAI's check of the metadata, with the schema at hand instead of a download."""
        from monai.bundle import verify_metadata

        verify_metadata(meta_file=self.meta, filepath=str(self.schema))
        return ""

    def shapes(self) -> str:
        """MONAI's check of input and output, with the image alone and with clinical values."""
        from monai.bundle import verify_net_in_out

        for extra in [{}] if self.clinical is None else [{}, self._clinical()]:
            verify_net_in_out(
                net_id="network_def",
                meta_file=self.meta,
                config_file=str(self.configs / "inference.yaml"),
                device="cpu",
                extra_forward_args=extra,
            )
        return ""

    def inference(self) -> str:
        """MONAI's list of what a bundle for inference defines."""
        return self._properties("inference", {"dataset::data": []})

    def training(self) -> str:
        """MONAI's list of what a bundle for training defines."""
        if (self.models / "clinical.json").is_file():
            shutil.copy(self.models / "clinical.json", self.work)  # fine-tuning starts with it in the run's folder
        overrides: dict[str, Any] = {}
        for part in ("train", "validate"):  # cases that are never read: the samplers want some, the cache wants none
            overrides[f"{part}::dataset::data"] = [{}] * CASES
            if "cache_rate" in self._read("train").get(part, {}).get("dataset", {}):
                overrides[f"{part}::dataset::cache_rate"] = 0.0
        return self._properties("train", overrides)

    def _read(self, kind: str) -> dict[str, Any]:
        from monai.bundle import ConfigParser

        return ConfigParser.load_config_file(str(self.configs / f"{kind}.yaml"))

    def _properties(self, kind: str, overrides: dict[str, Any]) -> str:
        from monai.bundle import ConfigWorkflow

        workflow = ConfigWorkflow(
            config_file=str(self.configs / f"{kind}.yaml"),
            meta_file=self.meta,
            logging_file=False,
            workflow_type=kind,
            device=CPU,
            dataset_dir=str(self.work),
            output_dir=str(self.work),
            **overrides,
        )
        workflow.initialize()
        missing = workflow.check_properties()
        return f"lacks the properties {', '.join(missing)}" if missing else ""

    def _clinical(self) -> dict[str, Any]:
        return {} if self.clinical is None else {"clinical": self.clinical}


def _difference(expected: dict[str, Any], state: dict[str, Any]) -> str:
    """How weights differ from those that a network has; empty if they fit."""
    import torch

    missing = [name for name in expected if name not in state]
    spare = [name for name in state if name not in expected]
    both = [name for name in expected if name in state]
    shapes = [
        f"{name} has the shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in both
        if state[name].shape != expected[name].shape or state[name].dtype != expected[name].dtype
    ]
    infinite = [name for name in both if not torch.isfinite(state[name]).all()]
    parts = [("missing", missing), ("not of this network", spare), ("of another shape", shapes)]
    found = [f"{len(names)} {what}: {'; '.join(names[:SHOWN])}" for what, names in parts if names]
    if found:
        return f"holds the weights of another network: {'. '.join(found)}"
    return f"has values that are no numbers: {'; '.join(infinite[:SHOWN])}" if infinite else ""


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
