"""2D networks on volumes: trained on slices, and masks of volumes come back."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scripts import slices, workflows
from scripts.datalists import inference_cases, read_datalist, split
from scripts.handlers import read_log
from scripts.transforms import training_transform
from support import CONFIGS, REAL_DATA, TINY, write_nifti

SHAPE = (36, 44)
AFFINE = np.diag([-1.0, 1.2, 8.0, 1.0])  # mm: thick slices


def stack_dataset(folder, n=10):
    """Thick stacks of 5 to 7 slices with a bright ellipsoid in noise, and a clinical row each."""
    cases = []
    for i in range(n):
        rng = np.random.default_rng(i)
        depth = 5 + i % 3
        axes = np.meshgrid(*[np.arange(size) for size in (*SHAPE, depth)], indexing="ij")
        centre, radii = (*rng.uniform(14, 24, 2), depth / 2), (*rng.uniform(7, 10, 2), depth / 2)
        mask = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
        image = (100.0 * mask + rng.normal(0, 20, mask.shape)).astype(np.float32)
        name = f"stack_{i:02d}.nii.gz"
        write_nifti(folder / "imagesTr" / name, image, AFFINE)
        write_nifti(folder / "labelsTr" / name, mask.astype(np.uint8), AFFINE)
        cases.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}", "fold": i % 5})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball"}, "training": cases}))
    rows = "".join(f"stack_{i:02d},{50 + i},{1 + i % 2}\n" for i in range(n))
    (folder / "clinical.csv").write_text("TCIA_ID,age,Sex\n" + rows)
    return folder


def flat_overlay(folder):
    """The tiny network on slices: nothing but `spatial_dims` and the grid differs from the volume's."""
    path = folder / "flat.yaml"
    path.write_text(
        TINY.replace("spacing: [2.0, 2.0, 2.0]", "spacing: [1.5, 1.5, 1.0]").replace(
            "patch_size: [24, 24, 24]", "spatial_dims: 2\npatch_size: [24, 24]"
        )
    )
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stack_dataset(tmp_path_factory.mktemp("stacks"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A 2D run with clinical data, trained to the end and evaluated on volumes."""
    folder = tmp_path_factory.mktemp("run")
    workflows.train(str(data), str(folder / "run"), str(flat_overlay(folder)), epochs=10, val_interval=5)
    workflows.evaluate(str(folder / "run"))
    return folder / "run"


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_loss_falls_and_the_mask_is_right(run):
    losses = [float(row["train_loss"]) for row in read_log(run / "log.csv")]
    assert losses[-1] < 0.5 * losses[0]
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["total"]["dice"]["n"] == 2
    assert summary["total"]["dice"]["mean"] > 0.85


def test_masks_lie_on_the_grid_of_the_volumes(run, data):
    for name in ("stack_00", "stack_05"):
        mask, label = (
            nib.load(folder / f"{name}.nii.gz") for folder in (run / "evaluation" / "masks", data / "labelsTr")
        )
        assert mask.shape == label.shape
        np.testing.assert_allclose(mask.affine, label.affine)
        assert dice(mask.get_fdata() > 0, label.get_fdata() > 0) > 0.8


@pytest.mark.parametrize("depth", [1, 6])
def test_mask_follows_a_volume_that_is_stored_with_other_axes(run, data, tmp_path, depth):
    image, label = (nib.load(data / kind / "stack_01.nii.gz") for kind in ("imagesTr", "labelsTr"))
    first = (label.shape[2] - depth) // 2
    image, label = (volume.slicer[:, :, first : first + depth] for volume in (image, label))
    turned = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine).as_reoriented([[2, -1], [0, 1], [1, 1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    workflows.infer(str(tmp_path / "turned.nii.gz"), str(tmp_path / "out"), run=str(run))
    mask = nib.load(tmp_path / "out" / "turned_seg.nii.gz")
    assert mask.shape == turned.shape
    np.testing.assert_allclose(mask.affine, turned.affine)
    found, truth = (nib.as_closest_canonical(volume).get_fdata() > 0 for volume in (mask, label))
    assert dice(found, truth) > 0.85


def test_clinical_values_reach_the_slices(run, data, tmp_path):
    image = str(data / "imagesTr" / "stack_00.nii.gz")
    found = []
    for table in (str(data / "clinical.csv"), None):
        workflows.infer(image, str(tmp_path / "out"), run=str(run), clinical=table, save_probabilities=True)
        found.append(nib.load(tmp_path / "out" / "stack_00_probabilities.nii.gz").get_fdata())
    assert not np.array_equal(*found)
    assert np.isfinite(found).all()


def parsed(*overlays, **overrides):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("inference", "train", *overlays)])
    parser.update(overrides)
    return parser


@pytest.mark.parametrize(
    ("patch", "dims", "network", "crop"),
    [
        ([32, 48], 2, [32, 48], [32, 48, 1]),
        ([32, 48, 16], 2, [32, 48], [32, 48, 1]),
        (32, 2, [32, 32], [32, 32, 1]),
        ([32, 48, 16], 3, [32, 48, 16], [32, 48, 16]),
        (32, 3, [32, 32, 32], [32, 32, 32]),
    ],
)
def test_patch_of_the_network_and_crop_of_the_volume(patch, dims, network, crop):
    assert slices.network_patch(patch, dims) == network
    assert slices.crop_size(patch, dims) == crop


@pytest.mark.parametrize(("patch", "dims", "wanted"), [([32], 2, "2 or 3 numbers"), ([32, 48], 3, "3 numbers")])
def test_patch_of_too_few_numbers_is_refused(patch, dims, wanted):
    with pytest.raises(ValueError, match=rf"patch_size is .* spatial_dims {dims}: expected {wanted}"):
        slices.network_patch(patch, dims)


@pytest.mark.parametrize("call", [slices.network_patch, slices.pixdim])
def test_other_dimensions_are_refused(call):
    with pytest.raises(ValueError, match="got 4"):
        call([32, 32, 32], 4)


def test_slices_are_kept_apart():
    assert slices.pixdim([1.5, 1.5, 2.0], 2) == [1.5, 1.5, -1.0]
    assert slices.pixdim(1.5, 2) == [1.5, 1.5, -1.0]
    assert slices.pixdim([1.5, 1.5, 2.0], 3) == [1.5, 1.5, 2.0]
    assert slices.rotations(0.5, 2) == [0.0, 0.0, 0.5]
    assert slices.rotations(0.5, 3) == [0.5] * 3
    assert slices.zooms([-0.3, 0.4], 2) == [[-0.3, 0.4], [-0.3, 0.4], [0.0, 0.0]]
    assert slices.zooms([-0.3, 0.4], 3) == [[-0.3, 0.4]] * 3


def configured(**overrides):
    """The training configuration without clinical data, of two classes, on images of about the size of a patch."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("inference", "train", "fusion_none")])
    parser.update({"labels": ["background", "ball"], "class_ratios": [1, 1], "spacing": [1.0, 1.2, 2.0]} | overrides)
    parser.update({"intensity": {"_target_": "Identityd", "keys": "image"}, "padding_value": 0.0})
    return parser


def numbered_slices(folder, depth):
    """An image whose slice k holds k + 1, and a label that fills its left half."""
    image = np.broadcast_to(np.arange(1.0, depth + 1, dtype=np.float32), (*SHAPE, depth))
    label = np.zeros(image.shape, np.uint8)
    label[: SHAPE[0] // 2] = 1
    write_nifti(folder / "label.nii.gz", label, AFFINE)
    return {"image": str(write_nifti(folder / "image.nii.gz", image.copy(), AFFINE)), "label": folder / "label.nii.gz"}


@pytest.mark.parametrize(("dims", "depth", "patch"), [(2, 7, [32, 24]), (3, 8, [32, 24, 8])])
def test_augmentation_stays_in_the_slices(tmp_path, dims, depth, patch):
    """Whatever is cropped, turned and zoomed comes from one slice, though it is turned and zoomed."""
    parser = configured(spatial_dims=dims, augmented_axes=2, patch_size=patch, flip_axes=[0, 1], crops_per_case=8)
    for number in (1, 2):
        parser[f"train::cropping::transforms::{number}::prob"] = 1.0
    steps = (parser.get_parsed_content(f"train::{name}") for name in ("preprocessing", "cropping"))
    transform = training_transform(*steps)
    transform.set_random_state(0)
    crops = transform(numbered_slices(tmp_path, depth))
    assert len(crops) == 8
    seen, turned = set(), 0
    for crop in crops:
        image, label = (crop[key].as_tensor()[0] for key in ("image", "label"))
        assert list(image.shape) == [*patch, 1][:3]
        for k in range(image.shape[2]):
            assert image[..., k].max() - image[..., k].min() < 1e-3
            seen.add(round(float(image[0, 0, k])))
        turned += bool((label.float().std(1) > 0).any())  # its border lay along this axis
    assert turned >= 4
    assert seen <= set(range(1, depth + 1))
    assert len(seen) > 3


def test_crops_of_a_2d_network_are_batches_of_images(data):
    """Also where the patch has three numbers, as in the overlays of volumes."""
    parser = configured(spatial_dims=2, patch_size=[32, 24, 16], dataset_dir=str(data), num_workers=0)
    batch = next(iter(parser.get_parsed_content("train::dataloader")))
    assert batch["image"].shape == batch["label"].shape == (2 * 8, 1, 32, 24)
    assert set(batch["label"].unique().tolist()) == {0.0, 1.0}


def test_blur_stays_in_thick_slices():
    parser = configured(augmented_axes=2)
    names = [step["_target_"] for step in parser["train::augmentation::transforms"]]
    blur = f"train::augmentation::transforms::{names.index('RandGaussianSmoothd')}"
    parser[f"{blur}::prob"] = 1.0
    image = torch.zeros(1, 12, 12, 6)
    image[..., 4:8, 4:8, 2] = 1
    blurred = parser.get_parsed_content(blur)({"image": image.clone()})["image"]
    assert blurred[..., 2].sum() > 0
    assert not torch.equal(blurred[..., 2], image[..., 2])
    assert not blurred[..., [0, 1, 3, 4, 5]].any()
    assert len(parser.get_parsed_content("train::augmentation").transforms) == len(names) - 2  # no slices, no merging


def test_frames_of_a_patient_stay_in_one_fold(tmp_path):
    names = [f"patient{i:03d}_frame{frame:02d}" for i in range(10) for frame in (1, 9 + i)]
    cases = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": cases}))
    found = read_datalist(tmp_path)
    assert found[1]["patient_id"] == "patient000"
    assert found[1]["case_id"] == "patient000_frame09"
    assert len(split(found, 0)["validation"]) == 4
    write_nifti(tmp_path / "scans" / "patient000_frame09.nii.gz", np.zeros((4, 4, 4), np.float32))
    assert inference_cases(tmp_path / "scans")[0]["patient_id"] == "patient000"


@pytest.mark.skipif(not (REAL_DATA / "acdc").is_dir(), reason="REAL_DATA_DIR holds no acdc")
@pytest.mark.parametrize(("overlays", "shape"), [([], (160, 160, 16)), (["dataset_acdc_2d"], (128, 128))])
def test_cardiac_volumes_fit_the_patch(overlays, shape):
    """Also the smallest ones, of 154 x 224 x 6 and more voxels."""
    parser = configured()
    parser.read_config([str(CONFIGS / f"{n}.yaml") for n in ("inference", "train", "dataset_acdc", *overlays)])
    cases = {case["case_id"]: case for case in read_datalist(REAL_DATA / "acdc")}
    steps = (parser.get_parsed_content(f"train::{name}") for name in ("preprocessing", "cropping", "augmentation"))
    crops = training_transform(*steps)(cases["patient001_frame01"])
    assert {tuple(crop["image"].shape[1:]) for crop in crops} == {shape}
    assert all(torch.isfinite(crop["image"]).all() for crop in crops)
    assert any(crop["label"].any() for crop in crops)
