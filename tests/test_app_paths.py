"""No parameter of any request leads out of the studies: every one that there is, with paths of several kinds.

The same requests with what is allowed succeed, so that a refusal is one of the path and of nothing else.
"""

import json
from itertools import count
from urllib.parse import quote

import numpy as np
import pytest
from app_support import client, write_run
from client_support import ball, submit
from support import ball_dataset, write_nifti

from monailabel_app.lib.scoring.background import Background
from monailabel_app.lib.server import training
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
SYNCHRONOUS = ("/batch", "/scoring")  # answered when it is done, and not by a process that would outlive the test
CLOSED = {"api_remove_image", "api_update_model", "api_delete_model", "api_run_wsi_inference"}
CLOSED |= {"api_run_wsi_v2_inference", "proxy", "proxy_wado", "proxy_qido", "proxy_stow"}
NEW = (f"new_{number}" for number in count())  # images that are added


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
def label(folder):
    return write_nifti(folder / "label.nii.gz", ball(), np.diag([-2.0, 2.0, 2.0, 1.0])).read_bytes()


@pytest.fixture(scope="module")
def server(folder, outside):
    studies = ball_dataset(folder / "balls", 2)
    run = write_run(folder / "tiny", table=studies / "clinical.csv")
    with client(studies / "imagesTr", folder, bundle=run, clinical=studies / "clinical.csv") as made:
        for name in ("ball_00", "ball_01"):  # so that a training could start
            assert submit(made, ball(), image=name).status_code == 200
        yield made


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch):
    """What a request starts in the background is left out."""
    monkeypatch.setattr(training, "submit", lambda request, ended: {"request": request})
    monkeypatch.setattr(Background, "run", lambda self: self.status())


def files(folder):
    """Every file that there is, with its content; the app's own folders apart."""
    own = ("imagesTr", "sessions", "out")
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in found if not any(part in own for part in path.parts)}


def images(server):
    return set(server.get("/datastore/?output=all").json()["objects"])


def routes():
    """Every method of every endpoint that MONAI Label has."""
    return [(method, route) for module in MODULES for route in module.router.routes for method in sorted(route.methods)]


def names(route, kind):
    """The parameters of a kind; `image` of a session is a switch."""
    switches = {"image"} if route.path.startswith("/session") else set()
    return [field.name for field in getattr(route.dependant, f"{kind}_params") if field.name not in switches]


def asked(route, evil=True):
    """The parameters of the address that are tried, and those that cannot be empty."""
    found = {*names(route, "query")} & GOOD.keys() - {"output"}
    return sorted(found | ({*names(route, "path")} & GOOD.keys() if evil else set()))


def ask(server, verb, route, image, label, changed):
    """A request whose parameters are fine but for those that are changed."""
    values = GOOD | ({"image": next(NEW)} if route.endpoint.__name__ == "api_add_image" else {}) | changed
    path = route.path.replace(":path", "")
    for name in names(route, "path"):
        path = path.replace(f"{{{name}}}", quote(str(values[name]), safe=""))
    query = {name: values[name] for name in names(route, "query") if name in values}
    if route.path.startswith(SYNCHRONOUS) and "run_sync" in names(route, "query"):
        query["run_sync"] = True
    uploads = {"file": image, "files": image, "label": label}
    given = [(name, ("scan.nii.gz", uploads[name])) for name in names(route, "body") if name in uploads]
    return server.request(verb, path, params=query, **({"files": given} if not route.path.startswith("/infer") else {}))


def session(server, image):
    return server.put("/session/", files=[("files", ("scan.nii.gz", image))]).json()["session_id"]


def test_what_is_allowed_succeeds(server, outside, label):
    """Every request of the next test, with nothing evil in it; what is closed is closed for that too."""
    image = (outside / "secret.nii.gz").read_bytes()
    for method, route in routes():
        if not asked(route):
            continue
        changed = {"session_id": session(server, image)} if route.path.startswith("/session") else {}
        if route.path == "/infer/{model}":
            changed = {"session_id": session(server, image), "image": ""}
            assert ask(server, method, route, image, label, {}).status_code == 200
        answer = ask(server, method, route, image, label, changed)
        expected = (400, 403) if route.endpoint.__name__ in CLOSED else (200,)
        assert answer.status_code in expected, (method, route.path, answer.text)
        if (method, route.path) == ("DELETE", "/datastore/label"):
            submit(server, ball())


@pytest.mark.parametrize("template", PATHS)
def test_every_parameter_of_the_address(server, folder, outside, label, template):
    evil = template.format(outside=outside)
    before, known, tried = files(folder), images(server), 0
    image = (outside / "secret.nii.gz").read_bytes()
    for method, route in routes():
        for name in asked(route, evil):
            if not evil and (name in ("image", "session_id", "tag") or method == "DELETE"):
                continue  # none given: an upload, no session, the usual tag
            answer = ask(server, method, route, image, label, {name: evil})
            nothing = answer.content == b"{}"  # what is known of a label that is not there
            refused = answer.status_code in (400, 403, 404, 405)
            assert refused or nothing, (method, route.path, name, answer.text)
            assert image not in answer.content
            tried += 1
    assert tried > 30 or not evil
    assert files(folder) == before
    assert images(server) == known


def test_every_parameter_in_a_body(server, folder, outside):
    """Known ones and unknown ones, as a value and inside a list; each is refused before anything runs."""
    before = files(folder)
    info = server.get("/info/").json()
    options, settings = info["models"]["tiny"]["config"], info["trainers"]["tiny"]["config"]
    good = options | {"clinical.age": "60", "result_extension": ".nii", "client_id": "me"}
    posts = [
        ("/train/tiny", settings, (*settings, "run_id", "model_filename", "dataset")),
        ("/activelearning/random", {"client_id": "me"}, ("label_tag", "labels", "strategy", "model_path", "anything")),
        ("/scoring/uncertainty?run_sync=true", {"note": "x"}, ("label_tag", "strategy", "model_path", "anything")),
        ("/batch/infer/tiny?run_sync=true", {"label_tag": "original"}, ("label_tag", "image", "images")),
    ]
    assert server.post("/infer/tiny?image=ball_00", data={"params": json.dumps(good)}).status_code == 200
    for address, fine, _ in posts:
        answer = server.post(address, json=fine)
        assert answer.status_code == 200, (address, answer.text)
    for template in PATHS[:-1]:
        evil = template.format(outside=outside)
        for name in [*good.keys() - {"client_id"}, "image", "model", "label_tag", "model_filename"]:
            for value in (evil, [evil]):
                params = {"params": json.dumps({name: value})}
                answer = server.post("/infer/tiny?image=ball_00", data=params)
                assert answer.status_code == 400, (name, value, answer.text)
        for address, _, known in posts:
            for name in known:
                answer = server.post(address, json={name: evil})
                assert answer.status_code == 400, (address, name, answer.text)
    assert server.post("/batch/infer/tiny", json={"max_batch_size": evil}).status_code == 400
    assert files(folder) == before


@pytest.mark.parametrize("name", ["../../outside/up.nii.gz", "..\\up.nii.gz", "/outside/up.nii.gz", "up.nii.gz"])
def test_names_of_uploaded_files(server, folder, outside, label, name):
    """What comes before the last part of a name counts for nothing; the plain name does what the others do."""
    before, known, image = files(folder), images(server), (outside / "secret.nii.gz").read_bytes()
    added = server.put("/datastore/image", files={"file": (name, image)}).status_code
    assert added == (400 if "up" in known or "\\" in name else 200)  # images are not replaced
    made = server.put("/session/", files=[("files", (name, image))]).status_code
    assert made == (400 if "\\" in name else 200)
    answer = server.put("/datastore/label?image=ball_00&tag=final", files={"label": (name, label)})
    assert answer.status_code == 200, answer.text
    assert server.post("/infer/tiny", files={"file": (name, image)}).status_code == 200
    assert files(folder) == before
    assert images(server) <= known | {"up"}
