"""Next image: which one, to whom, at once after a label, and from memory alone."""

import json
import os
import threading
import time

import numpy as np
import pytest
from app_support import app, write_balls, write_run
from scripts.acquisition import STRATEGIES, CaseScores
from support import CONFIGS

from monailabel_app.lib.activelearning.chooser import Chooser
from monailabel_app.lib.activelearning.leases import Leases
from monailabel_app.lib.scoring.table import Table


def scored(entropy, at=(0.0, 0.0)):
    return CaseScores(
        scores={"entropy": entropy, "epistemic": entropy / 2, "tta": entropy / 3},
        class_entropy=np.array([entropy], np.float32),
        class_volume=np.array([0.1], np.float32),
        features=np.array(at, np.float32),
    )


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leases(tmp_path, clock):
    return Leases(tmp_path / "leases.json", seconds=60, clock=clock)


POOL = {
    "done": scored(0.1, (0, 0)),
    "sure": scored(0.05, (1, 1)),
    "torn": scored(0.9, (1, 2)),
    "lost": scored(0.6, (2, 1)),
}
IMAGES = list(POOL)
OPEN = ["sure", "torn", "lost"]


def chooser(leases, cases=POOL, version="1"):
    table = Table().extended(cases)
    return Chooser(table=lambda: (version, table), leases=leases, seed=0)


class TestChooser:
    def test_best_first_with_what_is_known_of_it(self, leases):
        given = chooser(leases).next("entropy", IMAGES, OPEN, "ann")
        assert given["id"] == "torn"
        assert given["scores"] == pytest.approx({"entropy": 0.9, "epistemic": 0.45, "tta": 0.3})
        assert (given["scores_version"], given["scored_images"]) == ("1", 4)
        json.dumps(given)

    def test_two_clients_never_get_the_same(self, leases):
        choose = chooser(leases)
        given = [choose.next("entropy", IMAGES, OPEN, client)["id"] for client in ("ann", "bob", "ann")]
        assert given == ["torn", "lost", "sure"]
        assert choose.next("entropy", IMAGES, OPEN, "eve") == {}

    def test_clients_at_the_same_moment(self, leases):
        cases = {f"{i:03d}": scored(i / 100) for i in range(40)}
        choose, given = chooser(leases, cases), []
        threads = [
            threading.Thread(
                target=lambda i=i: given.append(choose.next("entropy", list(cases), list(cases), f"{i}")["id"])
            )
            for i in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(given) == sorted(cases)

    def test_skipped_image_comes_back_to_its_client_only_when_no_other_is_left(self, leases):
        """L: with one image left, asking again at once gives it again."""
        choose = chooser(leases)
        assert [choose.next("entropy", IMAGES, OPEN, "ann")["id"] for _ in range(4)] == ["torn", "lost", "sure", "torn"]

    def test_clients_without_a_name_do_not_wait_for_each_other(self, leases):
        choose = chooser(leases)
        assert [choose.next("entropy", IMAGES, OPEN, "")["id"] for _ in range(2)] == ["torn", "lost"]

    def test_image_is_free_again_when_its_time_is_over(self, leases, clock):
        choose = chooser(leases)
        assert choose.next("entropy", IMAGES, OPEN, "ann")["id"] == "torn"
        clock.now += 59
        assert choose.next("entropy", IMAGES, OPEN, "bob")["id"] == "lost"
        clock.now += 2
        assert choose.next("entropy", IMAGES, OPEN, "eve")["id"] == "torn"

    def test_leases_survive_a_restart(self, leases, clock, tmp_path):
        chooser(leases).next("entropy", IMAGES, OPEN, "ann")
        again = Leases(tmp_path / "leases.json", seconds=60, clock=clock)
        assert again.held() == {"torn": "ann"}
        assert chooser(again).next("entropy", IMAGES, OPEN, "bob")["id"] == "lost"

    @pytest.mark.parametrize("damage", ["", "[]", '{"torn": 3}', '{"torn": ["ann"'])
    def test_damaged_leases_are_no_leases(self, tmp_path, damage):
        (tmp_path / "leases.json").write_text(damage)
        assert Leases(tmp_path / "leases.json").held() == {}

    def test_label_counts_at_once(self, leases):
        """Two alike in a corner: when one is labelled, the other is no longer far from everything."""
        cases = {"done": scored(0.1, (0, 0)), "corner": scored(0.1, (5, 5)), "twin": scored(0.1, (5, 4.9))}
        cases["aside"] = scored(0.1, (-2, 1))
        choose = chooser(leases, cases)
        assert choose.next("diversity", list(cases), ["corner", "twin", "aside"], "ann")["id"] == "corner"
        assert choose.next("diversity", list(cases), ["twin", "aside"], "ann")["id"] == "aside"
        assert leases.held() == {"aside": "ann"}

    def test_what_others_are_labelling_counts_too(self, leases):
        cases = {"done": scored(0.1, (0, 0)), "corner": scored(0.1, (5, 5)), "twin": scored(0.1, (5, 4.9))}
        cases["aside"] = scored(0.1, (-2, 1))
        choose = chooser(leases, cases)
        free = ["corner", "twin", "aside"]
        assert [choose.next("diversity", list(cases), free, who)["id"] for who in ("ann", "bob")] == ["corner", "aside"]

    def test_image_that_came_just_now_can_be_chosen(self, leases):
        choose = chooser(leases)
        given = {choose.next("random", [*IMAGES, "new"], [*OPEN, "new"], f"{i}").get("id") for i in range(4)}
        assert given == {*OPEN, "new"}

    def test_better_scores_are_used_from_the_next_request_on(self, leases):
        tables = [("1", Table().extended(POOL)), ("2", Table().extended(POOL | {"sure": scored(0.99)}))]
        choose = Chooser(table=lambda: tables[0], leases=leases)
        assert choose.next("entropy", IMAGES, OPEN, "ann")["id"] == "torn"
        tables.pop(0)
        assert choose.next("entropy", IMAGES, OPEN, "bob")["id"] == "sure"

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_nothing_scored_yet(self, strategy, leases):
        choose = chooser(leases, {})
        assert {choose.next(strategy, IMAGES, OPEN, f"{i}")["id"] for i in range(3)} == set(OPEN)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", CONFIGS / "fusion_none.yaml", spacing=4.0)


@pytest.fixture
def served(run, tmp_path):
    """The app without its server, on six images, the second of which is the most uncertain."""
    made = app(write_balls(tmp_path / "studies"), bundle=run)
    names = made.datastore().list_images()
    table = Table().extended({name: scored(0.9 if i == 1 else 0.1, (i, 0)) for i, name in enumerate(names)})
    made.active.background._tables = {"0": table}
    made.active._scored = made.active._state(names)  # nothing is to be scored
    return made


class TestApp:
    def test_strategies_are_listed_the_default_first(self, served, run, tmp_path):
        assert list(served.info()["strategies"]) == list(STRATEGIES)
        assert all(entry["description"] for entry in served.info()["strategies"].values())
        other = app(tmp_path / "studies" / "imagesTr", bundle=run, strategy="entropy")
        assert next(iter(other.info()["strategies"])) == "entropy"
        with pytest.raises(
            ValueError, match=r"strategy is 'entrop' \(did you mean 'entropy'\?\); there are uncertain_"
        ):
            app(tmp_path / "studies" / "imagesTr", bundle=run, strategy="entrop")

    def test_labelled_image_is_not_offered(self, served, tmp_path):
        """G: a label counts from the next request on."""
        store = served.datastore()
        label = tmp_path / "studies" / "labelsTr" / "ball_00.nii.gz"
        store.save_label("ball_00", str(label), "final", {})
        assert served.next_sample({"strategy": "entropy", "client_id": "ann"})["id"] == "ball_01"
        store.save_label("ball_01", str(label.with_name("ball_01.nii.gz")), "final", {})
        offered = {served.next_sample({"strategy": "first", "client_id": f"{i}"}).get("id") for i in range(6)}
        assert offered == {"ball_02", "ball_03", "ball_04", "ball_05", None}

    def test_cold_start_is_diverse(self, served):
        assert served.next_sample({"strategy": "entropy"})["id"] != "ball_01"

    def test_answer_needs_no_network_and_no_file_of_an_image(self, served, monkeypatch):
        """Beside the folder's own list, which is in memory, it touches the lease file and the served version."""
        here, touched = threading.get_ident(), []  # the folder's watcher lists folders in its own thread

        def watched(real):
            def called(path=".", *arguments, **named):
                if threading.get_ident() == here:
                    touched.append((real.__name__, str(path)))
                return real(path, *arguments, **named)

            return called

        for name in ("stat", "lstat", "listdir", "scandir"):
            monkeypatch.setattr(os, name, watched(getattr(os, name)))
        monkeypatch.setattr(type(served._infers["tiny"]), "network", lambda *_: pytest.fail("asked for the network"))
        monkeypatch.setattr(type(served.datastore()), "get_image_info", lambda *_: pytest.fail("asked for an image"))
        images = served.datastore().list_images()
        given = served.active.next("entropy", images, images, "ann")
        assert given["id"]
        assert not [call for call in touched if call[1].endswith(".nii.gz") or call[0] in ("listdir", "scandir")]
        assert len(touched) < 10  # the lease file and the served version, whatever the number of images

    def test_ten_thousand_images(self, leases):
        """The work of a request: no time is asserted, but that a label costs one row of distances and no table."""
        rng = np.random.default_rng(0)
        cases = {f"{i:05d}": scored(rng.random(), rng.normal(size=2)) for i in range(10_000)}
        choose, names = chooser(leases, cases), list(cases)
        choose.prepare(names, names[:500])
        pool = choose._pool[2]
        compared = []
        between = pool.distances.between
        pool.distances.between = lambda some: compared.append(len(some)) or between(some)
        begin = time.perf_counter()
        assert choose.next("uncertain_and_diverse", names, names[501:], "ann")["id"] not in names[:501]
        assert choose._pool[2] is pool
        assert compared == [1]  # the new label
        print(f"{time.perf_counter() - begin:.3f} s")
