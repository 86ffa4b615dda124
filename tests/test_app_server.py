"""The app's endpoints on MONAI Label's real server: what is let in, what is refused, and what each answer says."""

import gzip
import io
import json
import threading
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest
from app_support import write_run
from fastapi.testclient import TestClient
from support import ROOT, ball_dataset, write_nifti

LOOPBACK = ("127.0.0.1", 50000)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"), 4)


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    """MONAI Label's own application, as `monailabel start_server` runs it, with our app in it."""
    from monailabel.config import settings

    folder = tmp_path_factory.mktemp("server")
    run = write_run(folder / "tiny", table=studies / "clinical.csv")
    settings.MONAI_LABEL_APP_DIR = str(ROOT / "monailabel_app")
    settings.MONAI_LABEL_STUDIES = str(studies / "imagesTr")
    settings.MONAI_LABEL_SESSION_PATH = str(folder / "sessions")
    settings.MONAI_LABEL_APP_CONF = {
        "bundle": f"tiny={run},fresh={ROOT / 'bundle'}+dataset_phantom+network_swin_next_tiny",
        "clinical": str(studies / "clinical.csv"),
        "output": str(folder / "out"),
    }
    from monailabel.app import app
    from monailabel.interfaces.utils.app import clear_cache

    clear_cache()
    with TestClient(app, base_url="http://127.0.0.1:8000", client=LOOPBACK) as client:
        yield client
    clear_cache()


def refused(answer, status, *words):
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["detail"], answer.text


def infer(server, params=None, image="ball_00", model="tiny", **query):
    return server.post(f"/infer/{model}", params={"image": image, **query}, data={"params": json.dumps(params or {})})


def submit(server, voxels, image="ball_00", tag="final", name="label.nii.gz", affine=None, params="{}"):
    content = nib.Nifti1Image(voxels, np.diag([-2.0, 2.0, 2.0, 1.0]) if affine is None else affine).to_bytes()
    name = name.replace(".gz", "")
    files = {"label": (name, content)}
    return server.put("/datastore/label", params={"image": image, "tag": tag}, data={"params": params}, files=files)


def ball(value=1):
    voxels = np.zeros((24, 24, 24), np.uint8)
    voxels[8:16, 8:16, 8:16] = value
    return voxels


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
    """One blocked inference, on MONAI Label's own event loop, would block everything."""
    from monailabel_app.lib.infers.segmenter import Segmenter

    segment, entered = Segmenter.segment, threading.Event()

    def slow(self, *given, **named):
        entered.set()
        time.sleep(2)
        return segment(self, *given, **named)

    monkeypatch.setattr(Segmenter, "segment", slow)
    threads = [threading.Thread(target=infer, args=(server,), kwargs={"output": "json"}) for _ in range(3)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    begin = time.perf_counter()
    assert server.get("/info/").status_code == 200
    seconds = time.perf_counter() - begin
    for thread in threads:
        thread.join()
    assert seconds < 1


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


class TestRequestsThatAreRefused:
    @pytest.mark.parametrize(
        ("params", "word"),
        [
            ({"image": "/etc/passwd"}, "no parameter 'image'"),
            ({"model": "other"}, "no parameter 'model'"),
            ({"model_filename": "../../x.pt"}, "no parameter 'model_filename'"),
            ({"result_extension": "/../../x.nii.gz"}, "expected one of .nii.gz"),
            ({"result_dtype": "object"}, "expected one of uint8"),
            ({"clinical.age": "old"}, "'old'"),
            ({"clinical.aeg": "60"}, "did you mean 'age'"),
            ({"clinical": {"age": 900}}, "expected a number from"),
            ({"version": "9"}, "there are 0"),
            ({"version": "../1"}, "there are 0"),
            ({"result": "logits"}, "expected one of mask, entropy"),
        ],
    )
    def test_inference_parameter(self, server, params, word):
        refused(infer(server, params), 400, word)

    def test_inference(self, server):
        refused(infer(server, image="ball_99"), 404, "no image 'ball_99'")
        for path in ("/etc/hostname", "../imagesTr/ball_00", str(ROOT / "README.md")):
            refused(infer(server, image=path), 404, "no image")
        refused(infer(server, model="other"), 404, "there are tiny, fresh")
        refused(infer(server, model="fresh"), 409, "no weights yet")
        refused(infer(server, output="dicom_seg"), 400, "DICOM studies only")
        refused(server.post("/infer/tiny?image=ball_00", data={"params": "[1]"}), 400, "expected a JSON object")
        refused(server.post("/infer/tiny", files={"file": ("x.py", b"import os")}), 400, "ends in")
        refused(server.post("/infer/tiny", files={"file": ("x.nii.gz", b"no")}), 400, "cannot be read")

    def test_label(self, server):
        before = submit(server, ball())
        assert before.status_code == 200
        refused(submit(server, ball(), tag="../../../out"), 400, "no tag")
        refused(submit(server, ball(), image="../ball_00"), 404, "no image")
        refused(submit(server, ball(), image="ball_99"), 404, "no image 'ball_99'")
        refused(submit(server, ball(5)), 400, "holds 5, which is no class")
        refused(submit(server, ball()[:-1]), 400, "another grid")
        refused(submit(server, ball(), name="label.exe"), 400, "ends in")
        refused(submit(server, ball(), params="{"), 400, "no JSON")
        cut = {"label": ("label.nii.gz", b"\x1f\x8bnothing")}
        refused(server.put("/datastore/label?image=ball_00&tag=final", files=cut), 400, "cannot be read")
        answer = server.get("/datastore/label", params={"label": "ball_00", "tag": "final"})
        voxels = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        np.testing.assert_array_equal(np.asarray(voxels.dataobj), ball())
        assert server.get("/datastore/label?label=../../x&tag=final").status_code == 404
        assert server.get("/datastore/label?label=ball_00&tag=../final").status_code == 404
        assert server.delete("/datastore/label?id=ball_01&tag=final").status_code == 404

    def test_full_disk(self, server, monkeypatch):
        import errno
        import os

        assert submit(server, ball()).status_code == 200

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            refused(submit(server, ball() * 0), 507, "disk is full", "nothing was lost")
        answer = server.get("/datastore/label", params={"label": "ball_00", "tag": "final"})
        assert np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj).any()

    def test_image(self, server, tmp_path):
        content = write_nifti(tmp_path / "x.nii.gz", np.ones((4, 4, 4), np.float32)).read_bytes()
        files = {"file": ("x.nii.gz", content)}
        refused(server.put("/datastore/image?image=../../out", files=files), 400, "not a plain name")
        refused(server.put("/datastore/image?image=ball_00", files=files), 400, "already")
        refused(server.put("/datastore/image", files={"file": ("x.zip", content)}), 400, "ends in")
        refused(server.put("/datastore/image", files={"file": ("y.nii.gz", b"no")}), 400, "cannot be read")
        refused(server.delete("/datastore/image?id=ball_00"), 400, "not removed through the server")
        refused(server.put("/datastore/image/info?image=ball_99", data={"info": "{}"}), 404, "no image")

    def test_archives(self, server):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("../out.txt", "x")
        files = [("files", ("a.zip", archive.getvalue()))]
        refused(server.put("/session/?uncompress=true", files=files), 400, "no archive")
        refused(server.put("/session/", files=files), 400, "ends in")
        refused(server.put("/session/", files=[("files", ("meta.info", b"{}"))]), 400, "ends in")
        refused(server.get("/session/..%2e"), 404, "no session")
        refused(infer(server, image="", session_id="../../x"), 404, "no session")
        refused(server.get("/datastore/dataset"), 403, "Copy their folder")

    def test_models_are_not_replaced_from_outside(self, server):
        refused(server.put("/model/tiny", files={"file": ("model.pt", b"x")}), 403, "from training alone")
        refused(server.delete("/model/tiny"), 403, "nny versions")
        assert server.get("/model/info/tiny").json()["checksum"].startswith("SHA256:")

    def test_what_this_server_is_not(self, server):
        refused(server.get("/proxy/dicom/qido/studies"), 403, "no DICOM server")
        refused(server.post("/proxy/dicom/wado/x"), 403, "no DICOM server")
        refused(server.post("/infer/wsi/tiny?image=ball_00"), 403, "not slides")
        refused(server.post("/reload"), 403, "Restart")

    @pytest.mark.parametrize(
        ("params", "word"),
        [
            ({"run_id": "x"}, "no parameter 'run_id'"),
            ({"tracking_uri": "http://elsewhere"}, "no parameter 'tracking_uri'"),
            ({"max_epochs": -1}, "whole number from 1"),
        ],
    )
    def test_training_parameter(self, server, params, word):
        refused(server.post("/train/tiny", json=params), 400, word)
        refused(server.post("/train/", json={"tiny": params}), 400, word)

    def test_training(self, server):
        refused(server.post("/train/other", json={}), 404, "there are tiny, fresh")
        refused(server.post("/train/tiny", json={}), 400, "at least 2 patients")  # one label only
        refused(server.post("/train/tiny?run_sync=true", json={}), 400, "process of its own")
        refused(server.get("/train/"), 404, "no training yet")
        refused(server.get("/train/?check_if_running=true"), 404, "No training is running")
        assert server.delete("/train/").json() is None

    def test_batch_inference(self, server):
        refused(server.post("/batch/infer/tiny", json={"image": "/etc/passwd"}), 400, "no parameter 'image'")
        refused(server.post("/batch/infer/tiny", json={"label_tag": "../x"}), 400, "no tag")
        refused(server.post("/batch/infer/other", json={}), 404, "there are tiny")

    def test_next_sample_and_scoring(self, server):
        sample = server.post("/activelearning/random", json={"client_id": "me"}).json()
        assert sample["path"].endswith(f"{sample['id']}.nii.gz")
        refused(server.post("/activelearning/rndom", json={}), 404, "did you mean 'random'")
        refused(server.post("/activelearning/random", json={"label_tag": "../x"}), 400, "paths are not taken")
        refused(server.post("/activelearning/random", json={"labels": ["/etc"]}), 400, "one plain value")
        refused(server.post("/scoring/other", json={}), 404, "there are uncertainty")
