"""No parameter of any request leads out of the studies: every one that there is, with paths of several kinds."""

import json
from urllib.parse import quote

import numpy as np
import pytest
from app_support import client, write_run
from support import ball_dataset, write_nifti

from monailabel_app.lib.server.routes import MODULES

PATHS = (
    "../../outside/secret.nii.gz",
    "{outside}/secret.nii.gz",
    "{outside}/secret",
    "..\\secret",
    "file://{outside}",
    "",
)
GOOD = {"model": "tiny", "image": "ball_00", "label": "ball_00", "id": "ball_00", "tag": "final", "strategy": "random"}
GOOD |= {"method": "uncertainty", "session_id": "", "output": "json", "path": "studies"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def outside(folder):
    """What must neither be read nor changed: an image, with a label where a datastore would look for one."""
    rng = np.random.default_rng(0)
    for name in ("secret.nii.gz", "labels/final/secret.nii.gz"):
        write_nifti(folder / "outside" / name, rng.random((8, 8, 8), np.float32))
    return folder / "outside"


@pytest.fixture(scope="module")
def server(folder, outside):
    studies = ball_dataset(folder / "balls", 2)
    run = write_run(folder / "tiny", table=studies / "clinical.csv")
    with client(studies / "imagesTr", folder, bundle=run, clinical=studies / "clinical.csv") as made:
        yield made


def files(folder):
    """Every file that there is, with its content; the app's own folders apart."""
    own = ("imagesTr", "sessions", "out")
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in found if not any(part in own for part in path.parts)}


def routes():
    """Every method of every endpoint that MONAI Label has."""
    return [(method, route) for module in MODULES for route in module.router.routes for method in sorted(route.methods)]


def names(route, kind):
    return [field.name for field in getattr(route.dependant, f"{kind}_params")]


def ask(server, verb, route, content, changed):
    """A request whose parameters are fine but for those that are changed."""
    values = GOOD | changed
    path = route.path.replace(":path", "")
    for name in names(route, "path"):
        path = path.replace(f"{{{name}}}", quote(str(values[name]), safe=""))
    query = {name: values[name] for name in names(route, "query") if name in values}
    body = names(route, "body")
    uploads = [(name, ("scan.nii.gz", content)) for name in body if name in ("file", "label", "files")]
    given = {"files": uploads} if uploads and not route.path.startswith("/infer") else {}
    return server.request(verb, path, params=query, **given)


@pytest.mark.parametrize("template", PATHS)
def test_every_parameter_of_the_address(server, folder, outside, template):
    evil = template.format(outside=outside)
    before, image, tried = files(folder), (outside / "secret.nii.gz").read_bytes(), 0
    for method, route in routes():
        query = {*names(route, "query")} & GOOD.keys() - {"output"}
        for name in query | ({*names(route, "path")} & GOOD.keys() if evil else set()):
            if not evil and (name in ("image", "session_id") or method == "DELETE"):
                continue  # none given: an upload, no session
            answer = ask(server, method, route, image, {name: evil})
            nothing = answer.content == b"{}"  # what is known of a label that is not there
            refused = answer.status_code in (400, 403, 404, 405, 422)
            assert refused or nothing, (method, route.path, name, answer.text)
            assert image not in answer.content
            tried += 1
    assert tried > 30 or not evil
    assert files(folder) == before


def test_every_parameter_in_a_body(server, folder, outside):
    """Known ones and unknown ones, as a value and inside a list; each is refused before anything runs."""
    before = files(folder)
    info = server.get("/info/").json()
    known = [*info["models"]["tiny"]["config"], "image", "model", "label_tag", "result_extension", "model_filename"]
    for template in PATHS[:-1]:
        evil = template.format(outside=outside)
        for name in known:
            for value in (evil, [evil]):
                params = {"params": json.dumps({name: value})}
                answer = server.post("/infer/tiny?image=ball_00", data=params)
                assert answer.status_code == 400, (name, value, answer.text)
        for name in (*info["trainers"]["tiny"]["config"], "run_id", "model_filename", "dataset"):
            assert server.post("/train/tiny", json={name: evil}).status_code == 400, name
        for name in ("label_tag", "labels", "strategy", "model_path", "anything"):
            assert server.post("/activelearning/random", json={name: evil}).status_code == 400, name
            assert server.post("/scoring/uncertainty", json={name: evil}).status_code == 400, name
        for name in ("label_tag", "image", "images", "max_batch_size"):
            answer = server.post("/batch/infer/tiny", json={name: evil})
            assert answer.status_code == 400, (name, answer.text)
    assert files(folder) == before


@pytest.mark.parametrize("name", ["../../outside/new.nii.gz", "..\\new.nii.gz", "/outside/new.nii.gz"])
def test_names_of_uploaded_files(server, folder, outside, name):
    before, image = files(folder), (outside / "secret.nii.gz").read_bytes()
    server.put("/datastore/image", files={"file": (name, image)})
    server.put("/session/", files=[("files", (name, image))])
    server.put("/datastore/label?image=ball_00&tag=final", files={"label": (name, image)})
    server.post("/infer/tiny", files={"file": (name, image)})
    assert files(folder) == before
    listed = server.get("/datastore/?output=all").json()["objects"]
    assert {key.split(".")[0] for key in listed} <= {"ball_00", "ball_01", "new"}
