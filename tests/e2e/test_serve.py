"""The annotation server as a user starts it: a process that answers requests, and ends when it is told to."""

import base64
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import nibabel as nib
import numpy as np
import pytest
import requests
from app_support import write_run, write_studies
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from scripts import workflows
from server_support import PATIENCE, Server
from support import CONFIGS, ROOT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "cohort")


@pytest.fixture(scope="module")
def run(studies, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", table=studies / "clinical.csv")


@pytest.fixture(scope="module")
def server(run, studies, tmp_path_factory):
    arguments = ["--studies", studies, "--bundle", run, "--clinical", studies / "clinical.csv"]
    server = Server(*arguments, cwd=tmp_path_factory.mktemp("server"))
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def test_info_lists_model_labels_and_images(server):
    info = json.loads(server.get("/info/"))
    assert info["labels"] == ["ball"]
    assert info["models"]["tiny"]["labels"] == {"ball": 1}
    assert info["models"]["tiny"]["type"] == "segmentation"
    assert info["datastore"]["total"] == 3


def test_mask_is_that_of_infer(server, run, studies, tmp_path):
    workflows.infer(str(studies), str(tmp_path), run=str(run), clinical=str(studies / "clinical.csv"))
    for case in ("HCC_001", "HCC_002", "HCC_003"):
        served = tmp_path / f"{case}.nii.gz"
        served.write_bytes(server.get(f"/infer/tiny?image={case}&output=image", "POST"))
        mask, expected = nib.load(served), nib.load(tmp_path / f"{case}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
    result = json.loads(server.get("/infer/tiny?image=HCC_001&output=json", "POST"))
    assert result["label_names"] == {"ball": 1}
    assert result["latencies"]["total"] > 0


def test_unknown_image_is_not_found(server):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/infer/tiny?image=HCC_999", "POST")


def test_other_addresses_and_pages_are_refused(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        server.get("/info/", origin="http://elsewhere")


@pytest.fixture(scope="module")
def realm():
    """The key of a stand-in for Keycloak that tells its public half, and the realm's address."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = base64.b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"public_key": public}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield key, f"http://127.0.0.1:{server.server_port}/realms/monailabel"
    server.shutdown()


def test_monai_labels_authentication(realm, run, studies, tmp_path, monkeypatch):
    """Nothing without a token, nor with one of somebody else; with one, what its role allows."""
    key, address = realm
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    monkeypatch.setenv("MONAI_LABEL_AUTH_REALM_URI", address)
    server = Server("--studies", studies, "--bundle", run, "--output", tmp_path / "out", cwd=tmp_path)

    def ask(method, path, signed_by=None, role="monailabel-user"):
        said = {"preferred_username": "ann", "exp": time.time() + 300, "realm_access": {"roles": [role]}}
        headers = {"Authorization": f"Bearer {jwt.encode(said, signed_by, 'RS256')}"} if signed_by else {}
        return requests.request(method, server.address + path, headers=headers, timeout=PATIENCE).status_code

    try:
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        asked = [
            ("GET", "/info/"),
            ("GET", "/datastore/?output=all"),
            ("POST", "/infer/tiny?image=HCC_001&output=json"),
        ]
        for method, path in [*asked, ("POST", "/activelearning/first"), ("POST", "/train/tiny"), ("GET", "/logs/")]:
            assert ask(method, path) == 401, path
            assert ask(method, path, stranger) == 401, path
        for method, path in asked:
            assert ask(method, path, key) == 200, path
        assert ask("POST", "/train/tiny", key) == 403
        assert ask("POST", "/train/tiny", key, "monailabel-admin") == 400  # no labels to train on
    finally:
        server.stop()


def test_taken_port_is_refused_at_once(server, tmp_path):
    port = urllib.parse.urlsplit(server.address).port
    done = subprocess.run(
        [str(ROOT / "nny"), "serve", "--port", str(port)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"nny: Cannot listen on 127.0.0.1, port {port}")


def test_server_stops_when_told(server):  # the last test of the fixture
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Stopped." in log
    assert "Traceback" not in log
    assert not (ROOT / "monailabel_app" / "logs").exists()


def test_without_studies_phantoms_are_served(tmp_path):
    run = write_run(tmp_path / "image_only", CONFIGS / "fusion_none.yaml")
    server = Server("--bundle", run, cwd=tmp_path)
    try:
        assert json.loads(server.get("/info/"))["datastore"]["total"] == 4
        assert (tmp_path / "work" / "serve" / "phantoms" / "clinical.csv").is_file()
    finally:
        server.stop(signal.SIGTERM)


def test_monai_label_starts_the_app_itself_and_refuses_an_unknown_conf_key(studies, tmp_path):
    app = tmp_path / "app"  # MONAI Label makes folders in the app's own folder
    app.mkdir()
    (app / "main.py").symlink_to(ROOT / "monailabel_app" / "main.py")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies / "imagesTr"), "--host", "127.0.0.1", "--port", "0", "--conf", "rum", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert "no --conf rum. There are bundle: " in done.stdout + done.stderr


def test_help_teaches(tmp_path):
    done = subprocess.run([str(ROOT / "nny"), "serve", "--help"], cwd=tmp_path, capture_output=True, text=True)
    for word in ("--studies", "--bundle", "--clinical", "--host", "--port", "--allow_remote", "synthetic patients"):
        assert word in done.stdout + done.stderr
