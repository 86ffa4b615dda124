"""Training from submitted labels: whom it trains on, what it keeps, and what it takes to be served."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from app_support import app, write_balls
from scripts.handlers import read_log
from support import ROOT, tiny_overlay

from monailabel_app.lib.trainers.dataset import HELD_OUT, TRAINING, deal
from monailabel_app.lib.trainers.gate import mean_dice, verdict
from monailabel_app.lib.trainers.progress import Job


class TestSplit:
    def test_who_was_dealt_stays(self):
        parts = {}
        for n in range(1, 41):
            new = deal([f"p{i}" for i in range(n)], parts, 0.2)
            assert parts.items() <= new.items()
            parts = new
        held_out = [name for name, part in parts.items() if part == HELD_OUT]
        assert len(held_out) == 8

    def test_order_of_the_labels_does_not_matter(self):
        names = [f"p{i}" for i in range(20)]
        assert deal(names, {}, 0.2) == deal([*reversed(names), *names], {}, 0.2)

    def test_two_patients_are_one_of_each(self):
        assert sorted(deal(["a", "b"], {}, 0.2).values()) == [HELD_OUT, TRAINING]

    def test_patients_that_the_network_knows_do_not_judge(self):
        known = dict.fromkeys("abc", TRAINING)
        assert deal("abcd", known, 0.2) == known | {"d": HELD_OUT}


class TestGate:
    def test_mean_dice(self):
        mask, label = np.array([0, 1, 1, 2]), np.array([0, 1, 0, 0])
        assert mean_dice(mask, label, 4) == pytest.approx((2 / 3 + 0) / 2)  # class 3 is nowhere
        assert np.isnan(mean_dice(label * 0, label * 0, 4))

    @pytest.mark.parametrize(
        ("new", "served", "accepted"),
        [(0.8, 0.7, True), (0.7, 0.7, True), (0.695, 0.7, True), (0.68, 0.7, False), (float("nan"), 0.7, False)],
    )
    def test_not_worse_by_more_than_the_margin(self, new, served, accepted):
        judged = verdict({"a": new}, {"a": served}, margin=0.01)
        assert judged["accepted"] is accepted
        assert ("not worse" in judged["reason"]) is accepted
        assert verdict({"a": 0.01}, None, margin=0.01)["accepted"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Six labelled balls of one patient each, and an unlabelled one."""
    images = write_balls(tmp_path_factory.mktemp("balls"), 7)
    final = images / "labels" / "final"
    final.mkdir(parents=True)
    for number in range(6):
        shutil.copy(images.parent / "labelsTr" / f"ball_{number:02d}.nii.gz", final)
    return images


def cold(studies, tmp_path, **conf):
    """An app whose network has no weights yet."""
    bundle = f"balls={ROOT / 'bundle'}+{tiny_overlay(tmp_path)}"
    conf = {"clinical": studies.parent / "clinical.csv"} | conf
    return app(studies, bundle=bundle, output=tmp_path / "out", **conf)


@pytest.fixture(scope="module")
def trained(studies, tmp_path_factory):
    """A network that learned from nothing but the submitted labels."""
    served = cold(studies, tmp_path_factory.mktemp("trained"))
    assert served.info()["models"] == {}
    stats = served.train({"model": "balls", "max_epochs": 12, "seed": 1})
    return served, stats


class TestFirstTraining:
    def test_it_is_served_and_right(self, trained, studies):
        """S: what clients show as epoch, total and accuracy is that of the training."""
        served, stats = trained
        assert (stats["served"], stats["versions"], stats["state"]) == ("1", ["1"], "done")
        assert stats["verdict"]["dice"] > 0.8
        assert stats["epoch"] == stats["total_epochs"] == 12
        assert stats["best_metric"] > 0.8
        assert "total_time" in stats
        assert "current_time" not in stats
        result = served.infer({"model": "balls", "image": "ball_06"})
        label = np.asarray(nib.load(studies.parent / "labelsTr" / "ball_06.nii.gz").dataobj)
        assert mean_dice(np.asarray(nib.load(result["file"]).dataobj), label, 2) > 0.7
        assert result["params"]["version"] == "1"

    def test_split_is_by_patient_and_clinical_rows_are_in(self, trained):
        """V: the patient, and with it the clinical row, is in the datalist."""
        served, stats = trained
        run = served.options.output / "models" / "balls" / "1" / "run"
        split = json.loads((run / "datalist.json").read_text())
        ids = {name: [case["patient_id"] for case in cases] for name, cases in split.items()}
        assert (len(ids["training"]), len(ids["validation"])) == (4, 2)
        parts = json.loads((served.options.output / "models" / "balls" / "patients.json").read_text())
        assert {name for name, part in parts.items() if part == HELD_OUT} == set(ids["validation"])
        assert set(stats["verdict"]["cases"]) == set(ids["validation"])
        ages = [50 + int(name[-2:]) for name in ids["training"]]
        assert json.loads((run / "clinical.json").read_text())["mean"][0] == pytest.approx(np.mean(ages))

    def test_its_own_run_says_what_made_it(self, trained):
        served, _ = trained
        run = served.options.output / "models" / "balls" / "1" / "run"
        assert len(read_log(run / "log.csv")) == 12
        assert (run / "config.yaml").is_file()
        assert "training" in (run / "output.txt").read_text()


def test_going_on_starts_from_the_served_weights_and_keeps_its_scaling(trained, studies):
    """I: a training writes nothing into the version it started from."""
    served, _ = trained
    folder = served.options.output / "models" / "balls"
    found = (path for path in (folder / "1").rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in found if path.name != "output.txt"}  # this process logs to it still
    stats = served.train({"model": "balls", "max_epochs": "2", "pretrained": "true", "learning_rate": 1e-9})
    assert stats["version"] == "2"
    assert stats["verdict"]["compared_with"] == "1"
    one, two = (torch.load(folder / n / "run" / "model.pt", weights_only=True) for n in "12")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    assert (folder / "2" / "run" / "clinical.json").read_bytes() == (
        folder / "1" / "run" / "clinical.json"
    ).read_bytes()
    assert {path: path.read_bytes() for path in before} == before


def test_worse_version_is_kept_but_not_served(trained):
    """I, M: from scratch (`pretrained` false), barely trained."""
    served, _ = trained
    now = served.train_task("balls").versions.served
    stats = served.train({"model": "balls", "max_epochs": 1, "pretrained": False, "learning_rate": 1e-9})
    assert not stats["verdict"]["accepted"]
    assert "is worse than" in stats["message"]
    assert stats["served"] == now
    assert stats["version"] not in stats["versions"]
    assert (served.options.output / "models" / "balls" / stats["version"] / "run" / "model.pt").is_file()
    assert served.infer({"model": "balls", "image": "ball_06"})["params"]["version"] == now


def test_training_that_dies_leaves_the_served_version(trained, studies, tmp_path, monkeypatch):
    from scripts import workflows

    served, _ = trained
    now = served.train_task("balls").versions.served

    def dies(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(workflows, "train", dies)
    with pytest.raises(RuntimeError, match="out of memory"):
        served.train({"model": "balls"})
    stats = served.train_task("balls").stats()
    assert (stats["state"], stats["message"], stats["served"]) == ("failed", "CUDA out of memory", now)
    assert stats["verdict"] is None


def test_killed_training_is_told_from_a_running_one(tmp_path):
    job = Job(tmp_path)
    with job.running(epochs=5):
        assert job.stats()["state"] == "running"
        assert "current_time" in job.stats()
        state = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(state | {"born": state["born"] - 100}))  # its pid belongs to another
    assert job.stats()["state"] == "stopped"
    assert "total_time" in job.stats()
    assert state["pid"] == os.getpid()


class TestBadInput:
    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({"run_id": "$import os"}, "no parameter 'run_id'.*max_epochs, pretrained, learning_rate, seed"),
            ({"tracking_uri": "http://elsewhere"}, "no parameter 'tracking_uri'"),
            ({"model_filename": "../../x.pt"}, "no parameter 'model_filename'"),
            ({"max_epochs": 0}, "max_epochs is 0; expected a whole number from 1"),
            ({"max_epochs": "many"}, "max_epochs is 'many'"),
            ({"max_epochs": 1.5}, "whole number"),
            ({"pretrained": "maybe"}, "expected true or false"),
            ({"learning_rate": True}, "learning_rate is True"),
        ],
    )
    def test_parameter(self, trained, request_, message):
        with pytest.raises(ValueError, match=message):
            trained[0].train_task("balls").check(request_)

    def test_clients_send_what_they_were_shown_or_nothing(self, trained):
        """N: every parameter has a default; OHIF sends none."""
        task = trained[0].train_task("balls")
        assert task.check({}) == task.check(task.config() | {"client_id": "me", "gpus": "all"})
        assert task.check({})["max_epochs"] == 50

    def test_too_few_labels(self, studies, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        shutil.copy(studies / "ball_00.nii.gz", images)
        with pytest.raises(ValueError, match="0 final labels of 0 patients; at least 2 patients"):
            cold(images, tmp_path, clinical=studies.parent / "clinical.csv").train({"model": "balls"})

    def test_no_table_for_a_network_that_learns_from_one(self, studies, tmp_path):
        bundle = f"balls={ROOT / 'bundle'}+{tiny_overlay(tmp_path)}"
        with pytest.raises(ValueError, match="takes clinical variables, and a training from scratch must know some"):
            app(studies, bundle=bundle, output=tmp_path / "out").train({"model": "balls"})


def test_empty_label_is_left_out(studies, tmp_path):
    from monailabel_app.lib.trainers.dataset import labelled, write_snapshot

    served = cold(studies, tmp_path)
    cases = labelled(served.datastore())
    empty = nib.load(cases[0]["label"])
    nib.save(nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), tmp_path / "empty.nii.gz")
    cases[0]["label"] = str(tmp_path / "empty.nii.gz")
    parts = deal([case["patient_id"] for case in cases], {}, 0.2)
    found = write_snapshot(cases, parts, tmp_path / "dataset", ["background", "ball"])
    assert found.empty == ["ball_00"]
    assert len(found.training) + len(found.held_out) == 5
