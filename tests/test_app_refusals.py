"""Requests that are refused, each with a message that says what was wrong; nothing is changed by any of them."""

import errno
import gzip
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from client_support import ball, ball_server, infer, refused, submit
from support import ROOT, ball_dataset, write_nifti


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"), 4)


@pytest.fixture(scope="module")
def server(studies, tmp_path_factory):
    with ball_server(studies, tmp_path_factory.mktemp("server")) as made:
        yield made


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
def test_inference_parameter(server, params, word):
    refused(infer(server, params), 400, word)


def test_inference(server):
    refused(infer(server, image="ball_99"), 404, "no image 'ball_99'")
    for path in ("/etc/hostname", "../imagesTr/ball_00", str(ROOT / "README.md")):
        refused(infer(server, image=path), 404, "no image")
    refused(infer(server, model="other"), 404, "there are tiny, fresh")
    refused(infer(server, model="fresh"), 409, "no weights yet")
    refused(server.post("/infer/tiny?image=ball_00", data={"params": "[1]"}), 400, "expected a JSON object")
    refused(server.post("/infer/tiny", files={"file": ("x.py", b"import os")}), 400, "ends in")
    refused(server.post("/infer/tiny", files={"file": ("x.nii.gz", b"no")}), 400, "cannot be read")


def test_dicom_seg_of_files(server, monkeypatch):
    """R: refused at once, not after the work."""
    from scripts.segment import Segmenter

    monkeypatch.setattr(Segmenter, "__call__", lambda *_, **__: pytest.fail("segmented"))
    refused(infer(server, output="dicom_seg"), 400, "DICOM studies only")


def test_label_as_input(server, studies):
    content = (studies / "labelsTr" / "ball_01.nii.gz").read_bytes()
    answer = server.post("/infer/tiny?image=ball_00", files={"label": ("label.nii.gz", content)})
    refused(answer, 400, "sees the image alone")


def test_label(server):
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


def test_nothing_of_a_refused_upload_stays(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refused(submit(server, ball(5)), 400, "no class")
    refused(server.put("/datastore/image", files={"file": ("y.nii.gz", b"no")}), 400, "cannot be read")
    refused(server.post("/infer/tiny", files={"file": ("x.nii.gz", b"no")}), 400, "cannot be read")
    assert not list(tmp_path.iterdir())
    assert submit(server, ball()).status_code == 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "ts", "id", "name", "path"])
def test_what_the_server_relies_on(server, key):
    assert submit(server, ball()).status_code == 200
    info = json.dumps({"note": "seen", key: "../x"})
    for what, form in (("image/info", "info"), ("label/info", "info"), ("updatelabelinfo", "params")):
        query = {"image": "ball_00", "label": "ball_00", "tag": "final"}
        before = server.get("/datastore/?output=all").json()
        refused(server.put(f"/datastore/{what}", params=query, data={form: info}), 400, f"{key} cannot be set")
        assert server.get("/datastore/?output=all").json() == before
        assert server.put(f"/datastore/{what}", params=query, data={form: '{"note": "seen"}'}).status_code == 200


def test_full_disk(server, monkeypatch):
    assert submit(server, ball()).status_code == 200

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(submit(server, ball() * 0), 507, "disk is full", "nothing was lost")
    answer = server.get("/datastore/label", params={"label": "ball_00", "tag": "final"})
    assert np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj).any()


@pytest.mark.parametrize("what", ["label", "image", "scan to segment", "session"])
def test_upload_to_a_full_disk_leaves_nothing(server, studies, monkeypatch, tmp_path, what):
    scan = (studies / "imagesTr" / "ball_01.nii.gz").read_bytes()
    sends = {
        "label": lambda: submit(server, ball()),
        "image": lambda: server.put("/datastore/image", files={"file": ("z.nii.gz", scan)}),
        "scan to segment": lambda: server.post("/infer/tiny", files={"file": ("z.nii.gz", scan)}),
        "session": lambda: server.put("/session/", files=[("files", ("z.nii.gz", scan))]),
    }

    def full(upload, file):
        file.write(upload.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        patch.setattr(shutil, "copyfileobj", full)
        refused(sends[what](), 507, "disk is full")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sends[what]().status_code == 200


def test_mask_on_a_full_disk_leaves_nothing(server, monkeypatch, tmp_path):
    def full(volume, file):
        Path(file).write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path))
        patch.setattr(nib, "save", full)
        refused(infer(server, output="image"), 507, "disk is full")
    assert not list(tmp_path.iterdir())


def test_patient_of_a_new_image(server, studies):
    """Whose it is may be said when it is added, and never changed; nothing else that the server relies on."""
    scan = (studies / "imagesTr" / "ball_01.nii.gz").read_bytes()

    def add(**info):
        form = {"params": json.dumps(info)}
        return server.put("/datastore/image?image=visit_2", files={"file": ("x.nii.gz", scan)}, data=form)

    for key in ("StudyInstanceUID", "SeriesInstanceUID", "ts", "id", "name", "path"):
        refused(add(**{key: "x"}), 400, f"{key} cannot be set")
    for wrong in ("", " ", "x" * 65, "a\\b", "a\nb", 7, None):
        refused(add(PatientID=wrong), 400, "PatientID is", "one line of at most 64 characters")
    assert add(PatientID=" ball_03 ", note="second visit").status_code == 200
    told = infer(server, image="visit_2", output="json").json()["clinical"]
    assert (told["patient"], told["source"], told["values"]["age"]) == ("ball_03", "table", 53)
    change = {"info": '{"PatientID": "ball_01"}'}
    refused(server.put("/datastore/image/info?image=visit_2", data=change), 400, "PatientID cannot be set")


def test_image(server, tmp_path):
    content = write_nifti(tmp_path / "x.nii.gz", np.ones((4, 4, 4), np.float32)).read_bytes()
    files = {"file": ("x.nii.gz", content)}
    refused(server.put("/datastore/image?image=../../out", files=files), 400, "not a plain name")
    refused(server.put("/datastore/image?image=ball_00", files=files), 400, "already")
    refused(server.put("/datastore/image", files={"file": ("x.zip", content)}), 400, "ends in")
    refused(server.put("/datastore/image", files={"file": ("y.nii.gz", b"no")}), 400, "cannot be read")
    refused(server.delete("/datastore/image?id=ball_00"), 400, "not removed through the server")
    refused(server.put("/datastore/image/info?image=ball_99", data={"info": "{}"}), 404, "no image")


def test_archives(server):
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


def test_models_are_not_replaced_from_outside(server):
    refused(server.put("/model/tiny", files={"file": ("model.pt", b"x")}), 403, "from training alone")
    refused(server.delete("/model/tiny"), 403, "nny versions")
    assert server.get("/model/info/tiny").json()["checksum"].startswith("SHA256:")


def test_what_this_server_is_not(server):
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
def test_training_parameter(server, params, word):
    refused(server.post("/train/tiny", json=params), 400, word)
    refused(server.post("/train/", json={"tiny": params}), 400, word)


def test_training(server):
    refused(server.post("/train/other", json={}), 404, "there are tiny, fresh")
    refused(server.post("/train/tiny", json={}), 400, "at least 2 patients")  # one label only
    refused(server.post("/train/tiny?run_sync=true", json={}), 400, "process of its own")
    refused(server.get("/train/"), 404, "no training yet")
    refused(server.get("/train/?check_if_running=true"), 404, "No training is running")
    assert server.delete("/train/").json() is None


def test_batch_inference(server):
    refused(server.post("/batch/infer/tiny", json={"image": "/etc/passwd"}), 400, "no parameter 'image'")
    refused(server.post("/batch/infer/tiny", json={"label_tag": "../x"}), 400, "no tag")
    refused(server.post("/batch/infer/tiny", json={"label_tag": "final"}), 400, "nobody corrected", "'original'")
    refused(server.post("/batch/infer/other", json={}), 404, "there are tiny")


def test_next_sample_and_scoring(server):
    sample = server.post("/activelearning/random", json={"client_id": "me"}).json()
    assert sample["path"].endswith(f"{sample['id']}.nii.gz")
    assert server.post("/activelearning/random").status_code == 200  # twice in a second (L)
    refused(server.post("/activelearning/rndom", json={}), 404, "did you mean 'random'")
    refused(server.post("/activelearning/random", json={"label_tag": "../x"}), 400, "paths are not taken")
    refused(server.post("/activelearning/random", json={"labels": ["/etc"]}), 400, "one plain value")
    refused(server.post("/scoring/other", json={}), 404, "there are uncertainty")
    refused(server.post("/scoring/", json={"uncertainty": {"method": "other"}}), 403, "POST /scoring/uncertainty")
