"""The annotation app without its server: the same masks as `nny infer`, and refusals that say what to do."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from app_support import app, task, write_run, write_studies
from fastapi import HTTPException
from scripts import workflows
from support import CONFIGS

from monailabel_app.serve import images_folder, serve


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "cohort")


@pytest.fixture(scope="module")
def run(studies, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", table=studies / "clinical.csv")


@pytest.fixture(scope="module")
def image_only_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "image_only", CONFIGS / "fusion_none.yaml")


@pytest.fixture(scope="module")
def expected(run, studies, tmp_path_factory):
    """What `nny infer` writes, with the clinical table and without."""
    folder = tmp_path_factory.mktemp("expected")
    for name, table in (("known", str(studies / "clinical.csv")), ("unknown", None)):
        workflows.infer(str(studies), str(folder / name), run=str(run), clinical=table)
    return folder


def assert_same_mask(file, other):
    mask, expected = nib.load(file), nib.load(other)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)


@pytest.mark.parametrize("case", ["HCC_001", "HCC_002", "HCC_003"])
def test_mask_is_that_of_infer(run, studies, expected, case):
    """A, K: no path of a client gets among the case's images; the mask is on the grid of the source."""
    image = studies / "imagesTr" / f"{case}.nii.gz"
    masks = {}
    for name, table in (("known", studies / "clinical.csv"), ("unknown", None)):
        file, result = task(run, table)({"image": str(image)})
        assert_same_mask(file, expected / name / f"{case}_seg.nii.gz")
        assert result["label_names"] == {"ball": 1}
        assert result["clinical"]["source"] == {"known": "table", "unknown": "none"}[name]
        masks[name] = np.asarray(nib.load(file).dataobj)
    assert np.unique(masks["known"]).tolist() == [0, 1]
    assert (masks["known"] != masks["unknown"]).any()


def test_patient_that_is_not_in_the_table_is_unknown_and_the_answer_says_so(run, studies, expected, tmp_path):
    image = tmp_path / "somebody.nii.gz"
    image.write_bytes((studies / "imagesTr" / "HCC_001.nii.gz").read_bytes())
    file, result = task(run, studies / "clinical.csv")({"image": str(image)})
    assert_same_mask(file, expected / "unknown" / "HCC_001_seg.nii.gz")
    assert result["clinical"]["message"].startswith("Nothing is known of patient 'somebody'")
    assert result["clinical"]["unknown"] == ["age", "Sex"]


def test_format_that_slicer_asks_for(run, studies, expected):
    import itk

    image = studies / "imagesTr" / "HCC_002.nii.gz"
    request = {"image": str(image), "result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}
    file, _ = task(run)(request)
    assert file.endswith(".nrrd")
    mask = itk.imread(file)
    same = itk.imread(str(expected / "unknown" / "HCC_002_seg.nii.gz"))
    np.testing.assert_array_equal(itk.array_from_image(mask), itk.array_from_image(same))
    np.testing.assert_allclose(mask.GetOrigin(), same.GetOrigin(), atol=1e-3)


@pytest.mark.parametrize("case", ["HCC_002", "HCC_003"])
def test_map_of_the_uncertainty_lies_on_the_grid_of_the_image(run, studies, case):
    image = nib.load(studies / "imagesTr" / f"{case}.nii.gz")
    file, result = task(run)({"image": image.get_filename(), "result": "entropy"})
    found = nib.load(file)
    assert found.shape == image.shape
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
    voxels = found.get_fdata()
    assert 0 <= voxels.min() < voxels.max() <= 1 + 1e-6
    assert result["uncertainty"] == task(run)({"image": image.get_filename()})[1]["uncertainty"] > 0


def test_network_without_clinical_variables(image_only_run, studies, tmp_path):
    image = studies / "imagesTr" / "HCC_001.nii.gz"
    workflows.infer(str(image), str(tmp_path), run=str(image_only_run))
    file, result = task(image_only_run)({"image": str(image)})
    assert_same_mask(file, tmp_path / "HCC_001_seg.nii.gz")
    assert result["clinical"]["message"] == "The network takes no clinical variables."
    with pytest.raises(ValueError, match="takes no clinical variables; leave out age"):
        task(image_only_run)({"image": str(image), "clinical.age": "60"})
    with pytest.raises(ValueError, match="No network of image_only takes clinical variables"):
        app(studies / "imagesTr", bundle=image_only_run, clinical=studies / "clinical.csv")


def test_app_names_models_labels_and_trainers(run, image_only_run, studies, tmp_path):
    info = app(studies / "imagesTr", bundle=f"first={run},second={image_only_run}", output=tmp_path).info()
    assert info["labels"] == ["ball"]
    assert list(info["models"]) == ["first", "second"]
    assert info["models"]["first"]["version"] == "0"
    assert {"clinical.age", "clinical.Sex", "version", "result"} == set(info["models"]["first"]["config"])
    assert info["models"]["first"]["config"]["clinical.Sex"][0] == ""
    assert set(info["models"]["second"]["config"]) == {"version", "result"}
    assert set(info["trainers"]["first"]["config"]) == {"max_epochs", "pretrained", "learning_rate", "seed"}
    assert info["train_stats"]["first"] | {"best_metric": 0.0, "epoch": 0} == info["train_stats"]["first"]
    assert info["train_stats"]["first"]["total_time"] == "0:00:00"  # by which OHIF tells that nothing runs


def test_two_models_answer_each_with_its_own_weights(run, studies, expected, tmp_path):
    other = write_run(tmp_path / "other", table=studies / "clinical.csv", seed=4)
    served = app(studies / "imagesTr", bundle=f"a={run},b={other}", clinical=studies / "clinical.csv", output=tmp_path)
    masks = {}
    for model in "ab":
        file = served.infer({"model": model, "image": "HCC_001"})["file"]
        masks[model] = np.asarray(nib.load(file).dataobj)
    np.testing.assert_array_equal(masks["a"], np.asarray(nib.load(expected / "known" / "HCC_001_seg.nii.gz").dataobj))
    assert (masks["a"] != masks["b"]).any()


@pytest.mark.parametrize("labels", ["[background, atrium]", "[background, tumour, ball]"])
def test_models_with_other_labels_are_not_served_together(run, studies, tmp_path, labels):
    """They would train on each other's labels: one value with two names, or one name with two values."""
    (tmp_path / "labels.yaml").write_text(f"labels: {labels}\n")
    other = write_run(tmp_path / "other", tmp_path / "labels.yaml", table=studies / "clinical.csv")
    with pytest.raises(ValueError, match=r"first has \{'ball': 1\}, second has \{.*Serve each by itself"):
        app(studies / "imagesTr", bundle=f"first={run},second={other}", output=tmp_path)


def test_batch_inference_saves_the_mask_of_every_image(run, studies, expected, tmp_path):
    """Also where there is no GPU to deal the images to."""
    images = shutil.copytree(studies / "imagesTr", tmp_path / "images", ignore=shutil.ignore_patterns("nny", "*.json"))
    served = app(images, bundle=run, clinical=studies / "clinical.csv")
    told = served.batch_infer({"model": "tiny", "label_tag": "original", "device": "cuda", "multi_gpu": True})
    assert list(told) == ["HCC_001", "HCC_002", "HCC_003"]
    for case in told:
        assert_same_mask(images / "labels" / "original" / f"{case}.nii.gz", expected / "known" / f"{case}_seg.nii.gz")
    assert list(served.batch_infer({"model": "tiny", "max_batch_size": 1})) == ["HCC_001"]
    assert sorted(path.name for path in (images / "labels").iterdir()) == ["final", "original"]


def test_other_weights_beside_those_of_the_run_do_not_matter(run, studies, expected):
    """J: the version says which weights, not the length of a file's name."""
    (run / "a.pt").write_bytes(b"shorter name")  # stock MONAI Label would serve it
    file, _ = task(run)({"image": str(studies / "imagesTr" / "HCC_001.nii.gz")})
    assert_same_mask(file, expected / "unknown" / "HCC_001_seg.nii.gz")


def test_configuration_is_read_once_per_version(run, studies, monkeypatch):
    from monailabel_app.lib.infers import bundle

    made, real = [], bundle.Network
    monkeypatch.setattr(bundle, "Network", lambda *given: made.append(given) or real(*given))
    served = task(run)
    for case in ("HCC_001", "HCC_002"):
        served({"image": str(studies / "imagesTr" / f"{case}.nii.gz")})
    assert len(made) == 1


class TestBadInput:
    def test_unknown_conf_key(self, run, studies):
        with pytest.raises(
            ValueError, match=r"no --conf bundel \(did you mean 'bundle'\?\)\. There are bundle: .*margin: "
        ):
            app(studies / "imagesTr", bundel=run)

    @pytest.mark.parametrize(
        ("conf", "message"),
        [
            ({"margin": "much"}, "--conf margin is 'much'; expected a number from 0 to 1"),
            ({"held_out": "0"}, "--conf held_out is '0'; expected a number from 0.01 to 0.99"),
            ({"allow_remote": "yes"}, "--conf allow_remote is 'yes'; expected true or false"),
            ({"names": "a.org, http://b.org"}, "--conf names has 'http://b.org'; expected names, parted by commas"),
            ({"bundle": "a=x,a=y"}, "two models 'a'"),
            ({"bundle": "../x y=z"}, "is no model"),
            ({"bundle": ","}, "names no model"),
        ],
    )
    def test_conf_value(self, studies, conf, message):
        with pytest.raises(ValueError, match=message):
            app(studies / "imagesTr", **conf)

    def test_folder_that_is_no_run(self, studies, tmp_path):
        with pytest.raises(FileNotFoundError, match="not a finished run: it has no inference.yaml"):
            app(studies / "imagesTr", bundle=tmp_path)

    def test_no_such_table(self, run, studies, tmp_path):
        with pytest.raises(FileNotFoundError, match="no clinical table"):
            app(studies / "imagesTr", bundle=run, clinical=tmp_path / "patients.xlsx")

    def test_weights_of_another_network(self, run, studies, tmp_path):
        """D: nothing is served with weights that do not fit."""
        other = write_run(tmp_path / "other", CONFIGS / "fusion_none.yaml")
        (other / "model.pt").write_bytes((run / "model.pt").read_bytes())
        with pytest.raises(ValueError, match="another network"):
            app(studies / "imagesTr", bundle=other, output=tmp_path).load()
        torch.save({}, other / "model.pt")
        with pytest.raises(ValueError, match="holds"):
            app(studies / "imagesTr", bundle=other, output=tmp_path).load()

    def test_unknown_image_or_model(self, run, studies):
        served = app(studies / "imagesTr", bundle=run)
        with pytest.raises(HTTPException, match="no image 'HCC_999'"):
            served.infer({"model": "tiny", "image": "HCC_999"})
        with pytest.raises(HTTPException, match="no model 'tiniest'; there are tiny"):
            served.infer({"model": "tiniest", "image": "HCC_001"})

    def test_several_images(self, run, studies):
        with pytest.raises(ValueError, match="holds 3 images"):
            task(run)({"image": str(studies)})

    def test_version(self, run, studies):
        with pytest.raises(ValueError, match="no version '7' of tiny; there are 0"):
            task(run)({"image": str(studies / "imagesTr" / "HCC_001.nii.gz"), "version": "7"})

    def test_studies(self, studies, tmp_path):
        assert images_folder(str(studies)) == studies / "imagesTr"
        with pytest.raises(FileNotFoundError, match="not a folder"):
            images_folder("http://127.0.0.1:8042/dicom-web")
        with pytest.raises(ValueError, match="holds no NIfTI file"):
            images_folder(str(tmp_path))

    @pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
    def test_address_that_others_reach(self, host):
        with pytest.raises(ValueError, match="no authentication"):
            serve(host=host)
