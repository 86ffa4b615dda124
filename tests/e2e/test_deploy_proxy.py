"""The proxy of deploy/ before a server and Orthanc: who comes in, and what gets through."""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from deploy_support import DEPLOY, DOCKERFILES, values
from scripts.prepare.phantom import write_phantom_cohort

pytestmark = pytest.mark.e2e
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


class Upstream(BaseHTTPRequestHandler):
    """Stands for the annotation server: says what reached it."""

    def do_GET(self):
        body = "\n".join(f"{key}: {value}" for key, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.do_GET()

    def log_message(self, *arguments):
        pass


def free_port():
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port, process):
    for _ in range(200):
        assert process.poll() is None
        with closing(socket.socket()) as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The port of Orthanc with the configuration of the image."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    config = (DEPLOY / "orthanc" / "orthanc.json").read_text()
    config = config.replace("/var/lib/orthanc/db", str(folder)).replace("8042", str(port))
    (folder / "orthanc.json").write_text(config)
    environment = os.environ | {"ORTHANC_PASSWORD": "inner"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], env=environment, stdout=log, stderr=log)
    wait_for(port, process)
    yield port
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The secrets as docs/deploy.md makes them."""
    for tool in ("nginx", "openssl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-keyout", "tls_key", "-out", "tls_certificate", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    made = subprocess.run(["openssl", "passwd", "-6", "outer"], check=True, capture_output=True, text=True)
    (folder / "users").write_text(f"alice:{made.stdout}")
    return folder


@pytest.fixture(scope="module")
def proxy(folder, orthanc):
    """The port of nginx with the configuration of the compose file, whose names are those of this computer."""
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port = free_port()
    text = (DEPLOY / "proxy" / "nginx.conf").read_text()
    here = {
        "/run/secrets/": f"{folder}/",
        "/dev/stdout": f"{folder}/access.log",
        "/tmp/": f"{folder}/tmp_",
        "8443 ssl": f"127.0.0.1:{port} ssl",
        "app:8000": f"127.0.0.1:{upstream.server_port}",
        "orthanc:8042": f"127.0.0.1:{orthanc}",
    }
    assert all(name in text for name in here)
    text = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)
    (folder / "nginx.conf").write_text(text)
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    user = "user root; " if os.geteuid() == 0 else ""  # else its workers could not read the files of the test
    process = subprocess.Popen([*command, "-g", f"{user}daemon off;"], stderr=subprocess.DEVNULL)
    wait_for(port, process)
    yield port
    process.terminate()
    process.wait(timeout=30)
    upstream.shutdown()


def ask(port, path, user=None, method="GET", body=None, tls=None, **headers):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if tls is not None:
        context.minimum_version = context.maximum_version = tls
        context.set_ciphers("ALL:@SECLEVEL=0")
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    if user is not None:
        headers["Authorization"] = "Basic " + b64encode(user.encode()).decode()
    with closing(connection):
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace"), answer.headers


def test_server_is_behind_the_password(proxy):
    for path in ("/", "/info/", "/ohif/", "/proxy/dicom/qido/studies", "/healthz/../info/", "//info/"):
        assert ask(proxy, path)[0] == 401, path
        assert ask(proxy, path, "alice:wrong")[0] == 401, path
    status, seen, headers = ask(proxy, "/info/", "alice:outer")
    assert status == 200
    assert "X-Remote-User: alice" in seen
    assert f"Host: 127.0.0.1:{proxy}" in seen  # the server compares it with Origin
    assert "Authorization" not in seen
    assert headers["Strict-Transport-Security"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_client_cannot_name_itself(proxy):
    _, seen, _ = ask(proxy, "/info/", "alice:outer", **{"X-Remote-User": "root", "X-Forwarded-For": "10.0.0.1"})
    assert "root" not in seen
    assert "10.0.0.1" not in seen


def test_health_needs_no_password_and_says_nothing(proxy):
    assert ask(proxy, "/healthz")[:2] == (200, "ok\n")


def test_large_uploads_pass(proxy):
    assert ask(proxy, "/datastore/label", "alice:outer", "PUT", b"x" * 20_000_000)[0] == 200


def test_old_tls_and_plain_http_are_refused(proxy):
    with pytest.raises(OSError, match="(?i)ssl|alert|protocol"):
        ask(proxy, "/healthz", tls=ssl.TLSVersion.TLSv1_1)
    with closing(http.client.HTTPConnection("127.0.0.1", proxy, timeout=60)) as connection:
        connection.request("GET", "/info/", headers={"Authorization": "Basic " + b64encode(b"alice:outer").decode()})
        assert connection.getresponse().status == 400


def test_orthanc_has_its_own_password(proxy, orthanc):
    path = "/dicom-web/studies"
    assert ask(proxy, path)[0] == 401
    assert ask(proxy, path, "alice:outer")[0] == 401
    assert ask(proxy, path, "nny:${ORTHANC_PASSWORD}")[0] == 401
    assert ask(proxy, path, "nny:inner")[:2] == (200, "[]")
    # nothing else of Orthanc can be reached
    assert ask(proxy, "/dicom-web/../system", "nny:inner")[0] == 401


def test_scans_come_in_as_the_page_says(proxy, orthanc, folder, tmp_path):
    write_phantom_cohort(str(tmp_path / "raw"), cases=1, matrix=32, slices=3, decoys=False, workers=1, progress=False)
    files = sorted(str(path) for path in (tmp_path / "raw").rglob("*.dcm"))
    program = Path(sys.executable).with_name("dicomweb_client")
    command = [str(program), "--url", f"https://localhost:{proxy}/dicom-web", "--user", "nny", "--password", "inner"]
    command += ["--ca", str(folder / "tls_certificate"), "store", "instances", *files]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_CA_BUNDLE")}  # they win over --ca
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, found, _ = ask(proxy, "/dicom-web/instances", "nny:inner", Accept="application/dicom+json")
    assert status == 200
    assert len(json.loads(found)) == len(files) > 3


def test_health_check_of_orthanc(orthanc):
    (check,) = values(DOCKERFILES["orthanc"], "HEALTHCHECK")
    command = json.loads(check.split("CMD", 1)[1])[2]
    assert subprocess.run(["sh", "-c", command.replace("8042", str(orthanc))]).returncode == 0
    assert subprocess.run(["sh", "-c", command.replace("8042", str(free_port()))]).returncode != 0
