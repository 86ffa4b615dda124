"""The annotation app without its server: the same masks as `nny infer`, and refusals that say what to do."""

import nibabel as nib
import numpy as np
import pytest
import torch
from app_support import write_run, write_studies
from fastapi import HTTPException
from scripts import workflows
from support import CONFIGS, ROOT

from monailabel_app.lib.infers.bundle import BundleInfer
from monailabel_app.main import NNYApp
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
    image = studies / "imagesTr" / f"{case}.nii.gz"
    masks = {}
    for name, table in (("known", studies / "clinical.csv"), ("unknown", None)):
        file, result = BundleInfer(run=run, clinical=table)({"image": str(image)})
        assert_same_mask(file, expected / name / f"{case}_seg.nii.gz")
        assert result["label_names"] == {"ball": 1}
        masks[name] = np.asarray(nib.load(file).dataobj)
    assert np.unique(masks["known"]).tolist() == [0, 1]
    assert (masks["known"] != masks["unknown"]).any()


def test_patient_that_is_not_in_the_table_is_unknown(run, studies, expected, tmp_path):
    image = tmp_path / "somebody.nii.gz"
    image.write_bytes((studies / "imagesTr" / "HCC_001.nii.gz").read_bytes())
    with pytest.warns(UserWarning, match="'somebody' is not in"):
        file, _ = BundleInfer(run=run, clinical=studies / "clinical.csv")({"image": str(image)})
    assert_same_mask(file, expected / "unknown" / "HCC_001_seg.nii.gz")


def test_format_that_slicer_asks_for(run, studies, expected):
    import itk

    image = studies / "imagesTr" / "HCC_002.nii.gz"
    request = {"image": str(image), "result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}
    file, _ = BundleInfer(run=run)(request)
    assert file.endswith(".nrrd")
    mask = itk.imread(file)
    same = itk.imread(str(expected / "unknown" / "HCC_002_seg.nii.gz"))
    np.testing.assert_array_equal(itk.array_from_image(mask), itk.array_from_image(same))
    np.testing.assert_allclose(mask.GetOrigin(), same.GetOrigin(), atol=1e-3)


def test_network_without_clinical_variables(image_only_run, studies, tmp_path):
    image = studies / "imagesTr" / "HCC_001.nii.gz"
    workflows.infer(str(image), str(tmp_path), run=str(image_only_run))
    assert_same_mask(BundleInfer(run=image_only_run)({"image": str(image)})[0], tmp_path / "HCC_001_seg.nii.gz")
    with pytest.raises(ValueError, match="takes no clinical variables"):
        BundleInfer(run=image_only_run, clinical=studies / "clinical.csv")


def app(studies, **conf):
    return NNYApp(str(ROOT / "monailabel_app"), str(studies / "imagesTr"), {k: str(v) for k, v in conf.items()})


def test_app_names_model_and_labels(run, studies):
    info = app(studies, run=run).info()
    assert info["labels"] == ["ball"]
    assert list(info["models"]) == ["tiny"]
    assert info["trainers"] == {}


class TestBadInput:
    def test_unknown_conf_key(self, run, studies):
        with pytest.raises(ValueError, match=r"no --conf rum\. There are run: .*; clinical: "):
            app(studies, rum=run)

    def test_folder_that_is_no_run(self, studies, tmp_path):
        with pytest.raises(FileNotFoundError, match="not a finished run: it has no inference.yaml"):
            app(studies, run=tmp_path)

    def test_no_such_table(self, run, tmp_path):
        with pytest.raises(FileNotFoundError, match="no clinical table"):
            BundleInfer(run=run, clinical=tmp_path / "patients.xlsx")

    def test_weights_of_another_network(self, run, tmp_path):
        other = write_run(tmp_path / "other", CONFIGS / "fusion_none.yaml")
        (other / "model.pt").write_bytes((run / "model.pt").read_bytes())
        with pytest.raises(ValueError, match="another network"):
            BundleInfer(run=other)
        torch.save({}, other / "model.pt")
        with pytest.raises(ValueError):
            BundleInfer(run=other)

    def test_unknown_image(self, run, studies):
        with pytest.raises(HTTPException, match="no image 'HCC_999'"):
            app(studies, run=run).infer({"model": "tiny", "image": "HCC_999"})

    def test_several_images(self, run, studies):
        with pytest.raises(ValueError, match="holds 3 images"):
            BundleInfer(run=run)({"image": str(studies)})

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
