"""A cohort segmented in shares: every case once, none again, and no half a mask whatever happens."""

import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from app_support import write_run
from ignite.engine import Engine
from scripts import cohort, workflows
from scripts.cohort import Delivery, begin, identity, open_cases
from support import CONFIGS, ball_dataset

NAMES = [f"ball_{k:02d}" for k in range(4)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images, one of them with a name that a configuration would run as code, and a run."""
    root = tmp_path_factory.mktemp("cohort")
    ball_dataset(root / "balls", 5, size=16)
    images = root / "balls" / "imagesTr"
    (images / "ball_04.nii.gz").rename(images / "$print('x').nii.gz")
    write_run(root / "run", CONFIGS / "fusion_none.yaml", spacing=2.0)
    return root


def infer(place, output, **options):
    workflows.infer(str(place / "balls" / "imagesTr"), str(output), run=str(place / "run"), **options)


def masks(folder):
    return {file.name: np.asarray(nib.load(file).dataobj) for file in folder.glob("*.nii.gz")}


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def whole(place):
    infer(place, place / "whole")
    return place / "whole"


def test_shares_are_the_whole(place, whole, tmp_path, monkeypatch):
    """Five cases for two processes: one by --shard, the other as torchrun tells it."""
    infer(place, tmp_path / "out", shard="0/2")
    assert sorted(masks(tmp_path / "out")) == ["$print('x')_seg.nii.gz", "ball_01_seg.nii.gz", "ball_03_seg.nii.gz"]
    first = times(tmp_path / "out")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    infer(place, tmp_path / "out")
    found, expected = masks(tmp_path / "out"), masks(whole)
    assert found.keys() == expected.keys()
    assert len(found) == 5
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert {name: times(tmp_path / "out")[name] for name in first} == first
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.endswith(".nii.gz")) == ["inference.json"]


def test_same_command_makes_what_is_missing(place, whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole, tmp_path / "out", copy_function=shutil.copy2)
    (tmp_path / "out" / "ball_02_seg.nii.gz").unlink()
    before = times(tmp_path / "out")
    made = []
    monkeypatch.setattr(workflows, "_run", lambda *_, **settings: made.extend(settings["dataset::data"]))
    infer(place, tmp_path / "out")
    assert [case["case_id"] for case in made] == ["ball_02"]
    assert "4 of 5 masks are there already" in capsys.readouterr().out
    assert times(tmp_path / "out") == before
    made.clear()
    infer(place, tmp_path / "out", tta_axes=[0])  # something else than what made them
    assert len(made) == 5


def test_failure_leaves_whole_masks_and_the_rest_is_made_later(place, tmp_path, monkeypatch):
    deliver, count = Delivery.__call__, []

    def broken(self):
        if count:
            raise RuntimeError("the machine was needed elsewhere")
        count.append(deliver(self))

    monkeypatch.setattr(Delivery, "__call__", broken)
    with pytest.raises(RuntimeError, match="needed elsewhere"):
        infer(place, tmp_path / "out", shard="1/3")
    assert len(masks(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob(".making-*"))


@pytest.fixture
def listed(tmp_path):
    """Cases and their finished masks."""
    cases = []
    for name in NAMES:
        image = tmp_path / "images" / f"{name}.nii.gz"
        image.parent.mkdir(exist_ok=True)
        image.touch()
        cases.append({"case_id": name, "image": str(image)})
    begin(tmp_path / "out", {"settings": {}})
    for name in NAMES:
        (tmp_path / "out" / f"{name}_seg.nii.gz").touch()
    return cases


def later(file, seconds):
    stamp = file.stat().st_mtime_ns + int(seconds * 1e9)
    os.utime(file, ns=(stamp, stamp))


class TestOpenCases:
    def test_all_are_finished(self, listed, tmp_path):
        begin(tmp_path / "out", {"settings": {}})
        assert open_cases(listed, tmp_path / "out") == []

    def test_newer_image(self, listed, tmp_path):
        later(tmp_path / "images" / "ball_01.nii.gz", 60)
        assert [case["case_id"] for case in open_cases(listed, tmp_path / "out")] == ["ball_01"]

    def test_probabilities_are_wanted_too(self, listed, tmp_path):
        (tmp_path / "out" / "ball_00_probabilities.nii.gz").touch()
        found = open_cases(listed, tmp_path / "out", probabilities=True)
        assert [case["case_id"] for case in found] == NAMES[1:]

    def test_made_by_something_else(self, listed, tmp_path):
        for name in NAMES:
            later(tmp_path / "out" / f"{name}_seg.nii.gz", -60)
        begin(tmp_path / "out", {"settings": {"tta_axes": "[0]"}})
        later(tmp_path / "out" / "ball_03_seg.nii.gz", 120)  # made again since
        assert [case["case_id"] for case in open_cases(listed, tmp_path / "out")] == NAMES[:3]
        begin(tmp_path / "out", {"settings": {}})  # back, but those of the first time cannot be told apart
        later(tmp_path / "out" / cohort.RECORD, 120)
        assert open_cases(listed, tmp_path / "out") == listed


def test_what_made_masks_is_told_by_content(place, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a")
    one = identity("images", [place / "run"], str(table), {"tta_axes": [0]})
    table.write_text("b")
    other = identity("images", [place / "run"], str(table), {"tta_axes": [0]})
    assert one["networks"] == other["networks"]
    assert one["clinical"] != other["clinical"]
    assert set(one["networks"][str(place / "run")]) == {"model.pt", "inference.yaml"}


def test_mask_comes_last(tmp_path, monkeypatch):
    """Whoever sees a mask finds what belongs to it."""
    (tmp_path / "a").mkdir()
    for name in ("c_seg.nii.gz", "c_probabilities.nii.gz"):
        (tmp_path / "a" / name).touch()
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b.name), replace(a, b)))
    engine = Engine(lambda *_: None)
    (tmp_path / "b").mkdir()
    Delivery(source=str(tmp_path / "a"), target=str(tmp_path / "b")).attach(engine)
    engine.run([0])
    assert moved == ["c_probabilities.nii.gz", "c_seg.nii.gz"]
    assert not list((tmp_path / "a").iterdir())
