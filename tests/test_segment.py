"""Segmentation from Python: the masks of `nny infer`, from files and arrays, one by one or from several threads."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from app_support import write_run, write_studies
from scripts import segment as module
from scripts import workflows
from scripts.acquisition import CaseScorer
from scripts.networks import load_weights
from scripts.segment import Segmenter, segment
from scripts.uncertainty import entropy_map
from support import CONFIGS, write_nifti

CASES = ("HCC_001", "HCC_002", "HCC_003")  # as it is, stored in other axes, tilted


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "cohort")


@pytest.fixture(scope="module")
def run(studies, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", table=studies / "clinical.csv")


@pytest.fixture(scope="module")
def model(run):
    return Segmenter(run)


@pytest.fixture(scope="module")
def image_only(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "image_only", CONFIGS / "fusion_none.yaml")


@pytest.fixture(scope="module")
def expected(run, studies, tmp_path_factory):
    """What `nny infer` writes, with the clinical table and without."""
    folder = tmp_path_factory.mktemp("expected")
    for name, table in (("known", str(studies / "clinical.csv")), ("unknown", None)):
        workflows.infer(str(studies), str(folder / name), run=str(run), clinical=table, save_probabilities=True)
    return folder


def row_of(studies, case):
    """The patient's row of the table, as a user would type it."""
    rows = pd.read_csv(studies / "clinical.csv", dtype=str)
    row = rows[rows.iloc[:, 0] == case].iloc[0]
    return {name: row[name] for name in ("age", "Sex")}


def scan(studies, case="HCC_001"):
    return studies / "imagesTr" / f"{case}.nii.gz"


class TestSameAsInfer:
    @pytest.mark.parametrize("case", CASES)
    def test_file(self, model, studies, expected, case):
        for name, clinical in (("unknown", None), ("known", row_of(studies, case))):
            result = model(scan(studies, case), clinical=clinical)
            file = nib.load(expected / name / f"{case}_seg.nii.gz")
            assert result.mask.dtype == np.uint8
            np.testing.assert_array_equal(result.mask, np.asarray(file.dataobj))
            np.testing.assert_allclose(result.affine, file.affine, atol=1e-4)
            assert set(np.unique(result.mask)) == {0, 1}

    @pytest.mark.parametrize("case", CASES)
    def test_array(self, model, studies, expected, case):
        image = nib.load(scan(studies, case))
        voxels = image.get_fdata()
        before = voxels.copy()
        result = model(voxels, affine=image.affine)
        file = nib.load(expected / "unknown" / f"{case}_seg.nii.gz")
        np.testing.assert_array_equal(result.mask, np.asarray(file.dataobj))
        np.testing.assert_array_equal(result.affine, image.affine)
        np.testing.assert_array_equal(voxels, before)

    def test_array_of_integers_and_of_another_layout(self, model, studies):
        image = nib.load(scan(studies))
        voxels = np.asarray(image.dataobj).round().astype(np.int16)
        masks = [
            model(array, affine=image.affine).mask for array in (voxels, np.asfortranarray(voxels), voxels[:, ::-1])
        ]
        np.testing.assert_array_equal(masks[0], masks[1])
        assert (masks[0] != masks[2]).any()
        np.testing.assert_array_equal(model(torch.from_numpy(voxels), affine=image.affine).mask, masks[0])

    def test_dicom_folder(self, model, run, tmp_path):
        from scripts.prepare.phantom import write_phantom_cohort

        write_phantom_cohort(
            str(tmp_path / "raw"), cases=1, matrix=48, slices=16, decoys=False, workers=1, progress=False
        )
        series = next(p.parent for p in (tmp_path / "raw").rglob("*.dcm") if len(list(p.parent.glob("*.dcm"))) > 1)
        workflows.infer(str(series), str(tmp_path / "out"), run=str(run))
        file = nib.load(next((tmp_path / "out").glob("*_seg.nii.gz")))
        result = model(str(series))
        np.testing.assert_array_equal(result.mask, np.asarray(file.dataobj))
        np.testing.assert_allclose(result.affine, file.affine, atol=1e-4)

    def test_probabilities(self, model, studies, expected):
        result = model(scan(studies), probabilities=True)
        file = nib.load(expected / "unknown" / "HCC_001_probabilities.nii.gz")
        np.testing.assert_array_equal(np.moveaxis(result.probabilities, 0, -1), np.asarray(file.dataobj))
        np.testing.assert_allclose(result.probabilities.astype(float).sum(0), 1, atol=2e-3)
        assert not (result.mask & (result.probabilities.argmax(0) == 0)).any()  # the largest component of the argmax

    def test_several_channels(self, tmp_path):
        overlay = tmp_path / "two_channels.yaml"
        overlay.write_text("in_channels: 2\n")
        run = write_run(tmp_path / "two", CONFIGS / "fusion_none.yaml", overlay)
        voxels = np.random.default_rng(0).normal(size=(20, 24, 16, 2)).astype(np.float32)
        affine = np.diag([8.0, 8.0, 8.0, 1.0])
        file = write_nifti(tmp_path / "scan.nii.gz", voxels, affine)
        workflows.infer(str(file), str(tmp_path / "out"), run=str(run))
        mask = np.asarray(nib.load(tmp_path / "out" / "scan_seg.nii.gz").dataobj)
        two = Segmenter(run)
        np.testing.assert_array_equal(two(file).mask, mask)
        np.testing.assert_array_equal(two(voxels, affine=affine).mask, mask)
        with pytest.raises(ValueError, match=r"takes one volume, \(H, W, D, 2\)"):
            two(voxels[..., 0], affine=affine)


class TestClinical:
    def test_values_change_the_answer(self, model, studies):
        young, old, nothing, unknown = (
            model(scan(studies), clinical=values, probabilities=True).probabilities
            for values in ({"age": 40}, {"age": 80}, {}, None)
        )
        assert (young != old).any()
        assert (young != unknown).any()
        np.testing.assert_array_equal(nothing, unknown)

    def test_columns_say_what_may_be_given(self, model, image_only):
        assert list(model.clinical_columns) == ["age", "Sex"]
        assert model.clinical_columns["age"].startswith("a number from ")
        assert Segmenter(image_only).clinical_columns == {}

    def test_wrong_values_are_refused_before_the_image_is_read(self, model, image_only, studies):
        with pytest.raises(ValueError, match=r"no clinical column 'aeg' \(did you mean 'age'\?\)"):
            model("nowhere.nii.gz", clinical={"aeg": 60})
        with pytest.raises(ValueError, match="column \"age\": 'old' is not a number"):
            model("nowhere.nii.gz", clinical={"age": "old"})
        with pytest.raises(ValueError, match="out of range"):
            model("nowhere.nii.gz", clinical={"age": 600})
        with pytest.raises(TypeError, match="expected a dict"):
            model("nowhere.nii.gz", clinical=[60])
        with pytest.raises(ValueError, match="takes images alone"):
            Segmenter(image_only)(scan(studies), clinical={"age": 60})


class TestUncertainty:
    def test_score_is_that_of_active_learning(self, model, run, studies):
        """The one number for a case means the same wherever it is shown."""
        config = module._config(run, {})
        network = config.get_parsed_content("network")
        load_weights(network, config.get_parsed_content("checkpoint"))
        ready = config.get_parsed_content("preprocessing")({"image": str(scan(studies))})
        scorer = CaseScorer(network=network, inferer=config.get_parsed_content("inferer"), samples=0, flip_axes=())
        expected = scorer(ready["image"][None], ready["clinical"][None]).scores["entropy"]
        assert 0 < expected < 1
        assert model(scan(studies)).uncertainty_score == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("case", CASES)
    def test_map_is_that_of_its_probabilities(self, model, studies, case):
        result = model(scan(studies, case), probabilities=True, uncertainty=True)
        direct = entropy_map(torch.from_numpy(result.probabilities)).numpy()
        assert result.uncertainty.shape == result.mask.shape
        assert direct.max() > 0.9
        np.testing.assert_allclose(result.uncertainty, direct, atol=5e-3)  # float16

    def test_nothing_is_kept_that_was_not_asked_for(self, model, studies):
        result = model(scan(studies))
        assert result.probabilities is None
        assert result.uncertainty is None

    def test_saved_maps(self, model, studies, tmp_path):
        result = model(scan(studies), probabilities=True, uncertainty=True)
        result.save(tmp_path / "p.nii.gz", "probabilities")
        result.save(tmp_path / "u.nii.gz", "uncertainty")
        saved = nib.load(tmp_path / "p.nii.gz").get_fdata()
        np.testing.assert_array_equal(np.moveaxis(saved, -1, 0), result.probabilities)
        np.testing.assert_array_equal(nib.load(tmp_path / "u.nii.gz").get_fdata(), result.uncertainty)


class TestLoading:
    def test_once(self, run, studies, expected, tmp_path):
        """After loading no file of the run is looked at again."""
        copy = shutil.copytree(run, tmp_path / "copy")
        model = Segmenter(copy, device="cpu")
        shutil.rmtree(copy)
        for _ in range(2):
            mask = model(scan(studies), clinical=row_of(studies, "HCC_001")).mask
        np.testing.assert_array_equal(mask, np.asarray(nib.load(expected / "known" / "HCC_001_seg.nii.gz").dataobj))

    def test_in_one_call(self, run, studies, expected):
        result = segment(str(scan(studies)), run, uncertainty=True)
        np.testing.assert_array_equal(
            result.mask, np.asarray(nib.load(expected / "unknown" / "HCC_001_seg.nii.gz").dataobj)
        )
        assert result.uncertainty_score > 0

    def test_overrides_are_those_of_infer(self, run, studies, tmp_path):
        workflows.infer(str(scan(studies)), str(tmp_path), run=str(run), keep_largest=[], **{"inferer::overlap": 0.0})
        mask = Segmenter(run, keep_largest=[], **{"inferer::overlap": 0.0})(scan(studies)).mask
        np.testing.assert_array_equal(mask, np.asarray(nib.load(tmp_path / "HCC_001_seg.nii.gz").dataobj))
        with pytest.raises(ValueError, match=r"has no 'keep_larges' \(did you mean 'keep_largest'"):
            Segmenter(run, keep_larges=[])

    def test_refusals(self, run, image_only, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder of a run or bundle"):
            Segmenter(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"it has no configs/inference\.yaml"):
            Segmenter(tmp_path)
        other = shutil.copytree(image_only, tmp_path / "other")
        shutil.copy(run / "model.pt", other / "model.pt")
        with pytest.raises(ValueError, match="another network"):
            Segmenter(other)
        lost = shutil.copytree(run, tmp_path / "lost")
        (lost / "clinical.json").unlink()
        with pytest.raises(FileNotFoundError, match="clinical statistics"):
            Segmenter(lost)


class TestReleased:
    @pytest.fixture(scope="class")
    def bundle(self, run, tmp_path_factory):
        """The files of a released bundle that serve it."""
        folder = tmp_path_factory.mktemp("released") / "tiny"
        (folder / "configs").mkdir(parents=True)
        shutil.copy(run / "inference.yaml", folder / "configs")
        shutil.copy(CONFIGS / "clinical_hcc_tace.yaml", folder / "configs")
        (folder / "models").mkdir()
        for name in ("model.pt", "clinical.json"):
            shutil.copy(run / name, folder / "models")
        return folder

    def test_folder(self, bundle, studies, expected):
        result = Segmenter(bundle)(scan(studies), clinical=row_of(studies, "HCC_001"))
        file = nib.load(expected / "known" / "HCC_001_seg.nii.gz")
        np.testing.assert_array_equal(result.mask, np.asarray(file.dataobj))

    def test_zip_is_verified_and_leaves_nothing(self, bundle, studies, expected, tmp_path, monkeypatch):
        """The copy that the verifier gives is what is read, and it may go when everything is loaded."""
        asked = []

        @contextmanager
        def verified(path):
            asked.append(str(path))
            with tempfile.TemporaryDirectory() as folder:
                yield shutil.copytree(bundle, Path(folder) / "tiny")

        monkeypatch.setattr("scripts.verify.verified", verified)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        signed = shutil.copytree(bundle, tmp_path / "signed")
        (signed / "SHA256SUMS").write_text("")
        archive = shutil.make_archive(str(tmp_path / "tiny_v1"), "zip", bundle.parent, "tiny")
        file = nib.load(expected / "unknown" / "HCC_001_seg.nii.gz")
        for model in (signed, archive):
            np.testing.assert_array_equal(Segmenter(model)(scan(studies)).mask, np.asarray(file.dataobj))
        assert asked == [str(signed), archive]
        assert not list((tmp_path / "temporary").iterdir())

    def test_altered_bundle_is_refused(self, bundle, tmp_path):
        signed = shutil.copytree(bundle, tmp_path / "signed")
        (signed / "SHA256SUMS").write_text(f"{'0' * 64}  configs/inference.yaml\n")
        with pytest.raises(ValueError, match="not the released ones"):
            Segmenter(signed)

    def test_zip_without_a_verifier_is_refused(self, bundle, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        archive = shutil.make_archive(str(tmp_path / "tiny_v1"), "zip", bundle.parent, "tiny")
        with pytest.raises(ValueError, match="Unpack it, and give the folder"):
            Segmenter(archive)


def test_threads_do_not_mix(model, studies):
    asked = [(case, clinical) for case in CASES for clinical in ({"age": 40, "Sex": 1}, {"age": 80})]
    alone = [model(scan(studies, case), clinical=clinical, uncertainty=True) for case, clinical in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = pool.map(lambda a: model(scan(studies, a[0]), clinical=a[1], uncertainty=True), asked)
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)
            np.testing.assert_array_equal(one.uncertainty, other.uncertainty)
            np.testing.assert_array_equal(one.affine, other.affine)
