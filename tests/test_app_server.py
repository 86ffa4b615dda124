"""The app's endpoints on MONAI Label's real server: what each answer says, and to whom."""

import gzip
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from client_support import ball, ball_server, infer, refused, submit
from fastapi.testclient import TestClient
from support import ball_dataset


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"), 4)


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    with ball_server(studies, tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def nobody_labels(server):
    """No image is with anyone, neither before the test nor after it."""
    from monailabel.interfaces.utils.app import app_instance

    leases = app_instance().active.chooser._leases
    leases.drop(list(leases.held()))
    yield
    leases.drop(list(leases.held()))


class TestAnswers:
    def test_info(self, server):
        info = server.get("/info/").json()
        assert list(info["models"]) == ["tiny"]  # the other one has no weights yet
        assert list(info["trainers"]) == ["tiny", "fresh"]
        assert info["train_stats"]["tiny"]["state"] == "not started"

    def test_json_and_file(self, server):
        told = infer(server, {"clinical.age": "66"}, output="json").json()
        assert told["label_names"] == {"ball": 1}
        assert told["clinical"]["overrides"] == {"age": "66"}
        assert 0 <= told["uncertainty"] <= 1
        answer = infer(server, output="image")
        assert answer.headers["content-disposition"].endswith('.nii.gz"')
        assert nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).shape == (24, 24, 24)

    def test_uploaded_image(self, server, studies, tmp_path):
        content = (studies / "imagesTr" / "ball_01.nii.gz").read_bytes()
        answer = server.post("/infer/tiny", params={"output": "image"}, files={"file": ("scan.nii.gz", content)})
        stored = infer(server, image="ball_01", output="image", params={"clinical": {"age": "unknown"}})
        assert answer.status_code == stored.status_code == 200

    def test_session_of_one_image(self, server, studies):
        content = (studies / "imagesTr" / "ball_01.nii.gz").read_bytes()
        made = server.put("/session/", files=[("files", ("scan.nii.gz", content))]).json()
        answer = infer(server, image="", session_id=made["session_id"], output="json")
        assert answer.json()["clinical"]["source"] == "none"
        assert server.delete(f"/session/{made['session_id']}").status_code == 200

    def test_label_there_and_back(self, server):
        assert submit(server, ball()).json() == {"image": "ball_00", "label": "ball_00"}
        answer = server.get("/datastore/label", params={"label": "ball_00", "tag": "final"})
        voxels = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        np.testing.assert_array_equal(np.asarray(voxels.dataobj), ball())
        assert server.get("/info/").json()["datastore"]["completed"] == 1

    def test_requests_at_the_same_time_do_not_mix(self, server):
        ages = ["51", "60", "72", "88"]
        alone = {age: infer(server, {"clinical.age": age}, output="image").content for age in ages}
        found = {}

        def ask(age):
            found[age] = infer(server, {"clinical.age": age}, output="image").content

        threads = [threading.Thread(target=ask, args=(age,)) for age in ages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({gzip.decompress(content) for content in alone.values()}) > 1
        for age in ages:
            assert gzip.decompress(found[age]) == gzip.decompress(alone[age])


def test_info_answers_while_inference_runs(server, monkeypatch):
    """P: one blocked inference, on MONAI Label's own event loop, would block everything."""
    from scripts.segment import Segmenter

    segment, entered = Segmenter.__call__, threading.Event()

    def slow(self, *given, **named):
        entered.set()
        time.sleep(2)
        return segment(self, *given, **named)

    monkeypatch.setattr(Segmenter, "__call__", slow)
    threads = [threading.Thread(target=infer, args=(server,), kwargs={"output": "json"}) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    begin = time.perf_counter()
    assert server.get("/info/").status_code == 200
    seconds = time.perf_counter() - begin
    for thread in threads:
        thread.join()
    assert seconds < 0.5  # of an inference of 2 s; the real one is timed in tests/e2e


class TestCallers:
    def test_other_computers_are_refused(self, server):
        other = TestClient(server.app, base_url="http://192.168.1.5:8000", client=("192.168.1.7", 50000))
        for answer in (other.get("/info/"), infer(other), submit(other, ball()), other.get("/logs/")):
            refused(answer, 403, "its own computer only", "--allow-remote")

    def test_pages_of_other_sites_are_refused(self, server):
        for origin in ("http://elsewhere.org", "null", "http://127.0.0.1:9"):
            refused(server.get("/info/", headers={"Origin": origin}), 403, "may not use this server")
        assert server.get("/info/", headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200

    def test_foreign_names_are_refused(self, server):
        refused(server.get("/info/", headers={"Host": "rebound.example.org"}), 403, "not called 'rebound.example.org'")

    def test_clients_without_a_name_are_told_apart_by_their_address(self, server, nobody_labels):
        """Two 3D Slicers as they are installed, on two computers: no image goes to both, as long as it takes."""
        other = TestClient(server.app, base_url="http://127.0.0.1:8000", client=("127.0.0.2", 50000))
        given = {"here": [], "there": []}
        for _ in range(4):
            for name, computer in (("here", server), ("there", other)):
                answer = computer.post("/activelearning/first", json={"client_id": "user-xyz"}).json()
                given[name].append(answer.get("id"))
        assert {*given["here"]} - {None}
        assert {*given["there"]} - {None}
        assert not {*given["here"]} & {*given["there"]} - {None}
