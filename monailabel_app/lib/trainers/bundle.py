"""A model of the bundle as a training task of MONAI Label: the bundle's own training, then a judge."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from scripts import BUNDLE_ROOT, workflows
from scripts.clinical import ClinicalTable
from scripts.clinical_schema import suggestion

from monailabel_app.lib.children import end_with_the_server
from monailabel_app.lib.conf import Options
from monailabel_app.lib.infers.bundle import BundleInfer
from monailabel_app.lib.infers.network import Network
from monailabel_app.lib.models import Source, run_source
from monailabel_app.lib.trainers.dataset import Snapshot, labelled, split_patients, write_snapshot
from monailabel_app.lib.trainers.gate import held_out_dice, verdict
from monailabel_app.lib.trainers.progress import Job, idle, printing

SENT_BY_CLIENTS = {"client_id", "gpus", "local_rank", "model"}  # no settings; MONAI Label adds gpus itself
STEPS = {
    "start": "$scripts.runs.start(@output_dir, @dataset_dir, @fold, @labels, @seed, @check_data)",
    "fit": (
        "$scripts.runs.fit_clinical(@clinical_schema, @clinical_table_path, @clinical_impute, @clinical_statistics, "
        "@dataset_dir, @fold)"
    ),
    "initialise": "$scripts.runs.initialise(@network, @initial_weights, @encoder_weights)",
    "run": "$@train::trainer.run()",
}


class BundleTrain(TrainTask):
    """Trains a model from the submitted labels and serves the result if it is not worse.

    Args:
        infer: the model's inference task, with its versions.
        options: what the operator configured.
    """

    def __init__(self, *, infer: BundleInfer, options: Options) -> None:
        super().__init__("Trains from the submitted labels; serves what is not worse on held-out patients")
        self.versions, self.infer, self.options = infer.versions, infer, options
        self._config = ConfigParser.load_config_files(
            [str(BUNDLE_ROOT / "configs" / f"{name}.yaml") for name in ("inference", "train")]
            + [str(file) for file in self.versions.base.training]
        )

    def config(self) -> dict[str, Any]:
        """The parameters that clients show, with their defaults."""
        return {
            "max_epochs": self.options.epochs,
            "pretrained": True,
            "learning_rate": float(self._config["learning_rate"]),
            "seed": 0,
        }

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Read the parameters of a request; what is left out has its default.

        Raises:
            ValueError: an unknown parameter or a value that cannot be used.
        """
        defaults = self.config()
        unknown = sorted(set(request) - set(defaults) - SENT_BY_CLIENTS)
        if unknown:
            raise ValueError(
                f"Training has no parameter {unknown[0]!r}{suggestion(unknown[0], defaults)}; there are "
                f"{', '.join(defaults)}."
            )
        given = {key: value for key, value in request.items() if key in defaults and value not in (None, "")}
        return {
            "max_epochs": int(_number(given, "max_epochs", defaults, 1, 100_000, whole=True)),
            "pretrained": _truth(given.get("pretrained", True)) and self.infer.is_valid(),
            "learning_rate": _number(given, "learning_rate", defaults, 1e-9, 10),
            "seed": int(_number(given, "seed", defaults, 0, 2**31, whole=True)),
        }

    def check_data(self, datastore: Datastore, pretrained: bool) -> list[dict[str, Any]]:
        """The labelled cases, if one can train on them.

        Raises:
            ValueError: too few labels, or no clinical table for a network that is to learn from one.
        """
        cases = labelled(datastore, self._patients())
        patients = {case["patient_id"] for case in cases}
        if len(patients) < 2:
            raise ValueError(
                f"{len(cases)} final labels of {len(patients)} patients; at least 2 patients are needed, one to train "
                "on and one held out to judge by. Submit more labels."
            )
        if self.infer.schema is not None and self.options.clinical is None and not pretrained:
            raise ValueError(
                "The network takes clinical variables, and a training from scratch must know some: start the server "
                "with --conf clinical <table>, or train with pretrained true."
            )
        return cases

    def stats(self) -> dict[str, Any]:
        """The latest training, as clients show it, and which version is served."""
        numbers = sorted(
            (path for path in self.versions.folder.glob("*/job.json") if path.parent.name.isdigit()),
            key=lambda path: int(path.parent.name),
        )
        latest = Job(numbers[-1].parent).stats() if numbers else idle()
        return latest | {"served": self.versions.served, "versions": self.versions.known()}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train a new version, judge it, and serve it if it may be.

        Returns:
            The statistics of `stats`.

        Raises:
            ValueError: a parameter or the data cannot be used; nothing was started.
        """
        end_with_the_server()
        settings = self.check(request)
        cases = self.check_data(datastore, settings["pretrained"])
        parts = split_patients(
            cases, self.versions.folder / "patients.json", self.options.held_out, self._earlier_datalist()
        )
        number, folder = self.versions.new()
        facts = {"epochs": settings["max_epochs"], "settings": settings}
        with Job(folder).running(**facts) as note:
            snapshot = write_snapshot(cases, parts, folder / "dataset", self.infer.classes)
            note(cases=_count(snapshot))
            print(f"version {number}: {_count(snapshot)}", flush=True)
            if not snapshot.training or not snapshot.held_out:
                raise ValueError(f"Too few labels that hold something: {_count(snapshot)}. Label more patients.")
            self._train(folder, snapshot, settings)
            judged = self._judge(number, folder, snapshot)
            note(message=judged["reason"])
        if judged["accepted"]:
            self.versions.serve(number)
        print(f"version {number} is {'served' if judged['accepted'] else 'not served'}: {judged['reason']}", flush=True)
        return self.stats()

    def _train(self, folder: Path, snapshot: Snapshot, settings: Mapping[str, Any]) -> None:
        run, epochs = folder / "run", settings["max_epochs"]
        run.mkdir()
        served = self.versions.source(self.versions.served) if settings["pretrained"] else None
        overlay = folder / "training.yaml"
        overlay.write_text(yaml.safe_dump(self._overlay(served), sort_keys=False))
        if served is not None and served.statistics.is_file():
            shutil.copyfile(served.statistics, run / "clinical.json")  # the weights go with this scaling
        overrides = {
            "epochs": epochs,
            "seed": settings["seed"],
            "learning_rate": settings["learning_rate"],
            "warmup_epochs": min(int(self._config["warmup_epochs"]), epochs // 10),
            "val_interval": min(int(self._config["val_interval"]), epochs),
            "batch_size": min(int(self._config["batch_size"]), len(snapshot.training)),
            "fold": 0,
            "initial_weights": None if served is None else str(served.weights),
            "encoder_weights": None,
            "clinical_table_path": None if self.options.clinical is None else str(self.options.clinical),
            "clinical_statistics": str(run / "clinical.json"),
        }
        if self.infer.schema is None:
            overrides |= {"clinical_table_path": None}
        if self.versions.base.root is not None:
            overrides["bundle_root"] = str(self.versions.base.root)
        with printing(run, epochs):
            workflows.train(str(folder / "dataset"), str(run), [str(overlay)], **overrides)

    def _overlay(self, served: Source | None) -> dict[str, Any]:
        """What this model changes in the bundle's training."""
        base = ConfigParser.load_config_file(str(BUNDLE_ROOT / "configs" / "inference.yaml"))
        train = ConfigParser.load_config_file(str(BUNDLE_ROOT / "configs" / "train.yaml"))
        steps = ["start", *([] if served else ["fit"]), "initialise", "run"]
        overlay: dict[str, Any] = {}
        for file in self.versions.base.training:
            content = ConfigParser.load_config_file(str(file))
            serves_only = "train" not in content  # then it was cut from a training, whose ids of both it must not set
            overlay |= {
                key: value for key, value in content.items() if not (serves_only and key in train and key in base)
            }
        if "class_ratios" not in overlay and len(self._config["class_ratios"]) != len(self.infer.classes):
            overlay["class_ratios"] = [1] * len(self.infer.classes)  # the bundle's own are for the classes of its task
        return overlay | {"training": [STEPS[step] for step in steps], "run": "%training"}

    def _judge(self, number: str, folder: Path, snapshot: Snapshot) -> dict[str, Any]:
        def dice(source: Source, version: str) -> dict[str, float]:
            return held_out_dice(Network(source, version, self.options.clinical), snapshot.held_out)

        scores = dice(run_source(self.versions.base.name, folder / "run"), number)
        before = self.versions.served if self.infer.is_valid() else None
        served = None if before is None else dice(self.versions.source(before), before)
        judged = verdict(scores, served, self.options.margin) | {"compared_with": before}
        self.versions.judge(number, judged)
        return judged

    def _patients(self) -> tuple[str, ...]:
        if self.infer.schema is None or self.options.clinical is None:
            return ()
        return ClinicalTable(path=self.options.clinical, schema=self.infer.schema, on_error="ignore").patient_ids

    def _earlier_datalist(self) -> Path:
        weights = self.versions.base.weights
        return (weights.parent if weights else self.versions.folder) / "datalist.json"


def _count(snapshot: Snapshot) -> str:
    text = f"{len(snapshot.training)} cases to train on, {len(snapshot.held_out)} held out"
    return text + (f", empty labels left out: {', '.join(snapshot.empty)}" if snapshot.empty else "")


def _number(
    given: Mapping[str, Any], key: str, defaults: Mapping[str, Any], least: float, most: float, whole: bool = False
) -> float:
    value = given.get(key, defaults[key])
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{key} is {value!r}; expected {kind} from {least:g} to {most:g}.")
    return number


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ValueError(f"pretrained is {value!r}; expected true or false.")
