"""Scores in the background: right, computed once, kept through kills and restarts, of the version that is served."""

import shutil
import threading
import time

import pytest
from app_support import write_run
from scoring_support import Store, Worker, background
from support import CONFIGS

from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.models import find_source
from monailabel_app.lib.scoring import background as module
from monailabel_app.lib.scoring.table import Table
from monailabel_app.lib.versions import Versions


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


class Archive(Store):
    """Images of a DICOM archive: some that it does not give, or none at all while it is gone."""

    def __init__(self, names, broken=()):
        super().__init__(names)
        self.gone, self.broken, self.asked = False, broken, []

    def get_image_uri(self, name):
        self.asked.append(name)
        if name in self.broken:
            raise ArchiveError(f"500 for {name}")
        self.refresh()
        return super().get_image_uri(name)

    def refresh(self):
        if self.gone:
            raise ArchiveError("The DICOM archive does not answer.")


class TestArchive:
    @pytest.fixture
    def store(self):
        return Archive("abcdef")

    def test_scoring_stops_when_the_archive_is_gone_and_goes_on_when_it_is_back(
        self, versions, worker, tmp_path, monkeypatch, store
    ):
        monkeypatch.setattr(module, "AGAIN", 0.2)
        found = background(versions, store, tmp_path)
        worker.before = lambda case: setattr(store, "gone", case["id"] == "b")
        found.start()
        wait(lambda: store.asked.count("c") > 2)  # asked for one image now and then, not for all of them
        asked = list(store.asked)
        assert asked == [*"ab", *"c" * (len(asked) - 2)]
        wait(lambda: "does not answer. Scoring goes on in" in found.status()["error"])
        assert found.status()["failed"] == {}
        worker.before = lambda case: None
        store.gone = False
        wait(lambda: found.status()["scored"] == 6)
        assert (found.status()["failed"], found.status()["error"]) == ({}, "")
        assert worker.asked == list("abcdef")

    def test_it_is_not_asked_again_by_a_server_that_stopped(self, versions, worker, tmp_path, monkeypatch, store):
        monkeypatch.setattr(module, "AGAIN", 0.1)
        store.gone = True
        found = background(versions, store, tmp_path)
        found.run()
        found.stop()
        asked = len(store.asked)
        time.sleep(0.3)
        assert len(store.asked) == asked

    def test_images_that_an_archive_does_not_give_cost_only_themselves(self, versions, worker, tmp_path):
        found = background(versions, Archive("abcdef", broken="bcde"), tmp_path)
        status = found.run()
        assert (list(status["failed"]), status["scored"], status["error"]) == ([*"bcde"], 2, "")


def wait(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
