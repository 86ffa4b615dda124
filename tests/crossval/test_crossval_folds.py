"""A cross-validation from the data to the page: folds one by one as an array runs them, then put together."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from monai.data import MetaTensor
from scripts import workflows
from scripts.compare.collect import read_runs
from scripts.compare.statistics import interval
from scripts.crossval import crossval, running, score
from scripts.crossval.candidates import cleaned
from scripts.crossval.scoring import score_masks
from scripts.datalists import evaluation_cases
from scripts.report import report
from support import TINY, ball_dataset, write_nifti

FOLDS = [0, 1, 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six balls in three folds, and an overlay."""
    root = tmp_path_factory.mktemp("crossval")
    data = ball_dataset(root / "data", 6, size=16)
    content = json.loads((data / "dataset.json").read_text())
    for i, case in enumerate(content["training"]):
        case |= {"fold": i % 3, "patient_id": f"p{i}"}
    (data / "dataset.json").write_text(json.dumps(content))
    (root / "tiny.yaml").write_text(TINY + "keep_largest: [1]\n")
    return root


def run(place, output="out", **settings):
    """Cross-validate, with every fold in this process: starting one for each takes longer than training it."""
    options = {"overlays": f"fusion_none,{place / 'tiny.yaml'}", "epochs": 2, "patch_size": [16, 16, 16]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "alone", lambda function, *arguments: function(*arguments))
        return crossval(str(place / "data"), str(place / output), **(options | settings))


def give_masks(place, fold):
    """In place of what two epochs make: masks near the truth, each with a speck far away."""
    plan = running.Plan(str(place / "data"), place / "out", (), {})

    def mask(case):
        label = nib.load(case["reference"])
        near = np.roll(np.asarray(label.dataobj), 1 + int(case["case_id"][-1]) % 2, 0)
        near[:2, :2, -2:] = 1
        write_nifti(plan.run(fold) / "raw" / "masks" / f"{case['case_id']}.nii.gz", near, label.affine)
        return MetaTensor(near[None], affine=label.affine)

    score_masks(plan.run(fold), evaluation_cases(plan.dataset, fold), mask, plan.run(fold) / "raw")
    running.write_candidates(plan, fold)


@pytest.fixture(scope="module")
def finished(place):
    """Folds as two jobs of an array train them, then all together."""
    assert "1 of 3 folds; still to do: 0, 2" in run(place, folds=1)
    assert "3 of 3 folds; all are finished" in run(place, folds="0,2")
    for fold in FOLDS:
        give_masks(place, fold)
    assert run(place) == str(place / "out" / "index.html")
    return place / "out"


def test_every_patient_is_scored_once_by_a_network_that_never_saw_him(finished):
    cases = pd.read_csv(finished / "cases.csv")
    total = cases[cases["class"] == "Total"]
    assert sorted(total["patient"]) == [f"p{i}" for i in range(6)]
    for fold, part in total.groupby("fold"):
        lists = json.loads((finished / f"fold{fold}" / "datalist.json").read_text())
        assert set(part["patient"]) == {case["patient_id"] for case in lists["validation"]}
        assert not set(part["patient"]) & {case["patient_id"] for case in lists["training"]}
    assert len(list((finished / "evaluation" / "masks").iterdir())) == 6


def test_numbers_are_those_of_the_cases(finished):
    own = pd.read_csv(finished / "evaluation" / "per_case.csv").set_index("case_id")["dice"]
    summary = pd.read_csv(finished / "summary.csv").set_index(["class", "metric"])
    row = summary.loc[("ball", "dice")]
    assert row["mean"] == pytest.approx(own.mean())
    assert row["sd"] == pytest.approx(own.std(ddof=1))
    assert (row["low"], row["high"]) == pytest.approx(interval(own, list(own.index)))
    assert row["n"] == 6
    folds = pd.read_csv(finished / "folds.csv")
    folds = folds[(folds["class"] == "ball") & (folds["metric"] == "dice")].set_index("fold")
    for fold in FOLDS:
        assert folds.loc[fold, "mean"] == pytest.approx(own[[f"ball_{fold:02d}", f"ball_{fold + 3:02d}"]].mean())
    assert row["fold_sd"] == pytest.approx(folds["mean"].std(ddof=1))
    raw = pd.concat([pd.read_csv(finished / f"fold{fold}" / "raw" / "per_case.csv") for fold in FOLDS])
    assert row["raw"] == pytest.approx(raw["dice"].mean())


def test_masks_are_cleaned_as_the_other_folds_chose(finished):
    evidence = pd.read_csv(finished / "postprocessing.csv")
    chosen = evidence[evidence["chosen"]].set_index("for")["option"]
    assert chosen.to_dict() == dict.fromkeys(["fold 0", "fold 1", "fold 2", "ensemble"], "largest")
    assert (evidence[evidence["for"] == "fold 0"]["patients"] == 4).all()
    for fold in FOLDS:
        settings = json.loads((finished / f"fold{fold}" / "cleaned" / "settings.json").read_text())
        assert settings == {"keep_largest": [1], "remove_small": []}
        file = f"ball_{fold:02d}.nii.gz"
        expected = cleaned(finished / f"fold{fold}" / "raw" / "masks" / file, settings)
        np.testing.assert_array_equal(
            np.asarray(nib.load(finished / "evaluation" / "masks" / file).dataobj), expected.numpy()[0]
        )
    assert yaml.safe_load((finished / "postprocessing.yaml").read_text()) == settings
    summary = pd.read_csv(finished / "summary.csv").set_index(["class", "metric"])
    assert summary.loc[("ball", "dice"), "mean"] > summary.loc[("ball", "dice"), "raw"] + 0.001
    assert summary.loc[("ball", "assd"), "mean"] < summary.loc[("ball", "assd"), "raw"]


def test_a_fold_has_no_say_in_how_its_own_masks_are_cleaned(finished, place, monkeypatch):
    """Were every mask of fold 0 right as it is, folds 1 and 2 and the ensemble would leave masks alone; not fold 0."""
    folder = shutil.copytree(finished, place / "differ")
    table = pd.read_csv(folder / "fold0" / "candidates.csv")
    table["dice"] = (table["option"] == "none").astype(float)
    table.to_csv(folder / "fold0" / "candidates.csv", index=False)
    monkeypatch.setattr(running, "make_fold", lambda *_: pytest.fail("trained again"))
    run(place, "differ")
    kept, alone = {"keep_largest": [1], "remove_small": []}, {"keep_largest": [], "remove_small": []}
    for fold, settings in enumerate((kept, alone, alone)):
        assert json.loads((folder / f"fold{fold}" / "cleaned" / "settings.json").read_text()) == settings
        raw, scored = (
            np.asarray(nib.load(folder / part / "masks" / f"ball_{fold:02d}.nii.gz").dataobj)
            for part in (f"fold{fold}/raw", "evaluation")
        )
        assert np.array_equal(raw, scored) == (settings == alone)
    assert yaml.safe_load((folder / "postprocessing.yaml").read_text()) == alone


def test_nothing_is_trained_again_and_the_page_is_the_same(finished, place, monkeypatch):
    before = (finished / "index.html").read_bytes(), (finished / "summary.csv").read_bytes()
    monkeypatch.setattr(running, "make_fold", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("scripts.crossval.gather.score_masks", lambda *_: pytest.fail("scored again"))
    run(place)
    assert before == ((finished / "index.html").read_bytes(), (finished / "summary.csv").read_bytes())


def test_other_terms_are_refused(finished, place):
    for other in ({"epochs": 3}, {"seed": 1}, {"overlays": str(place / "tiny.yaml")}):
        with pytest.raises(ValueError, match="was begun with other terms: .*cannot be put together"):
            run(place, **other)


def test_the_cohort_is_read_like_a_run(finished, tmp_path):
    (found,) = read_runs([f"mine={finished}"])
    assert found.files.per_case["case_id"].nunique() == 6
    assert found.seed == 0
    assert "ball_05" in Path(report(str(finished), output=str(tmp_path / "report.html"))).read_text()


def test_the_networks_segment_together(finished, place, tmp_path):
    """`nny infer --runs <cross-validation>`: three networks, cleaned as chosen, a patient's mask near the truth."""
    image = place / "data" / "imagesTr" / "ball_00.nii.gz"
    workflows.infer(str(image), str(tmp_path), runs=str(finished))
    record = json.loads((tmp_path / "inference.json").read_text())
    assert [Path(name).name for name in record["networks"]] == ["fold0", "fold1", "fold2"]
    assert record["settings"] == {"keep_largest": "[1]", "remove_small": "[]"}
    assert nib.load(tmp_path / "ball_00_seg.nii.gz").shape == (16, 16, 16)


def test_masks_in_files_are_scored_as_those_of_a_network(finished, place, tmp_path):
    """The masks of a fold, under the names that `nny infer` gives them, score what the fold scored."""
    for file in (finished / "fold1" / "cleaned" / "masks").iterdir():
        (tmp_path / file.name.replace(".nii.gz", "_seg.nii.gz")).write_bytes(file.read_bytes())
    path = Path(score(str(tmp_path), str(place / "data"), str(finished), fold=1))
    assert json.loads(path.read_text()) == json.loads((finished / "fold1" / "cleaned" / "summary.json").read_text())
    assert read_runs([f"files={tmp_path}"])[0].files.per_case["case_id"].tolist() == ["ball_01", "ball_04"]
    with pytest.raises(FileNotFoundError, match="holds no ball_00_seg.nii.gz"):
        score(str(tmp_path), str(place / "data"), str(finished))


def test_page_names_what_a_reader_needs(finished):
    page = (finished / "index.html").read_text()
    for text in (
        "ball: largest part alone",
        "3 folds, 6 cases of 6 patients",
        "Only 6 patients",
        "--runs out",
        "never saw the patient",
    ):
        assert text in page, text


class TestRefusals:
    @pytest.mark.parametrize("folds", [3, "0,x", "", (0, 7)])
    def test_folds_that_are_not_there(self, place, folds):
        with pytest.raises(ValueError, match=r"the dataset has the folds \[0, 1, 2\]"):
            run(place, "other", folds=folds)
        assert not (place / "other").exists()

    def test_ids_of_its_own(self, place):
        with pytest.raises(ValueError, match="fold is not for a cross-validation to set"):
            run(place, "other", fold=1)

    def test_a_fold_that_fails_leaves_the_others(self, place, monkeypatch):
        made = []

        def broken(plan, fold):
            if fold == 1:
                raise ValueError("labels are missing")
            made.append(fold)

        monkeypatch.setattr(running, "make_fold", broken)
        with pytest.raises(RuntimeError, match="1 of 3 folds failed, fold 1 by: labels are missing"):
            run(place, "failing")
        assert made == [0, 2]

    def test_folds_are_shared_by_processes(self, place, monkeypatch):
        made = []
        monkeypatch.setattr(running, "make_fold", lambda plan, fold: made.append((fold, "RANK" in os.environ)))
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        assert "still to do" in run(place, "shared")
        assert made == [(1, False)]

    def test_a_fold_that_fails_does_not_end_its_process_while_others_train(self, place, monkeypatch, capsys):
        monkeypatch.setattr(running, "make_fold", lambda plan, fold: (_ for _ in ()).throw(ValueError("no labels")))
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(name, value)
        assert "0 of 3 folds; still to do: 0, 1, 2" in run(place, "unfinished")
        assert "1 of 1 folds failed, fold 1 by: no labels" in capsys.readouterr().out

    def test_folds_of_another_split_are_not_put_together(self, finished, place):
        file = finished / "fold1" / "datalist.json"
        before = file.read_text()
        content = json.loads(before)
        content["validation"] = content["validation"][:1]
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="held out other cases"):
            run(place)
        file.write_text(before)

    def test_folds_that_were_configured_differently(self, finished, place):
        file = finished / "fold2" / "config.yaml"
        before = file.read_text()
        file.write_text(yaml.safe_dump(yaml.safe_load(before) | {"learning_rate": 5}))
        with pytest.raises(ValueError, match="trained with other settings than .*learning_rate"):
            run(place)
        file.write_text(before)
