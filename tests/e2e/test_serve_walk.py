"""The requests that 3D Slicer's plugin makes, by MONAI Label's own client, against the server that a user starts."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import nibabel as nib
import numpy as np
import psutil
import pytest
from app_support import write_balls
from monailabel.client import MONAILabelClient
from scripts import workflows
from server_support import Server, stock_command
from support import ROOT, tiny_overlay, write_nifti

from monailabel_app.lib.trainers.gate import mean_dice

pytestmark = pytest.mark.e2e
MODEL = "balls"
LABELLED = [f"ball_{number:02d}" for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def images(folder):
    """Eight balls without labels, and a scan that takes seconds."""
    images = write_balls(folder / "cohort", 8)
    big = np.random.default_rng(0).normal(0, 20, (96, 96, 64)).astype(np.float32)
    write_nifti(images / "big.nii.gz", big, np.diag([-2.0, 2.0, 2.0, 1.0]))
    return images


@pytest.fixture(scope="module")
def run(images, folder):
    """A network that has seen one epoch: it has everything to learn."""
    overlay = tiny_overlay(folder)
    workflows.train(str(images.parent), str(folder / MODEL), str(overlay), epochs=1, val_interval=1)
    return folder / MODEL


@pytest.fixture(scope="module")
def server(images, run, folder):
    (run / "datalist.json").unlink()  # else its own split would decide who is held out here
    server = Server("--studies", images, "--bundle", run, "--clinical", images.parent / "clinical.csv", cwd=folder)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def slicer(server, folder):
    (folder / "slicer").mkdir()
    return MONAILabelClient(server.address, tmpdir=str(folder / "slicer"), client_id="annotator")


def truth(images, name):
    return images.parent / "labelsTr" / f"{name}.nii.gz"


def segment(slicer, name, **params):
    """As the plugin asks for a mask: NRRD of uint8."""
    file, told = slicer.infer(MODEL, name, {"result_extension": ".nrrd", "result_dtype": "uint8", **params})
    return file, told


def wait(slicer, seconds=150):
    end = time.monotonic() + seconds
    seen = []
    while slicer.train_status(check_if_running=True):
        seen.append(next(iter(slicer.info()["train_stats"].values())))
        assert time.monotonic() < end, slicer.train_status()
        time.sleep(0.2)
    return seen


def test_info(slicer):
    info = slicer.info()
    assert info["labels"] == ["ball"]
    assert info["models"][MODEL]["version"] == "0"
    assert info["strategies"]
    assert info["datastore"] == {"total": 9, "completed": 0, "label_tags": {}}


def test_next_sample(slicer):
    sample = slicer.next_sample(next(iter(slicer.info()["strategies"])), {})
    assert sample["id"] in [*LABELLED, "ball_06", "ball_07", "big"]
    assert sample["path"].endswith(f"{sample['id']}.nii.gz")


def test_infer_is_the_mask_of_the_command_line(slicer, images, run, tmp_path):
    import itk

    table = str(images.parent / "clinical.csv")
    workflows.infer(str(images / "ball_06.nii.gz"), str(tmp_path), run=str(run), clinical=table)
    file, told = segment(slicer, "ball_06")
    mask = itk.array_from_image(itk.imread(file)).transpose()
    np.testing.assert_array_equal(mask, np.asarray(nib.load(tmp_path / "ball_06_seg.nii.gz").dataobj))
    assert told["label_names"] == {"ball": 1}
    assert told["clinical"]["source"] == "table"


def test_info_answers_while_inference_runs(slicer, server):
    begin, seconds = time.perf_counter(), []
    working = threading.Thread(target=segment, args=(slicer, "big"))
    working.start()
    time.sleep(0.3)
    while working.is_alive():
        asked = time.perf_counter()
        server.get("/info/")
        seconds.append(time.perf_counter() - asked)
        time.sleep(0.05)
    print(f"inference {time.perf_counter() - begin:.1f} s; /info/ at most {max(seconds):.3f} s of {len(seconds)}")
    assert len(seconds) > 5
    assert np.median(seconds) < 0.1
    assert max(seconds) < 0.2


def test_labels_are_saved_and_read_back(slicer, images, tmp_path):
    for name in LABELLED:
        answer = slicer.save_label(name, str(truth(images, name)), params={"label_info": [{"name": "ball", "idx": 1}]})
        assert answer["label"] == name
    file = slicer.download_label("ball_00", "final")
    np.testing.assert_array_equal(
        np.asarray(nib.load(file).dataobj), np.asarray(nib.load(truth(images, "ball_00")).dataobj)
    )
    assert slicer.info()["datastore"]["completed"] == len(LABELLED)
    for _ in range(3):  # what was just labelled is not offered
        assert slicer.next_sample(next(iter(slicer.info()["strategies"])), {})["id"] not in LABELLED


def test_training_is_seen_and_its_version_served(slicer, images, run):
    before = (run / "model.pt").read_bytes()
    started = slicer.train_start(MODEL, {"max_epochs": 14, "pretrained": True, "learning_rate": 0.01})
    assert started["status"] in ("SUBMITTED", "RUNNING")
    assert slicer.train_status(check_if_running=True)  # T: at once, before its process exists
    with pytest.raises(Exception, match="429"):
        slicer.train_start(MODEL, {"max_epochs": 1})
    seen = wait(slicer)
    status = slicer.train_status()
    assert status["status"] == "DONE", status
    assert any(line.startswith("epoch 14/14: loss") for line in status["details"]), status["details"]
    epochs = [stats["epoch"] for stats in seen if "current_time" in stats]
    assert epochs == sorted(epochs)
    assert len(set(epochs)) > 1
    stats = slicer.info()["train_stats"][MODEL]
    assert stats["verdict"]["accepted"], stats
    assert (stats["served"], stats["epoch"], stats["total_epochs"]) == ("1", 14, 14)
    assert stats["best_metric"] > 0.8
    file, told = segment(slicer, "ball_07", result_extension=".nii.gz")
    assert told["version"] == "1"
    found = np.asarray(nib.load(file).dataobj)
    assert mean_dice(found, np.asarray(nib.load(truth(images, "ball_07")).dataobj), 2) > 0.7
    assert (run / "model.pt").read_bytes() == before


def test_stopped_training_leaves_the_served_version(slicer):
    slicer.train_start(MODEL, {"max_epochs": 5000})
    stopped = slicer.train_stop()  # at once
    assert stopped["status"] == "STOPPED"
    slicer.train_start(MODEL, {"max_epochs": 5000})
    end = time.monotonic() + 100
    while (
        slicer.info()["train_stats"][MODEL].get("epoch", 0) < 1
        or slicer.info()["train_stats"][MODEL]["state"] != "running"
    ):
        assert time.monotonic() < end, slicer.train_status()
        time.sleep(0.3)
    assert slicer.train_stop()["status"] == "STOPPED"
    assert not slicer.train_status(check_if_running=True)
    stats = slicer.info()["train_stats"][MODEL]
    assert (stats["state"], stats["served"]) == ("stopped", "1")
    assert segment(slicer, "ball_07")[1]["version"] == "1"


def test_version_is_taken_back_by_command(slicer, images, run, folder):
    command = [str(ROOT / "nny"), "versions", "--studies", str(images), "--bundle", str(run), "--serve", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "*   0  as given" in done.stdout, done.stderr
    assert segment(slicer, "ball_07")[1]["version"] == "0"
    assert segment(slicer, "ball_07", version="1")[1]["version"] == "1"


def test_uploaded_volume_by_session(slicer, images):
    session = slicer.create_session(str(images / "ball_07.nii.gz"))["session_id"]
    file, told = slicer.infer(MODEL, "", {"result_extension": ".nii.gz"}, session_id=session)
    assert nib.load(file).shape == (24, 24, 24)
    assert told["clinical"]["source"] in ("none", "table")
    slicer.remove_session(session)


def test_batch_inference(slicer, server, images):
    """Masks of all images, in a process of its own."""
    request = urllib.request.Request(
        f"{server.address}/batch/infer/{MODEL}",
        data=json.dumps({"max_batch_size": 2}).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert json.load(urllib.request.urlopen(request))["status"] in ("SUBMITTED", "RUNNING")
    end = time.monotonic() + 150
    while (status := json.loads(server.get("/batch/infer")))["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, status
        time.sleep(0.5)
    assert status["status"] == "DONE", status
    assert sorted(file.name for file in (images / "labels" / "original").iterdir()) == [
        "ball_00.nii.gz",
        "ball_01.nii.gz",
    ]


def test_server_was_quiet(server):  # the last test of the fixture
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_server_killed_while_it_saves_and_trains(images, run, tmp_path):
    """No half-written label, no other version; the next start goes on from there."""
    studies = tmp_path / "images"
    shutil.copytree(images, studies, ignore=shutil.ignore_patterns("labels", "nny", "datastore_v2.json", "big*"))
    arguments = ["--studies", studies, "--bundle", run, "--clinical", images.parent / "clinical.csv"]
    server = Server(*arguments, cwd=tmp_path)
    slicer = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    for name in LABELLED:
        slicer.save_label(name, str(truth(images, name)), params={})
    slicer.train_start(MODEL, {"max_epochs": 5000})
    end = time.monotonic() + 100
    while slicer.info()["train_stats"][MODEL].get("epoch", 0) < 1:
        assert time.monotonic() < end, slicer.train_status()
        time.sleep(0.2)

    def save_for_ever():
        with contextlib.suppress(Exception):  # the server is gone
            while True:
                slicer.save_label("ball_00", str(truth(images, "ball_00")), params={})

    saving = threading.Thread(target=save_for_ever)
    saving.start()
    time.sleep(0.5)
    server.process.kill()
    server.process.wait()
    saving.join()
    label = nib.load(studies / "labels" / "final" / "ball_00.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(nib.load(truth(images, "ball_00")).dataobj))
    server = Server(*arguments, cwd=tmp_path)
    try:
        slicer = MONAILabelClient(server.address, tmpdir=str(tmp_path))
        info = slicer.info()
        assert info["datastore"]["completed"] == len(LABELLED)
        stats = info["train_stats"][MODEL]
        assert (stats["served"], stats["verdict"]) == ("0", None)
        end = time.monotonic() + 30  # the training ends with its server
        while (state := json.loads(server.get("/info/"))["train_stats"][MODEL]["state"]) == "running":
            assert time.monotonic() < end
            time.sleep(0.2)
        assert state == "stopped"
        slicer.train_start(MODEL, {"max_epochs": 5000})
        while "current_time" not in slicer.info()["train_stats"][MODEL]:
            assert time.monotonic() < end + 60
            time.sleep(0.2)
    finally:
        assert server.stop() == 0  # does not wait for the training
    job = json.loads((studies / "nny" / "models" / MODEL / "2" / "job.json").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(job["pid"]):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_stock_start_is_guarded_and_does_not_block_either(images, run, tmp_path):
    app = tmp_path / "app"  # MONAI Label makes folders in the app's own folder
    app.mkdir()
    (app / "main.py").symlink_to(ROOT / "monailabel_app" / "main.py")
    studies = tmp_path / "images"
    shutil.copytree(images, studies, ignore=shutil.ignore_patterns("labels", "nny", "datastore_v2.json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(cwd=tmp_path, command=stock_command(app, studies, port, ("bundle", run)))
    try:
        server.address = f"http://127.0.0.1:{port}"
        slicer = MONAILabelClient(server.address, tmpdir=str(tmp_path))
        working = threading.Thread(target=segment, args=(slicer, "big"))
        working.start()
        time.sleep(0.3)
        begin = time.perf_counter()
        assert json.loads(server.get("/info/"))["models"][MODEL]["version"] == "0"
        assert time.perf_counter() - begin < 0.2
        assert working.is_alive()
        request = urllib.request.Request(server.address + "/info/", headers={"Origin": "http://elsewhere"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
        working.join()
    finally:
        server.process.kill()
        server.process.wait()
