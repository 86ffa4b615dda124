"""A model of the bundle as an inference task of MONAI Label: always the version that is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from scripts.clinical_schema import ClinicalSchema
from scripts.datalists import case_name

from monailabel_app.lib.infers.files import write_volume
from monailabel_app.lib.infers.network import Network
from monailabel_app.lib.models import read_config, takes_clinical
from monailabel_app.lib.patients import PREFIX, UNKNOWN, find_row, patient_of
from monailabel_app.lib.versions import Versions

SERVED = "served"
RESULTS = ("mask", "entropy")


class BundleInfer(InferTask):
    """Segments an image as `nny infer` does.

    A version's configuration is read, and its weights are loaded, once; a request only runs them. When another version
    is served, the next request loads it.

    Args:
        versions: the model's versions.
        clinical: table (xlsx or csv) with the patients' clinical variables; None: nothing is known of any patient.

    Raises:
        FileNotFoundError: a file of the bundle is missing.
        ValueError: a configuration that cannot be read.
    """

    def __init__(self, *, versions: Versions, clinical: Path | None = None) -> None:
        self.versions, self.clinical = versions, clinical
        config = read_config(versions.base, None)
        self.classes: list[str] = list(config.get_parsed_content("labels"))
        self.schema: ClinicalSchema | None = (
            config.get_parsed_content("clinical_schema") if takes_clinical(config) else None
        )
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in enumerate(self.classes) if value > 0},
            dimension=config.get_parsed_content("spatial_dims"),
            description=f"{versions.base.weights or 'no weights yet'}",
        )
        self._loaded: dict[str, Network] = {}
        self._stamp: tuple[int, int] | None = None
        self._served = ""
        self._lock = threading.Lock()

    def is_valid(self) -> bool:
        """Whether there are weights: a network that was never trained is not offered to clients."""
        return bool(self.versions.known())

    def get_path(self, validate: bool = True) -> str | None:
        """Path of the weights that are served."""
        served = self.versions.served
        return str(self.versions.source(served).weights) if served in self.versions.known() else None

    def info(self) -> dict[str, Any]:
        """What clients are told, with the version that is served."""
        return super().info() | {"version": self.versions.served, "versions": self.versions.known()}

    def config(self) -> dict[str, Any]:
        """The parameters of a request that clients show as options, with their defaults."""
        options: dict[str, Any] = {"version": [SERVED, *reversed(self.versions.known())], "result": list(RESULTS)}
        for column in self.schema.columns if self.schema else ():
            choices = ["", *column.categories, UNKNOWN] if column.categories else ""
            options[f"{PREFIX}{column.name}"] = choices
        return options

    def network(self, version: str = SERVED) -> Network:
        """A version, loaded.

        Args:
            version: its number, or ``served``.

        Raises:
            ValueError: no such version, or weights of another network.
        """
        with self._lock:
            stamp = self.versions.stamp
            if stamp != self._stamp:
                self._stamp, self._served = stamp, self.versions.served
            number = self._served if version == SERVED else version
            if number not in self._loaded:
                loaded = Network(self.versions.source(number), number, self.clinical)
                kept = {name: old for name, old in self._loaded.items() if name == self._served}
                self._loaded = kept | {number: loaded}  # the served one and the one asked for last
            return self._loaded[number]

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment one image.

        Args:
            request: ``image``, the path of the image; ``image_id`` and ``image_info``, the datastore's id of it and
                what it knows of it; ``version``, ``result``, ``clinical`` and ``clinical.<column>`` as documented
                for clients; ``result_extension`` and ``result_dtype`` for the file.

        Returns:
            Path of the mask, in the geometry of the image and by default as NIfTI of uint8 (or of the entropy,
            float32), and what clients are told: ``label_names`` (name to value), ``model``, ``version``,
            ``uncertainty``, ``clinical`` and ``latencies`` (seconds).

        Raises:
            FileNotFoundError: no image there.
            ValueError: several images there, or a parameter that is refused.
        """
        begin = time.perf_counter()
        network = self.network(first(request.get("version")) or SERVED)
        result = first(request.get("result")) or RESULTS[0]
        image_id = request.get("image_id") or Path(request["image"]).name
        patient = patient_of(case_name(image_id), request.get("image_info") or {}, network.patients)
        row = find_row(network.table, patient, request)
        found = network.segmenter(request["image"], clinical=row.values, uncertainty=result == "entropy")
        segmented = time.perf_counter()
        if result == "entropy":
            file = write_volume(found.uncertainty, found.affine, {**request, "result_dtype": "float32"})
        else:
            file = write_volume(found.mask, found.affine, request)
        end = time.perf_counter()
        times = {"infer": segmented - begin, "write": end - segmented, "total": end - begin}
        return file, {
            "label_names": self.labels,
            "model": self.versions.base.name,
            "version": network.version,
            "result": result,
            "uncertainty": round(found.uncertainty_score, 5),
            "clinical": row.told,
            "latencies": {name: round(seconds, 3) for name, seconds in times.items()},
        }


def first(value: Any) -> str:
    """A parameter as text; clients send the whole list of choices when the user chose none."""
    return str(value[0] if isinstance(value, list) and value else value or "")
