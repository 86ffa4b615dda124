"""Reads what clients send: known parameters only, and images of the studies only."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import DefaultLabelTag
from scripts.clinical_schema import suggestion
from scripts.datalists import NIFTI

from monailabel_app.lib.datastore.labels import check_id
from monailabel_app.lib.datastore.local import check_tag
from monailabel_app.lib.infers.batch import LIMIT
from monailabel_app.lib.infers.bundle import RESULTS, first
from monailabel_app.lib.infers.files import DTYPES, EXTENSIONS
from monailabel_app.lib.patients import PREFIX

# what MONAI Label's clients send with every inference, and what has no meaning for a network that sees the image alone
SENT_BY_CLIENTS = {
    "client_id",
    "device",
    "label",
    "label_info",
    "logging",
    "reset_state",
    "result_compress",
    "restore_label_idx",
    "session_id",
    "slice",
}
OF_THE_FILE = {"result_extension", "result_dtype"}
BATCH = {"label_tag", "max_batch_size"}
BATCH_SENT = {"device", "multi_gpu", "gpus", "logging", "save_label", "max_workers"}
UPLOADS = (*NIFTI, ".nrrd", ".seg.nrrd", ".mha")


class Checks:
    """Checks of requests, by module and function of MONAI Label's endpoint.

    Args:
        app: gives the running app.
    """

    def __init__(self, app: Callable[[], Any]) -> None:
        self.app = app

    def all(self) -> dict[str, Callable[..., None]]:
        """Name of the endpoint's function -> check."""
        return {
            "infer.api_run_inference": self.inference,
            "batch_infer.api_run": self.batch,
            "activelearning.api_sample": self.scalars,
            "scoring.api_run_method": self.scoring,
            "datastore.api_save_label": self.label,
            "datastore.api_add_image": self.image,
            "session.api_create_session": self.new_session,
            "session.api_get_session": self.session,
            "session.api_remove_session": self.session,
            "datastore.api_get_image_info": self.known,
            "datastore.api_put_image_info": self.info,
            "datastore.api_put_label_info": self.info,
            "datastore.api_update_label_info": self.label_params,
        }

    def inference(
        self, *, model: str, image: str, session_id: str, params: str, file: Any, label: Any, output: Any, **_: Any
    ) -> None:
        """POST /infer/<model>."""
        task = self.app().infer_task(model)
        if label is not None:
            raise ValueError("The network sees the image alone; leave out the file `label`.")
        given = read_json(params)
        options = set(task.config()) | {"clinical"} | OF_THE_FILE | SENT_BY_CLIENTS
        for key in given:
            if key not in options and not key.startswith(PREFIX):
                raise ValueError(
                    f"Inference has no parameter {key!r}{suggestion(key, options)}; there are {sorted(options)}."
                )
        _among(given, "result_extension", EXTENSIONS)
        _among(given, "result_dtype", DTYPES)
        _among({"result": first(given.get("result"))}, "result", RESULTS)
        if output == "dicom_seg" and not self.app().serves_dicom:
            raise ValueError("DICOM SEG comes from DICOM studies only; these are files. Use output=image.")
        if file is not None and file.filename:
            _suffix(file.filename, UPLOADS)
        elif session_id:
            self.session(session_id)
        else:
            self.known(image=image)

    def known(self, *, image: str, **_: Any) -> None:
        """GET /datastore/image/info, and what names an image."""
        if image not in self.app().datastore().list_images():
            raise HTTPException(404, f"There is no image {image!r} in {self.app().studies}.")

    def batch(self, *, model: str = "", params: Any = None, run_sync: bool = False, **_: Any) -> None:
        """POST /batch/infer/<model>."""
        self.app().infer_task(model)
        _known(params, BATCH | BATCH_SENT, "Batch inference")
        tag = (params or {}).get("label_tag")
        if tag and check_tag(tag) != DefaultLabelTag.ORIGINAL.value:
            raise ValueError(
                f"label_tag is {tag!r}, but masks that nobody corrected are no labels to train on or to judge by; "
                f"expected {DefaultLabelTag.ORIGINAL.value!r}."
            )
        limit = (params or {}).get(LIMIT) or 0
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"{LIMIT} is {limit!r}; expected a whole number of images, 0 for all.")

    def scalars(self, *, params: Any = None, **_: Any) -> None:
        """POST /activelearning/<strategy>: plain values, none of which names a file."""
        for key, value in (params or {}).items():
            if not isinstance(value, str | int | float | bool | None) or key in ("strategy", "method", "model_path"):
                raise ValueError(
                    f"{key} is {value!r}; expected one plain value, and no {key!r} other than in the path."
                )
            if isinstance(value, str) and ("/" in value or "\\" in value):
                raise ValueError(f"{key} is {value!r}; paths are not taken.")

    def scoring(self, *, method: str, params: Any = None, **_: Any) -> None:
        """POST /scoring/<method>."""
        methods = list(self.app().info()["scoring"])
        if method not in methods:
            raise HTTPException(404, f"There is no scoring method {method!r}; there are {', '.join(methods)}.")
        self.scalars(params=params)

    def label(self, *, params: str, tag: str, label: Any, **_: Any) -> None:
        """PUT /datastore/label."""
        check_tag(tag or "final")
        read_json(params)
        _suffix(label.filename or "", UPLOADS)

    def image(self, *, image: str | None, params: str, file: Any, **_: Any) -> None:
        """PUT /datastore/image."""
        if image:
            check_id(image, "The image's id")
        read_json(params)
        _suffix(file.filename or "", NIFTI)

    def info(self, *, info: str, **_: Any) -> None:
        """PUT /datastore/image/info and /datastore/label/info."""
        read_json(info)

    def label_params(self, *, params: str, **_: Any) -> None:
        """PUT /datastore/updatelabelinfo."""
        read_json(params)

    def session(self, session_id: str, **_: Any) -> None:
        """GET and DELETE /session/<id>."""
        try:
            uuid.UUID(session_id)
        except ValueError:
            raise HTTPException(404, f"There is no session {session_id!r}.") from None

    def new_session(self, *, uncompress: bool, files: list[Any], **_: Any) -> None:
        """PUT /session: one image; nothing is unpacked on the server."""
        if uncompress or len(files) != 1:
            raise ValueError("A session takes one image file, as it is: no archive, no list of files.")
        name = files[0].filename or ""
        _suffix(name, UPLOADS)
        check_id(Path(name).name, "The file's name")


def read_json(text: str | None) -> dict[str, Any]:
    """Read a JSON object; ValueError for anything else."""
    try:
        content = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"The parameters are no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"The parameters are {content!r}; expected a JSON object.")
    return content


def _known(params: Mapping[str, Any] | None, known: set[str], what: str) -> None:
    for key in params or {}:
        if key not in known:
            raise ValueError(f"{what} has no parameter {key!r}{suggestion(key, known)}; there are {sorted(known)}.")


def _among(given: Mapping[str, Any], key: str, values: tuple[str, ...]) -> None:
    if given.get(key) and given[key] not in values:
        raise ValueError(f"{key} is {given[key]!r}; expected one of {', '.join(values)}.")


def _suffix(name: str, suffixes: tuple[str, ...]) -> None:
    if not name.endswith(suffixes):
        raise ValueError(f"The file is named {name!r}; expected a name that ends in {', '.join(suffixes)}.")
