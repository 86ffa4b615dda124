"""Opens the app's endpoints on MONAI Label's server, whoever started it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from monailabel_app.lib.server.dicom import dicom_endpoints, viewer
from monailabel_app.lib.server.guard import Guard
from monailabel_app.lib.server.mended import mend_tokens, mend_uploads
from monailabel_app.lib.server.requests import Checks
from monailabel_app.lib.server.routes import front, put_in_front
from monailabel_app.lib.server.training import Training

SLIDES = "This server segments volumes, not slides."
MODELS = "Versions come from training alone. Give another network by --conf bundle."
CLOSED = {
    "wsi_infer.api_run_wsi_v2_inference": SLIDES,
    "wsi_infer.api_run_wsi_inference": SLIDES,
    "model.api_update_model": MODELS,
    "model.api_delete_model": "Versions are kept. `nny versions` chooses which one is served.",
    "scoring.api_run": "Name the method: POST /scoring/uncertainty.",
    "datastore.api_download_dataset": "The studies do not leave as an archive. Copy their folder.",
}
PROXY = "The studies are files; there is no DICOM server behind this one."


def open_app(app: Any, guard: Guard) -> None:
    """Put the app's endpoints before MONAI Label's; called when the server starts, before the first request.

    Args:
        app: the running app.
        guard: asked before every endpoint.
    """
    from monailabel.app import app as server  # it reads the settings when it is imported

    # read already; MONAI Label's own processes (scoring, batch inference) cannot print it and would end at once
    os.environ.pop("MONAI_LABEL_CORS_ORIGINS", None)
    closed = dict(CLOSED)
    if not app.serves_dicom:
        closed |= {f"proxy.{name}": PROXY for name in ("proxy_wado", "proxy_qido", "proxy_stow", "proxy")}
    checks, training = Checks(lambda: app), Training(lambda: app)
    replaced = {**training.all(), "activelearning.api_sample": partial(next_sample, app)}
    if app.serves_dicom:
        replaced |= dicom_endpoints(app)
    mend_uploads()
    mend_tokens()
    router = front(checks.all(), replaced, closed, guard)
    if app.serves_dicom:
        router.add_api_route("/ohif/{path:path}", viewer, include_in_schema=False)
    put_in_front(server, router)


def next_sample(
    app: Any, *, strategy: str, params: Mapping[str, Any] | None, user: Any, caller: str, **_: Any
) -> dict[str, Any]:
    """POST /activelearning/<strategy>: the next image, and what is known of it.

    MONAI Label's own also rewrites the index of all images each time, which is slow when there are many. A client is
    told from others by its name and its address: every 3D Slicer calls itself user-xyz until somebody renames it.
    """
    name = (params or {}).get("client_id") or user.username
    found = app.next_sample({**(params or {}), "strategy": strategy, "client_id": f"{name}@{caller}"})
    return {**found, **app.datastore().get_image_info(found["id"])} if found else {}
