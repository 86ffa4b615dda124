"""OHIF's way to the archive: everything that it asks passes, with the archive's password, and nothing else does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings

from monailabel_app.lib.server import dicom as module
from monailabel_app.lib.server.guard import Guard
from monailabel_app.lib.server.routes import front, put_in_front


class Handler(BaseHTTPRequestHandler):
    """An archive that remembers what it was asked."""

    def do_GET(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def _answer(self, body):
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        content = json.dumps([{"url": f"http://127.0.0.1:{self.server.server_port}/dicom-web/studies/1"}]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/dicom+json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def archive():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def looked():
    return []


@pytest.fixture
def client(archive, looked, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "nny")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
    store = SimpleNamespace(look_again=lambda: looked.append(1))
    app = SimpleNamespace(
        studies=f"http://127.0.0.1:{archive.server_port}/dicom-web", datastore=lambda: store, serves_dicom=True
    )
    server = FastAPI()
    router = front({}, module.dicom_endpoints(app), {}, Guard(False))
    router.add_api_route("/ohif/{path:path}", module.viewer)
    put_in_front(server, router)
    archive.asked.clear()
    return TestClient(server, base_url="http://127.0.0.1:8123", client=("127.0.0.1", 50000))


def test_filters_pass(client, archive):
    """Trap Q: stock MONAI Label drops what is behind the question mark."""
    asked_for = "PatientName=*003*&limit=101&includefield=00081030%2C00080060&includefield=00200010"
    assert client.get(f"/proxy/dicom/qido/studies?{asked_for}").status_code == 200
    _, asked, headers, _ = archive.asked[-1]
    assert asked.startswith("/dicom-web/studies?")
    assert asked.split("?")[1].replace("%2A", "*") == asked_for
    assert headers["Authorization"].startswith("Basic ")


def test_addresses_of_the_archive_become_ours(client):
    answer = client.get("/proxy/dicom/wado/studies/1/metadata")
    assert answer.json() == [{"url": "http://127.0.0.1:8123/proxy/dicom/wado/studies/1"}]


def test_headers_that_are_not_the_archives_stay_here(client, archive):
    client.get("/proxy/dicom/wado/studies/1", headers={"cookie": "a=b", "authorization": "Bearer x", "accept": "a/b"})
    headers = {key.lower(): value for key, value in archive.asked[-1][2].items()}
    assert headers["accept"] == "a/b"
    assert "cookie" not in headers
    assert headers["authorization"].startswith("Basic ")


def test_stored_objects_pass_and_the_archive_is_looked_at(client, archive, looked):
    assert client.post("/proxy/dicom/wado/studies", content=b"abc", headers={"content-type": "x/y"}).status_code == 200
    method, path, headers, body = archive.asked[-1]
    assert (method, path, body) == ("POST", "/dicom-web/studies", b"abc")
    assert looked


@pytest.mark.parametrize(
    "path",
    [
        "system",
        "wado/system",
        "wado/%2e%2e/system",
        "wado/studies/..%2f..%2fsystem",
        "wado/studies/1/%2e%2e/%2e%2e/%2e%2e/tools/shutdown",
        "qido/studies//x",
        "wado/http://elsewhere/studies",
    ],
)
def test_nothing_but_dicomweb_passes(client, archive, path):
    assert client.get(f"/proxy/dicom/{path}").status_code == 404
    assert archive.asked == []


def test_post_to_anything_but_studies_is_refused(client, archive):
    assert client.post("/proxy/dicom/studies/1/series/2", content=b"").status_code == 404
    assert archive.asked == []


def test_archive_that_is_gone_is_a_bad_gateway(client, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr(module.requests, "request", _refuse)
    answer = client.get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "does not answer" in answer.json()["detail"]


def _refuse(*_, timeout, **__):
    assert timeout == (0.2, 0.2)  # trap Q again: a request without one may wait for ever
    raise module.requests.ConnectionError("refused")


def test_other_pages_and_computers_are_refused(client):
    assert client.get("/proxy/dicom/qido/studies", headers={"origin": "http://elsewhere"}).status_code == 403
    assert client.get("/ohif/", headers={"host": "elsewhere:8000"}).status_code == 403


def test_ohif_is_told_where_its_server_is(client):
    """It would look on port 8000, whatever port it comes from."""
    answer = client.get("/ohif/")
    assert answer.status_code == 200
    assert "http%3A%2F%2F127.0.0.1%3A8123%2F;" in answer.headers["set-cookie"]
    behind = client.get("/ohif/", headers={"x-forwarded-proto": "https"})
    assert "https%3A%2F%2F127.0.0.1%3A8123%2F;" in behind.headers["set-cookie"]
