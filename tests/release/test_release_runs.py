"""Bundles run by MONAI from an empty folder with their own code; tests/e2e/test_release_matrix.py has every variant."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from release_support import InThisProcess, job, release_and_unpack, run_bundles, train_variant
from scripts import workflows
from support import ball_dataset

VARIANTS = {
    "unet_add": ("unet", "add", False),  # a network of MONAI in two halves
    "mednext_s_concat_2d": ("mednext_s", "concat", True),  # a 2D network made of a 3D overlay
    "swin_unet_none": ("swin_unet", "none", False),  # 2D, one size only, image alone
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("small"), n=5, size=16)


@pytest.fixture(scope="module")
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scripts.export.torchscript.ProcessPoolExecutor", InThisProcess)
        yield


@pytest.fixture(scope="module")
def variants(in_this_process, small, tmp_path_factory):
    """Run folder and unpacked bundle of each variant."""
    folder = tmp_path_factory.mktemp("variants")
    made = {}
    for key, (name, fusion, planar) in VARIANTS.items():
        run = train_variant(small, folder, name, fusion, planar=planar)
        made[key] = (run, release_and_unpack(run, folder / key, name=f"{key}_segmentation")[1])
    return made


@pytest.fixture(scope="module")
def outputs(bundle, variants, small, data, tmp_path_factory):
    """Everything that a bundle is for, and inference of the variants, run once outside of this repository."""
    folder = tmp_path_factory.mktemp("outputs")
    images = str(data / "imagesTr" / "ball_00.nii.gz")
    table = {"clinical_table_path": str(data / "clinical.csv")}
    training = {"dataset_dir": str(data), "epochs": 1, "val_interval": 1}
    jobs = [
        job(bundle, "inference", "inference.yaml", dataset_dir=images, output_dir=str(folder / "masks")),
        job(bundle, "inference", "inference.yaml", dataset_dir=images, output_dir=str(folder / "known"), **table),
        job(bundle, "evaluating", "evaluate.yaml", dataset_dir=str(data), output_dir=str(folder / "scores")),
        job(bundle, "fine_tuning", "train.yaml", output_dir=str(folder / "tuned"), learning_rate=1e-9, **training),
        job(bundle, "training", "train.yaml", output_dir=str(folder / "trained"), patch_size=[16, 24, 24], **training),
    ]
    image = str(small / "imagesTr" / "ball_00.nii.gz")
    for key, (_, variant) in variants.items():
        jobs.append(job(variant, "inference", "inference.yaml", dataset_dir=image, output_dir=str(folder / key)))
    run_bundles(jobs, folder / "empty")
    return folder


def test_masks_are_those_of_infer(outputs, run, data, tmp_path):
    for name, table in (("masks", None), ("known", str(data / "clinical.csv"))):
        image = str(data / "imagesTr" / "ball_00.nii.gz")
        workflows.infer(image, str(tmp_path / name), run=str(run), clinical=table)
        mask, expected = (nib.load(f / name / "ball_00_seg.nii.gz") for f in (outputs, tmp_path))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_allclose(mask.affine, expected.affine)


def test_evaluation_scores_every_case(outputs):
    summary = json.loads((outputs / "scores" / "evaluation" / "summary.json").read_text())
    assert summary["total"]["dice"]["n"] == 10


def test_fine_tuning_starts_from_the_released_weights_and_keeps_their_scaling(outputs, bundle):
    tuned = torch.load(outputs / "tuned" / "model.pt", weights_only=True)
    own = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.allclose(tuned[key], own[key], atol=1e-5) for key in own)
    assert (outputs / "tuned" / "clinical.json").read_bytes() == (bundle / "models" / "clinical.json").read_bytes()


def test_training_starts_anew(outputs, bundle):
    trained = torch.load(outputs / "trained" / "model.pt", weights_only=True)
    own = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert any(not torch.allclose(trained[key], own[key], atol=0.05) for key in own)


def test_a_run_of_a_bundle_serves_what_it_was_trained_with(outputs):
    serving = yaml.safe_load((outputs / "trained" / "inference.yaml").read_text())
    assert serving["patch_size"] == [16, 24, 24]
    assert serving["dataset_dir"] == "$@bundle_root + '/input'"
    assert serving["keys"] == ["image"]
    assert "epochs" not in serving


@pytest.mark.parametrize("key", VARIANTS)
def test_mask_of_a_variant_is_that_of_its_run(outputs, variants, small, tmp_path, key):
    workflows.infer(str(small / "imagesTr" / "ball_00.nii.gz"), str(tmp_path), run=str(variants[key][0]))
    mask, own = (nib.load(folder / "ball_00_seg.nii.gz") for folder in (outputs / key, tmp_path))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(own.dataobj))
    np.testing.assert_allclose(mask.affine, own.affine)


def test_slices_are_declared_as_such(variants):
    shapes = {}
    for key, (_, bundle) in variants.items():
        meta = json.loads((bundle / "configs" / "metadata.json").read_text())
        shapes[key] = meta["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert [len(shape) for shape in shapes.values()] == [3, 2, 2]
    assert shapes["swin_unet_none"] == [16, 8]


def test_clinical_files_come_with_clinical_networks_alone(variants):
    for key, (_, bundle) in variants.items():
        clinical = "none" not in key
        assert (bundle / "models" / "clinical.json").exists() == clinical
        assert (bundle / "configs" / "clinical_hcc_tace.yaml").exists() == clinical
