"""Several networks as one: the mean of their probabilities, on one grid or on several, with clinical rows or not."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from app_support import write_run, write_studies
from scripts import workflows
from scripts.ensemble import Ensemble, members_of
from scripts.segment import Segmenter
from scripts.uncertainty import entropy_map, foreground_mean
from support import CONFIGS, ball_dataset

CASE = "HCC_002"


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "cohort")


@pytest.fixture(scope="module")
def runs(studies, tmp_path_factory):
    """Two networks on one grid, one of them with clinical variables, and one on a coarser grid."""
    folder, table = tmp_path_factory.mktemp("runs"), studies / "clinical.csv"
    return {
        "clinical": write_run(folder / "clinical", table=table, seed=1),
        "image": write_run(folder / "image", CONFIGS / "fusion_none.yaml", seed=2),
        "coarse": write_run(folder / "coarse", table=table, spacing=11.0, seed=3),
    }


def image_of(studies):
    return studies / "imagesTr" / f"{CASE}.nii.gz"


def row_of(studies):
    rows = pd.read_csv(studies / "clinical.csv", dtype=str)
    return rows[rows.iloc[:, 0] == CASE].iloc[0][["age", "Sex"]].to_dict()


def parts_of(runs, studies, names, **extra):
    """Probabilities that each network alone gives."""
    return [Segmenter(runs[name])(image_of(studies), probabilities=True, **extra).probabilities for name in names]


class TestEnsemble:
    def test_of_one_is_that_one(self, runs, studies):
        one = Segmenter(runs["clinical"])(image_of(studies), probabilities=True, uncertainty=True)
        same = Ensemble([runs["clinical"]])(image_of(studies), probabilities=True, uncertainty=True)
        np.testing.assert_array_equal(one.mask, same.mask)
        np.testing.assert_allclose(one.probabilities, same.probabilities, atol=1e-3)
        np.testing.assert_allclose(one.uncertainty, same.uncertainty, atol=1e-4)

    @pytest.mark.parametrize("names", [("clinical", "image"), ("coarse", "image")], ids=["one grid", "two grids"])
    def test_is_the_mean_of_what_its_networks_give(self, runs, studies, names):
        parts = parts_of(runs, studies, names)
        assert not np.allclose(*parts, atol=0.1)
        found = Ensemble([runs[name] for name in names], keep_largest=[])(image_of(studies), probabilities=True)
        mean = np.mean([part.astype(float) for part in parts], 0)
        np.testing.assert_allclose(found.probabilities, mean, atol=2e-3)  # float16
        assert found.mask.shape == nib.load(image_of(studies)).shape
        clear = np.abs(mean[1] - 0.5) > 2e-3
        np.testing.assert_array_equal(found.mask[clear], mean.argmax(0)[clear])

    def test_uncertainty_is_that_of_the_mean(self, runs, studies):
        found = Ensemble([runs["coarse"], runs["image"]])(image_of(studies), probabilities=True, uncertainty=True)
        direct = entropy_map(torch.from_numpy(found.probabilities))
        np.testing.assert_allclose(found.uncertainty, direct.numpy(), atol=5e-3)
        score = foreground_mean(direct, torch.from_numpy(found.probabilities).float())
        assert found.uncertainty_score == pytest.approx(score, abs=2e-3)

    def test_clinical_row_reaches_the_networks_that_take_one(self, runs, studies):
        row = row_of(studies)
        known = Segmenter(runs["clinical"])(image_of(studies), clinical=row, probabilities=True).probabilities
        (alone,) = parts_of(runs, studies, ["image"])
        found = Ensemble([runs["image"], runs["clinical"]])(image_of(studies), clinical=row, probabilities=True)
        np.testing.assert_allclose(found.probabilities, (known.astype(float) + alone) / 2, atol=2e-3)
        assert not np.allclose(known, *parts_of(runs, studies, ["clinical"]), atol=0.01)

    def test_values_that_no_network_takes_or_that_are_wrong(self, runs, studies):
        together = Ensemble([runs["image"], runs["clinical"]])
        assert set(together.clinical_columns) == {"age", "Sex"}
        with pytest.raises(ValueError, match="No network of the ensemble takes 'AFP'"):
            together(image_of(studies), clinical={"AFP": 1})
        with pytest.raises(ValueError, match="out of range"):
            together(image_of(studies), clinical={"AGE": 600})

    def test_other_classes(self, runs, studies, tmp_path):
        other = write_run(tmp_path / "other", CONFIGS / "fusion_none.yaml")
        config = yaml.safe_load((other / "inference.yaml").read_text()) | {"labels": ["background", "heart"]}
        (other / "inference.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=r"other has the classes \['heart'\].*\['ball'\]"):
            Ensemble([runs["image"], other])

    def test_masks_that_are_cleaned_in_other_ways(self, runs, studies, tmp_path):
        other = write_run(tmp_path / "other", CONFIGS / "fusion_none.yaml")
        config = yaml.safe_load((other / "inference.yaml").read_text()) | {"keep_largest": []}
        (other / "inference.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match="Say what is to be done: --keep_largest"):
            Ensemble([runs["image"], other])
        assert Ensemble([runs["image"], other], keep_largest=[1]).cleaning == {"keep_largest": [1]}

    def test_nobody(self):
        with pytest.raises(ValueError, match="at least one run"):
            Ensemble([])


class TestInfer:
    """`nny infer --runs`: the same masks, the patients found in the table."""

    def test_masks_are_those_of_the_ensemble(self, runs, studies, tmp_path):
        table, names = studies / "clinical.csv", [runs["clinical"], runs["image"]]
        listed = ",".join(map(str, names))
        workflows.infer(str(studies), str(tmp_path / "out"), runs=listed, clinical=str(table), save_probabilities=True)
        expected = Ensemble(names)(image_of(studies), clinical=row_of(studies), probabilities=True)
        mask = nib.load(tmp_path / "out" / f"{CASE}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected.mask)
        np.testing.assert_allclose(mask.affine, nib.load(image_of(studies)).affine, atol=1e-4)
        scores = nib.load(tmp_path / "out" / f"{CASE}_probabilities.nii.gz").get_fdata()
        np.testing.assert_allclose(scores, np.moveaxis(expected.probabilities, 0, -1), atol=1e-6)
        assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3

    def test_table_that_no_network_takes(self, runs, studies, tmp_path):
        table = str(studies / "clinical.csv")
        with pytest.raises(ValueError, match="cannot use"):
            workflows.infer(str(studies), str(tmp_path), runs=str(runs["image"]), clinical=table)


class TestMembers:
    @pytest.fixture
    def folds(self, tmp_path):
        for name in ("a", "b"):
            for fold in (0, 1):
                (tmp_path / name / f"fold{fold}").mkdir(parents=True)
                (tmp_path / name / f"fold{fold}" / "model.pt").touch()
            (tmp_path / name / "postprocessing.yaml").write_text(
                f"keep_largest: [1]\nremove_small: {[[2, 0.5]] * (name == 'b')}\n"
            )
        return tmp_path

    def test_cross_validation_stands_for_its_folds_and_its_choice(self, folds):
        found, settings = members_of([folds / "b"], {"tta_axes": [0]})
        assert found == [folds / "b" / "fold0", folds / "b" / "fold1"]
        assert settings == {"keep_largest": [1], "remove_small": [[2, 0.5]], "tta_axes": [0]}
        assert members_of([folds / "b"], {"remove_small": []})[1] == {"keep_largest": [1], "remove_small": []}

    def test_different_choices_are_for_the_user_to_settle(self, folds):
        with pytest.raises(ValueError, match="chose different ways to clean masks"):
            members_of([folds / "a", folds / "b"], {})
        found, _ = members_of([folds / "a", folds / "b"], {"remove_small": []})
        assert len(found) == 4

    def test_a_run_twice(self, folds):
        with pytest.raises(ValueError, match="would count twice"):
            members_of([folds / "a", folds / "a" / "fold1"], {})


def test_flips_of_a_run(tmp_path):
    """`--tta_axes` reaches inference, and the mask of an odd network is another one."""
    images = ball_dataset(tmp_path / "balls", 1) / "imagesTr"
    run = write_run(tmp_path / "run", CONFIGS / "fusion_none.yaml", spacing=2.0)
    found = [
        Segmenter(run, **extra)(images / "ball_00.nii.gz", probabilities=True).probabilities
        for extra in ({}, {"tta_axes": [0, 1]})
    ]
    assert not np.allclose(*found, atol=0.01)
    mirrored = nib.load(images / "ball_00.nii.gz")
    mirrored = nib.Nifti1Image(mirrored.get_fdata(dtype=np.float32)[::-1].copy(), mirrored.affine)
    nib.save(mirrored, tmp_path / "mirrored.nii.gz")
    other = Segmenter(run, tta_axes=[0, 1])(tmp_path / "mirrored.nii.gz", probabilities=True).probabilities
    np.testing.assert_allclose(other[:, ::-1], found[1], atol=2e-3)  # sees no difference between left and right
