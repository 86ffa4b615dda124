"""Images that cannot be segmented from Python: each is refused, with its name and what was expected."""

import nibabel as nib
import numpy as np
import pytest
from app_support import write_run
from scripts.segment import Segmenter
from support import CONFIGS, write_nifti


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Segmenter(write_run(tmp_path_factory.mktemp("runs") / "image_only", CONFIGS / "fusion_none.yaml"))


@pytest.mark.parametrize("shape", [(30,), (30, 30), (30, 30, 8, 1), (30, 30, 8, 3), (30, 0, 8)])
def test_axes(model, shape, tmp_path):
    with pytest.raises(ValueError, match=r"has the shape .*; this network takes one volume, \(H, W, D\)"):
        model(np.zeros(shape), affine=np.eye(4))


@pytest.mark.parametrize("shape", [(30, 30), (30, 30, 8, 3)])
def test_axes_of_a_file(model, shape, tmp_path):
    file = write_nifti(tmp_path / "scan.nii.gz", np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"scan\.nii\.gz has the shape .*; this network takes one volume"):
        model(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_no_numbers(model, value, tmp_path):
    voxels = np.zeros((30, 30, 8))
    voxels[3, 4, 5] = value
    with pytest.raises(ValueError, match="the given array: 1 voxels of 'image' are NaN or infinite"):
        model(voxels, affine=np.eye(4))


def test_nan_in_a_file(model, tmp_path):
    file = write_nifti(tmp_path / "scan.nii.gz", np.full((30, 30, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: 7200 voxels of 'image' are NaN"):
        model(file)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "cannot be inverted: its axes are"),
        ([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "cannot be inverted"),
        (np.zeros((4, 4)), "expected finite"),
        (np.full((4, 4), np.nan), "expected finite"),
        (np.eye(3), "expected finite"),
    ],
)
def test_affine(model, affine, message):
    with pytest.raises(ValueError, match=message):
        model(np.zeros((30, 30, 8)), affine=affine)


def test_singular_affine_of_a_file(model, tmp_path):
    image = nib.Nifti1Image(np.zeros((30, 30, 8), np.float32), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "scan.nii.gz")
    assert nib.load(tmp_path / "scan.nii.gz").affine[2, 2] == 0
    with pytest.raises(ValueError, match=r"affine of .*scan\.nii\.gz cannot be inverted"):
        model(tmp_path / "scan.nii.gz")


def test_affine_that_is_missing_or_too_much(model):
    with pytest.raises(TypeError, match="An array needs its `affine`"):
        model(np.zeros((30, 30, 8)))
    with pytest.raises(TypeError, match="has an affine of its own"):
        model("scan.nii.gz", affine=np.eye(4))


def test_what_is_no_image(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        model(tmp_path / "nowhere.nii.gz")
    with pytest.raises(TypeError, match="expected numbers"):
        model(np.full((4, 4, 4), "a"), affine=np.eye(4))
    good = write_nifti(tmp_path / "two" / "good.nii.gz", np.random.default_rng(0).normal(size=(30, 30, 8)))
    (tmp_path / "two" / "broken.nii.gz").write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ValueError, match="holds 2 images; segment one at a time"):
        model(tmp_path / "two")
    with pytest.raises(ValueError, match=r"broken\.nii\.gz cannot be read as an image"):
        model(tmp_path / "two" / "broken.nii.gz")
