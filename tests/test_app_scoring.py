"""Scores in the background: right, computed once, kept through kills and restarts, of the version that is served."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from app_support import scored, write_balls, write_run
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from support import CONFIGS

from monailabel_app.lib.models import find_source
from monailabel_app.lib.scoring import background as module
from monailabel_app.lib.scoring.background import Background
from monailabel_app.lib.scoring.table import Table
from monailabel_app.lib.scoring.worker import to_json
from monailabel_app.lib.versions import Versions


class Store:
    """Images by name, as much of a datastore as scoring asks for."""

    def __init__(self, names, labelled=()):
        self.names, self.labelled = list(names), list(labelled)

    def list_images(self):
        return list(self.names)

    def get_labeled_images(self):
        return list(self.labelled)

    def get_image_info(self, name):
        return {"PatientID": f"patient of {name}", "path": "secret"}

    def get_image_uri(self, name):
        return f"/images/{name}"


class Worker:
    """In place of the process: answers at once, and writes down what it was asked."""

    def __init__(self):
        self.asked, self.before, self.ends_at = [], lambda case: None, None
        self.starts = 0

    @contextlib.contextmanager
    def __call__(self, source, clinical):
        self.weights = source.weights
        self.starts += 1
        yield self, self

    def write(self, text):
        if text.strip():
            self.case = json.loads(text)

    def flush(self):
        pass

    def readline(self):
        self.asked.append(self.case["id"])
        self.before(self.case)
        if self.case["id"] == self.ends_at:
            return ""
        if self.case["id"] == "broken":
            return '{"id": "broken", "error": "OSError: not a NIfTI file"}\n'
        return to_json(self.case["id"], scored(0.5)) + "\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / name, CONFIGS / "fusion_none.yaml", seed=seed, spacing=4.0)
        for name, seed in (("one", 3), ("two", 4))
    ]


@pytest.fixture
def versions(runs, tmp_path):
    found = Versions(tmp_path / "models", find_source("one", str(runs[0]), tmp_path))
    shutil.copytree(runs[1], found.new()[1] / "run")
    found.judge("1", {"accepted": True, "reason": "better"})
    return found


@pytest.fixture
def worker(monkeypatch):
    fake = Worker()
    monkeypatch.setattr(module, "_worker", fake)
    return fake


def background(versions, store, tmp_path, clinical=None, **settings):
    return Background(
        versions=versions, clinical=clinical, datastore=lambda: store, folder=tmp_path / "scores", **settings
    )


class TestBackground:
    def test_scores_all_images_the_labelled_ones_first(self, versions, worker, tmp_path):
        found = background(versions, Store("abcd", labelled="c"), tmp_path)
        assert found.table() == ("0", module.NOTHING)
        status = found.run()
        assert worker.asked == ["c", "a", "b", "d"]
        assert (status["version"], status["scored"], status["images"], status["error"]) == ("0", 4, 4, "")
        assert sorted(found.table()[1].ids) == list("abcd")

    def test_restart_computes_nothing_again(self, versions, worker, tmp_path):
        background(versions, Store("ab"), tmp_path).run()
        again = background(versions, Store("abc"), tmp_path)
        again.run()
        assert worker.asked == ["a", "b", "c"]
        assert len(again.table()[1]) == 3

    def test_kill_costs_no_more_than_since_the_last_write(self, versions, worker, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
        found, kept = background(versions, Store("abc"), tmp_path), []
        worker.before = lambda case: kept.append(Table.load(found.file("0")).ids)
        found.run()
        assert kept == [[], ["a"], ["a", "b"]]

    def test_image_that_ends_the_worker_costs_only_itself(self, versions, worker, tmp_path):
        worker.ends_at = "b"
        found = background(versions, Store("abcd"), tmp_path)
        status = found.run()
        assert "ended at it" in status["failed"]["b"]
        assert (list(status["failed"]), status["error"], worker.starts) == (["b"], "", 2)
        assert Table.load(found.file("0")).ids == found.table()[1].ids == ["a", "c", "d"]

    def test_image_that_cannot_be_fetched_costs_only_itself(self, versions, worker, tmp_path):
        store = Store("abc")

        def fetched(name):
            if name == "b":
                raise ValueError("no regular volume")
            return f"/images/{name}"

        store.get_image_uri = fetched
        found = background(versions, store, tmp_path)
        status = found.run()
        assert (status["failed"], status["error"]) == ({"b": "ValueError: no regular volume"}, "")
        assert Table.load(found.file("0")).ids == ["a", "c"]
        assert (worker.asked, worker.starts) == (["a", "c"], 1)

    def test_what_was_scored_is_kept_when_scoring_stops(self, versions, worker, tmp_path):
        def breaks(case):
            if case["id"] == "c":
                raise MemoryError("no room")

        worker.before = breaks
        found = background(versions, Store("abc"), tmp_path)
        assert "no room" in found.run()["error"]
        assert Table.load(found.file("0")).ids == found.table()[1].ids == ["a", "b"]

    def test_image_that_cannot_be_scored_does_not_stop_the_others(self, versions, worker, tmp_path):
        found = background(versions, Store(["a", "broken", "c"]), tmp_path)
        status = found.run()
        assert status["failed"] == {"broken": "OSError: not a NIfTI file"}
        assert found.table()[1].ids == ["a", "c"]

    def test_worker_is_told_where_the_image_is_and_whose(self, versions, worker, tmp_path):
        seen = []
        worker.before = lambda case: seen.append(dict(case))
        background(versions, Store("a"), tmp_path).run()
        assert seen == [{"id": "a", "path": "/images/a", "info": {"PatientID": "patient of a"}}]

    def test_each_version_has_its_own_scores_and_the_old_ones_serve_until_the_new_are_there(
        self, versions, worker, tmp_path
    ):
        found = background(versions, Store("ab"), tmp_path)
        found.run()
        versions.serve("1")
        used = []
        worker.before = lambda case: used.append(found.table()[0])
        found.run()
        assert worker.asked == ["a", "b", "a", "b"]
        assert used == ["0", "0"]
        assert found.table()[0] == "1"
        versions.serve("0")
        found.run()
        assert (len(worker.asked), found.table()[0]) == (4, "0")
        assert sorted(path.name.split("-")[0] for path in (tmp_path / "scores").glob("*.npz")) == ["0", "1"]

    def test_scores_of_a_version_that_is_done_are_used_though_the_old_one_has_more(self, versions, worker, tmp_path):
        store = Store("abc")
        found = background(versions, store, tmp_path)
        found.run()
        store.names.remove("c")
        worker.ends_at = "b"
        versions.serve("1")
        found.run()
        assert (found.table()[0], found.table()[1].ids) == ("1", ["a"])
        store.names.append("d")
        used = []
        worker.before = lambda case: used.append(found.table()[0])
        found.run()
        assert set(used) == {"1"}
        assert found.table()[1].ids == ["a", "d"]

    def test_version_served_meanwhile_is_scored_next(self, versions, worker, tmp_path):
        worker.before = lambda case: versions.serve("1") if versions.served == "0" else None
        found = background(versions, Store("abc"), tmp_path)
        found.run()
        assert worker.asked == ["a", "a", "b", "c"]
        assert worker.weights == versions.source("1").weights
        assert (found.table()[0], len(found.table()[1])) == ("1", 3)

    def test_another_clinical_table_means_other_scores(self, versions, worker, tmp_path):
        table = tmp_path / "clinical.csv"
        table.write_text("id,age\na,50\n")
        background(versions, Store("a"), tmp_path, clinical=table).run()
        background(versions, Store("a"), tmp_path, clinical=table).run()
        table.write_text("id,age\na,51\n")
        background(versions, Store("a"), tmp_path, clinical=table).run()
        assert worker.asked == ["a", "a"]

    def test_start_returns_at_once_and_stop_keeps_what_was_scored(self, versions, worker, tmp_path):
        go, reached = threading.Event(), threading.Event()

        def wait(case):
            if case["id"] == "b":
                reached.set()
                go.wait(10)

        worker.before = wait
        found = background(versions, Store("abcd"), tmp_path)
        found.start()
        assert reached.wait(10)
        found.start()  # a second one changes nothing
        assert found.status()["running"]
        stopping = threading.Thread(target=found.stop)
        stopping.start()
        while not found._stopped.is_set():
            pass
        go.set()
        stopping.join(10)
        assert worker.asked == ["a", "b"]
        assert Table.load(found.file("0")).ids == ["a", "b"]

    def test_one_process_at_a_time(self, versions, worker, tmp_path):
        found = background(versions, Store("ab"), tmp_path)
        file = found.file("0")
        file.parent.mkdir(parents=True)
        with module.FileLock(f"{file}.lock"):
            background(versions, Store("ab"), tmp_path).run()
        assert worker.asked == []

    def test_no_weights_yet(self, versions, worker, tmp_path, monkeypatch):
        monkeypatch.setattr(versions, "known", list)
        assert background(versions, Store("ab"), tmp_path).run()["scored"] == 0
        assert worker.asked == []


def test_process_that_does_not_start_fails_no_image(versions, tmp_path):
    versions.serve("1")
    versions.source("1").weights.write_bytes(b"no weights")
    found = background(versions, Store("ab"), tmp_path)
    status = found.run()
    assert "did not start" in status["error"]
    assert (status["failed"], status["scored"]) == ({}, 0)


def test_real_process_scores_real_images(tmp_path):
    """Through the process, on images from disk with their patients' values; one is damaged, at one the process ends."""
    images = Path(write_balls(tmp_path / "studies", 8))
    clinical = images.parent / "clinical.csv"
    run = write_run(tmp_path / "run", table=clinical, spacing=4.0)
    (images / "damaged.nii.gz").write_bytes(b"no image")
    store = Store(["ball_00", "ball_02", "ball_01", "damaged"])

    def fetched(name):
        for child in psutil.Process().children() if name == "ball_02" else ():
            if "monailabel_app.lib.scoring.worker" in child.cmdline():
                child.kill()
        return str(images / f"{name}.nii.gz")

    store.get_image_uri = fetched
    store.get_image_info = lambda name: {"PatientID": "ball_07"} if name == "ball_01" else {}
    versions = Versions(tmp_path / "models", find_source("run", str(run), tmp_path))
    found = background(versions, store, tmp_path, clinical=clinical)
    status = found.run()
    assert status["error"] == ""
    assert list(status["failed"]) == ["ball_02", "damaged"]
    table = Table.load(found.file("0"))
    assert table.ids == ["ball_00", "ball_01"]
    assert np.isfinite(table.columns["scores"]).all()
    assert (table.columns["scores"] > 0).all()
    assert table.columns["features"].shape == (2, 16)
    assert (table.columns["features"][0] != table.columns["features"][1]).any()
    known = ClinicalTable(
        path=clinical,
        schema=ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, columns=["age", "Sex"]),
        fitted=run / "clinical.json",
    )
    np.testing.assert_allclose(table.columns["clinical"], [known.vector("ball_00"), known.vector("ball_07")], rtol=1e-5)


def test_process_ends_without_a_word_when_the_server_has_gone(tmp_path, capfd):
    """A server that is stopped closes both pipes, though the process is at a case."""
    images = Path(write_balls(tmp_path / "studies", 2))
    clinical = images.parent / "clinical.csv"
    source = find_source("run", str(write_run(tmp_path / "run", table=clinical, spacing=4.0)), tmp_path)
    with module._worker(source, clinical) as (ask, answers):
        for name in ("ball_00", "ball_01"):
            case = {"id": name, "path": str(images / f"{name}.nii.gz"), "info": {}}
            print(json.dumps(case), file=ask, flush=True)
        assert json.loads(answers.readline())["id"] == "ball_00"
        answers.close()
    assert "Traceback" not in capfd.readouterr().err
