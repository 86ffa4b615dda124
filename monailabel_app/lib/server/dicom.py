"""The endpoints of a DICOM archive: OHIF's way to the scans, and masks as DICOM segmentations."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio.from_thread
import nibabel as nib
import numpy as np
import requests
from fastapi import BackgroundTasks, HTTPException, Request
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.infer import api_run_inference
from monailabel.endpoints.ohif import get_ohif
from monailabel.utils.others.generic import remove_file

from monailabel_app.lib.server.requests import read_json

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]{0,127}")
ROOTS = ("studies", "series", "instances")
STORE = re.compile(r"studies(/[0-9.]+)?")
PASSED = ("accept", "content-type")  # headers; neither cookies nor passwords of the client's
TIMEOUT = (5.0, 120.0)  # seconds to connect, and between two pieces of an answer


def dicom_endpoints(app: Any) -> dict[str, Callable[..., Any]]:
    """By name of MONAI Label's endpoint, what is called in its place when the studies are DICOM."""
    proxied = {f"proxy.proxy_{kind}": partial(proxy, app, kind) for kind in ("wado", "qido", "stow")}
    return {**proxied, "proxy.proxy": partial(proxy, app, ""), "infer.api_run_inference": partial(infer, app)}


def proxy(app: Any, kind: str, *, request: Request, path: str, **_: Any) -> Response:
    """GET and POST /proxy/dicom/...: DICOMweb of the archive, with the archive's password, and nothing else of it.

    Raises:
        HTTPException: 404 for what is not DICOMweb, 502 when the archive does not answer.
    """
    address = f"{app.studies.rstrip('/')}/{_prefix(kind, path)}{_checked(path, request.method)}"
    if request.url.query:  # as it came: archives differ in what they decode
        address += f"?{request.url.query}"
    login = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
    headers = {key: value for key, value in request.headers.items() if key.lower() in PASSED}
    try:
        answer = requests.request(
            request.method,
            address,
            data=anyio.from_thread.run(request.body) if request.method == "POST" else None,
            headers=headers,
            auth=login if all(login) else None,
            timeout=TIMEOUT,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        raise HTTPException(502, f"The DICOM archive does not answer: {error}") from error
    if request.method == "POST" and answer.ok:
        app.datastore().look_again()
    content, kind_of = answer.content, answer.headers.get("content-type", "application/octet-stream")
    if "json" in kind_of:  # what it says of itself would lead past this server
        content = content.replace(app.studies.rstrip("/").encode(), f"{_own(request)}/proxy/dicom/wado".encode())
    return Response(content, status_code=answer.status_code, headers={"content-type": kind_of})


def infer(
    app: Any,
    *,
    model: str,
    image: str,
    params: str,
    output: Any,
    background_tasks: BackgroundTasks,
    caller: str = "",
    **others: Any,
) -> Any:
    """POST /infer/<model>; with ``output=dicom_seg`` the mask is a DICOM segmentation, which is not stored."""
    if output != "dicom_seg":
        given = {"model": model, "image": image, "params": params, "output": output, **others}
        return asyncio.run(api_run_inference(background_tasks=background_tasks, **given))
    request = {**read_json(params), "result": "mask", "result_extension": ".nii.gz", "result_dtype": "uint8"}
    found = app.infer({**request, "model": model, "image": image})
    try:
        mask = np.asanyarray(nib.load(found["file"]).dataobj)
        seg = app.datastore().encode(image, mask, {"model": model, "params": found["params"]}, corrected=False)
    finally:
        remove_file(found["file"])
    handle, file = tempfile.mkstemp(suffix=".dcm")
    os.close(handle)
    background_tasks.add_task(remove_file, file)  # before it is written, which a full disk ends
    seg.save_as(file, write_like_original=False)
    return FileResponse(file, media_type="application/dicom", filename=f"{model}_{image}.dcm")


async def viewer(request: Request, path: str) -> FileResponse:
    """GET /ohif/...: OHIF, told by a cookie where its server is: it would look on port 8000, without TLS."""
    answer = get_ohif(path)
    answer.headers.append(
        "set-cookie", f"MONAILABEL_SERVER_URL={quote(_own(request), safe='')}%2F; Path=/ohif; SameSite=Strict"
    )
    return answer


def _own(request: Request) -> str:
    """This server's address as the client knows it, also behind a proxy that adds TLS."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return f"{'https' if scheme == 'https' else 'http'}://{request.headers['host']}"


def _checked(path: str, method: str) -> str:
    parts = path.strip("/").split("/")
    if parts[0] not in ROOTS or not all(PART.fullmatch(part) and ".." not in part for part in parts):
        raise HTTPException(404, f"{path} is not DICOMweb; expected {', '.join(ROOTS)} and what is below.")
    if method == "POST" and not STORE.fullmatch("/".join(parts)):
        raise HTTPException(404, f"Nothing is stored at {path}; expected studies.")
    return "/".join(parts)


def _prefix(kind: str, path: str) -> str:
    prefixes: Mapping[str, str | None] = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    if kind == "qido" and path.endswith("metadata"):  # OHIF asks the wrong one
        kind = "wado"
    found = prefixes.get(kind)
    return f"{found}/" if found else ""
