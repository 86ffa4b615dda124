"""What MONAI Label starts: names the tasks of the app and gives them what the operator configured."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# MONAI Label loads this file by its path, when neither the app nor the bundle need be importable
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "bundle")) if folder not in sys.path]

from fastapi import HTTPException  # noqa: E402
from monailabel.config import settings  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from monailabel.interfaces.tasks.scoring import ScoringMethod  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.interfaces.tasks.train import TrainTask  # noqa: E402
from scripts.clinical_schema import suggestion  # noqa: E402

from monailabel_app.lib.activelearning.strategy import ActiveLearning  # noqa: E402
from monailabel_app.lib.conf import read_conf  # noqa: E402
from monailabel_app.lib.datastore.dicom import open_studies  # noqa: E402
from monailabel_app.lib.datastore.local import StudyFolder  # noqa: E402
from monailabel_app.lib.infers.batch import BatchInfer  # noqa: E402
from monailabel_app.lib.infers.bundle import BundleInfer  # noqa: E402
from monailabel_app.lib.models import find_source  # noqa: E402
from monailabel_app.lib.server.guard import Guard  # noqa: E402
from monailabel_app.lib.server.open import open_app  # noqa: E402
from monailabel_app.lib.trainers.bundle import BundleTrain  # noqa: E402
from monailabel_app.lib.versions import Versions  # noqa: E402

logger = logging.getLogger(__name__)


class NNYApp(MONAILabelApp):
    """Segments the images of a study folder, and learns from the labels that clients submit.

    Args:
        app_dir: folder of this file.
        studies: folder of NIfTI files.
        conf: ``--conf <key> <value>`` of the command line; `lib.conf.CONF` says which keys there are.

    Raises:
        ValueError: an unknown key, or a bundle or table that cannot be used.
        FileNotFoundError: no such bundle or table.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.options = read_conf(conf, studies)
        self._infers: dict[str, BundleInfer] = {}  # the datastore, made first, asks for their labels
        settings.MONAI_LABEL_AUTO_UPDATE_SCORING = False  # one process for each next sample
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="nny-net",
            description="Segmentation of scans with clinical data",
        )

    @property
    def serves_dicom(self) -> bool:
        """Whether the studies are a DICOM archive, not files."""
        return self.studies.startswith(("http://", "https://"))

    @property
    def trainers(self) -> dict[str, BundleTrain]:
        """The training tasks by the model's name."""
        return self._trainers

    def init_datastore(self) -> Datastore:
        """The folder of the studies, or the DICOM archive."""
        if self.serves_dicom:
            return open_studies(
                self.studies,
                Path(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or self.options.output / "studies"),
                values=self.label_values,
                replaced=self.options.output / "replaced",
                origin=self.label_origin,
            )
        return StudyFolder(
            self.studies,
            values=self.label_values,
            replaced=self.options.output / "replaced",
            watch=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """One task a model."""
        tasks = {}
        for name, text in self.options.models.items():
            source = find_source(name, text, self.options.output / "bundles")
            versions = Versions(self.options.output / "models" / name, source)
            tasks[name] = BundleInfer(versions=versions, clinical=self.options.clinical)
        if any(task.labels != next(iter(tasks.values())).labels for task in tasks.values()):
            found = ", ".join(f"{name} has {task.labels}" for name, task in tasks.items())
            raise ValueError(
                f"Models train on every label of the studies, but these have different ones: {found}. Serve each by "
                "itself, on a folder of studies of its own."
            )
        if self.options.clinical is not None and not any(task.schema for task in tasks.values()):
            table = self.options.clinical
            raise ValueError(f"No network of {', '.join(tasks)} takes clinical variables. Leave out the table {table}.")
        return tasks

    def init_batch_infer(self) -> BatchInfer:
        """Masks of all images."""
        return BatchInfer()

    def init_trainers(self) -> dict[str, TrainTask]:
        """One task a model."""
        return {name: BundleTrain(infer=task, options=self.options) for name, task in self._infers.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies, the one that clients are offered first in front."""
        self.active = ActiveLearning(self)
        return self.active.strategies()

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """What the strategies are fed with."""
        return self.active.scoring_methods()

    def on_init_complete(self) -> None:
        """Before the first request: load what is served, and open the guarded endpoints."""
        self.load()
        open_app(self, Guard(self.options.allow_remote, self.options.names))
        super().on_init_complete()
        self.active.start()

    def load(self) -> None:
        """Load the served version of every model; weights that do not fit end the start."""
        for name, task in self._infers.items():
            if task.is_valid():
                logger.info("%s: version %s", name, task.network().version)

    def on_new_version(self, model: str, version: str) -> None:
        """Another version answers requests from now on; called in the server's process."""
        logger.info("%s: version %s is served", model, version)
        self.active.start()

    def label_values(self) -> dict[str, int]:
        """Value by name of the classes that a label may hold, of all models."""
        return {name: value for task in self._infers.values() for name, value in task.labels.items()}

    def label_origin(self) -> tuple[str, str]:
        """The first model and its served version, from whose masks clients make labels."""
        name, task = next(iter(self._infers.items()))
        return name, task.versions.served

    def infer_task(self, model: str) -> BundleInfer:
        """A model that has weights; HTTPException 404 where there is none of that name, 409 before its training."""
        if model not in self._infers:
            raise HTTPException(404, f"There is no model {model!r}; there are {', '.join(self._infers)}.")
        if not self._infers[model].is_valid():
            raise HTTPException(409, f"{model} has no weights yet: submit labels and train it first.")
        return self._infers[model]

    def train_task(self, model: str) -> BundleTrain:
        """A model that can be trained; HTTPException 404 where there is none of that name."""
        if model not in self._trainers:
            raise HTTPException(404, f"There is no model {model!r}; there are {', '.join(self._trainers)}.")
        return self._trainers[model]

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image.

        Args:
            request: ``model``; ``image``, an id of the datastore or the path of an uploaded file; the client's
                parameters; ``save_label`` and ``label_tag`` to save the mask.
            datastore: other studies than the app's.

        Returns:
            As MONAI Label's: ``file`` and ``params``.
        """
        store = datastore or self.datastore()
        task, image = self.infer_task(request["model"]), request["image"]
        known = image in store.list_images()
        if not known and not Path(image).is_absolute():
            raise HTTPException(404, f"There is no image {image!r} in {self.studies}.")
        if known:
            # a DICOM series is read as `nny infer` reads it
            source = str(store.series(image)) if self.serves_dicom else store.get_image_uri(image)
            located = {"image": source, "image_id": image, "image_info": store.get_image_info(image)}
        file, told = task({**request, **(located if known else {})})
        if not (known and request.get("save_label")):
            return {"label": file, "tag": DefaultLabelTag.ORIGINAL.value, "file": file, "params": told}
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        label = store.save_label(image, file, tag, {"model": request["model"], "params": told})
        return {"label": label, "tag": tag, "file": file, "params": told}

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The image that a client should label next; empty when none is left.

        Raises:
            HTTPException: 404, no such strategy.
        """
        name = request.get("strategy") or next(iter(self._strategies))
        if name not in self._strategies:
            known = ", ".join(self._strategies)
            raise HTTPException(
                404, f"There is no strategy {name!r}{suggestion(name, self._strategies)}; there are {known}."
            )
        found = self._strategies[name](request, self.datastore())
        return {**found, "path": self.datastore().get_image_info(found["id"])["path"]} if found.get("id") else {}

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train a model; MONAI Label calls this in a process of its own."""
        return self.train_task(request["model"])(request, self.datastore())

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """A client submitted a label."""
        logger.info("label of %s saved", image_id)
        return {}
