"""Scores in the background: right, computed once, kept through kills and restarts, of the version that is served."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from app_support import write_balls, write_run
from scripts.acquisition import SCORES, CaseScores
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from support import CONFIGS

from monailabel_app.lib.models import find_source
from monailabel_app.lib.scoring import background as module
from monailabel_app.lib.scoring.background import Background
from monailabel_app.lib.scoring.table import COLUMNS, Table
from monailabel_app.lib.scoring.worker import from_json, to_json
from monailabel_app.lib.versions import Versions


def scored(value):
    return CaseScores(
        scores={"entropy": value, "epistemic": value / 2},
        class_entropy=np.array([value, 0.5], np.float32),
        class_volume=np.array([0.1, 0.2], np.float32),
        features=np.array([value, 1.0, 2.0], np.float32),
        clinical=np.array([np.nan, 1.0], np.float32),
    )


class TestTable:
    def test_file_gives_back_every_value(self, tmp_path):
        table = Table().extended({"a": scored(0.1), "b": scored(0.2)}).extended({"c": scored(0.3), "a": scored(0.9)})
        table.save(tmp_path / "t.npz")
        again = Table.load(tmp_path / "t.npz")
        assert again.ids == ["a", "b", "c"]
        for name in COLUMNS:
            np.testing.assert_array_equal(again.columns[name], table.columns[name])
        assert again.scores_of("a") == pytest.approx({"entropy": 0.1, "epistemic": 0.05})
        assert again.scores_of("z") == {}

    def test_pool_has_nan_where_nothing_is_known(self):
        pool = Table().extended({"a": scored(0.1), "b": scored(0.2)}).pool(["b", "new", "a"])
        np.testing.assert_allclose(pool.scores["entropy"], [0.2, np.nan, 0.1], rtol=1e-6)
        assert np.isnan(pool.scores["tta"]).all()
        np.testing.assert_allclose(pool.class_entropy[:, 0], [0.2, np.nan, 0.1], rtol=1e-6)
        assert pool.distances.between([0]).shape == (3, 1)

    def test_empty(self, tmp_path):
        assert len(Table().pool(["a"]).ids) == 1
        assert set(Table().pool(["a"]).scores) == set(SCORES)
        assert len(Table.load(tmp_path / "none.npz")) == 0

    @pytest.mark.parametrize("keep", [0, 10, 400])
    def test_damaged_file_is_scored_again(self, tmp_path, keep):
        file = tmp_path / "t.npz"
        Table().extended({"a": scored(0.1)}).save(file)
        file.write_bytes(file.read_bytes()[:keep])
        assert len(Table.load(file)) == 0

    def test_foreign_file_is_scored_again(self, tmp_path):
        np.savez(tmp_path / "t.npz", ids=np.array(["a", "b"]), **{name: np.zeros((1, 1)) for name in COLUMNS})
        assert len(Table.load(tmp_path / "t.npz")) == 0

    def test_kill_during_the_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / "t.npz"
        Table().extended({"a": scored(0.1)}).save(file)

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            Table().extended({"b": scored(0.1)}).save(file)
        assert Table.load(file).ids == ["a"]

    def test_line_of_the_worker(self):
        name, found = from_json(to_json("a", scored(0.25)))
        assert name == "a"
        assert found.scores == {"entropy": 0.25, "epistemic": 0.125}
        np.testing.assert_array_equal(found.clinical, scored(0).clinical)
        assert from_json('{"id": "b", "error": "no such file"}') == ("b", "no such file")


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

    @contextlib.contextmanager
    def __call__(self, source, clinical):
        self.weights = source.weights
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
        worker.ends_at = "c"
        broken = background(versions, Store("abcd"), tmp_path)
        assert "ended at c" in broken.run()["error"]
        worker.ends_at = None
        background(versions, Store("abcd"), tmp_path).run()
        assert worker.asked == ["a", "b", "c", "c", "d"]

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


def test_real_process_scores_real_images(tmp_path):
    """Through the process, on images from disk with their patients' clinical values; a damaged one among them."""
    images = Path(write_balls(tmp_path / "studies", 8))
    clinical = images.parent / "clinical.csv"
    run = write_run(tmp_path / "run", table=clinical, spacing=4.0)
    (images / "damaged.nii.gz").write_bytes(b"no image")
    store = Store(["ball_00", "ball_01", "damaged"])
    store.get_image_uri = lambda name: str(images / f"{name}.nii.gz")
    store.get_image_info = lambda name: {"PatientID": "ball_07"} if name == "ball_01" else {}
    versions = Versions(tmp_path / "models", find_source("run", str(run), tmp_path))
    found = background(versions, store, tmp_path, clinical=clinical)
    status = found.run()
    assert status["error"] == ""
    assert list(status["failed"]) == ["damaged"]
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
