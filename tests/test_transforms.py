import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd
from scripts.transforms import CheckFinited, RestoreToSourced, random_flips, training_transform
from support import write_nifti


def preprocessed(path, spacing, axcodes="RAS"):
    return Compose(
        [
            LoadImaged("image", ensure_channel_first=True, image_only=True),
            Orientationd("image", axcodes, labels=None),
            Spacingd("image", spacing, mode="bilinear"),
        ]
    )({"image": str(path)})


def logits_of(image, threshold=0.4637):
    """Logits whose class 1 wins where the image is above the threshold."""
    value = torch.as_tensor(image) - threshold
    return torch.cat([-value, value])


@pytest.fixture
def ball(tmp_path):
    """A ball off the centre of an anisotropic, flipped and axis-swapped grid; returns its path and mask."""
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(24), np.arange(30), indexing="ij"))
    spacing = np.array([1.0, 2.0, 1.5])
    distance = np.sqrt(
        (((grid - np.array([22, 9, 17])[:, None, None, None]) * spacing[:, None, None, None]) ** 2).sum(0)
    )
    mask = distance < 9
    affine = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, -7], [0, 0, -1.5, 11], [0, 0, 0, 1]])
    return write_nifti(tmp_path / "ball.nii.gz", mask.astype(np.float32), affine), mask, affine


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_mask_returns_to_the_grid_of_the_source(ball):
    path, mask, affine = ball
    case = preprocessed(path, (1.0, 1.0, 1.0))
    assert case["image"].shape[1:] != mask.shape
    restored = RestoreToSourced("pred")(case | {"pred": logits_of(case["image"])})["pred"]
    assert restored.shape == (1, *mask.shape)
    assert restored.dtype == torch.uint8
    np.testing.assert_allclose(restored.affine, affine)
    assert dice(restored[0].numpy() > 0, mask) > 0.97


@pytest.mark.parametrize("slab", [1, 7, 16, 1000])
def test_slabs_do_not_change_the_result(ball, slab):
    case = preprocessed(ball[0], (2.0, 2.0, 2.0))
    case["pred"] = logits_of(case["image"])
    whole = RestoreToSourced("pred", slab=30)(case)["pred"]
    assert whole.any()
    assert torch.equal(RestoreToSourced("pred", slab=slab)(case)["pred"], whole)


def test_probabilities_are_a_distribution_that_agrees_with_the_mask(ball):
    case = preprocessed(ball[0], (1.0, 1.0, 1.0))
    out = RestoreToSourced("pred", probabilities=True)(case | {"pred": 5 * logits_of(case["image"])})
    scores = out["pred_probabilities"]
    assert scores.dtype == torch.float16
    assert torch.allclose(scores.float().sum(0), torch.ones(()), atol=2e-3)
    certain = (scores[0] - scores[1]).abs() > 1e-2
    assert torch.equal(scores.argmax(0)[certain], out["pred"][0].long()[certain])


@pytest.mark.parametrize("probabilities", [False, True])
def test_restoring_warns_of_nothing(ball, probabilities):
    case = preprocessed(ball[0], (2.0, 2.0, 2.0))
    case["pred"] = logits_of(case["image"])
    assert isinstance(case["pred"], MetaTensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RestoreToSourced("pred", probabilities=probabilities)(case)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, value):
    image = np.zeros((6, 5, 4), np.float32)
    image[1, 2, :3] = value
    path = write_nifti(tmp_path / "broken.nii.gz", image)
    load = LoadImaged("image", ensure_channel_first=True, image_only=True)
    with pytest.raises(ValueError, match=r"/broken\.nii\.gz: 3 voxels of 'image' are NaN or infinite"):
        CheckFinited("image")(load({"image": str(path)}))


@pytest.mark.parametrize("name", ["series/portal", ["series/portal", "series/late"]])
def test_check_names_a_series_by_its_folder(name):
    image = MetaTensor(torch.full((1, 2, 2), torch.nan), meta={"filename_or_obj": name})
    with pytest.raises(ValueError, match="^series/portal: 4 voxels"):
        CheckFinited("image")({"image": image})


def test_check_passes_numbers_on_untouched(ball):
    case = preprocessed(ball[0], (2.0, 2.0, 2.0)) | {"label": torch.ones(1, 2, 2, dtype=torch.uint8)}
    checked = CheckFinited(["image", "label"])(case)
    assert checked["image"] is case["image"]
    assert checked["label"] is case["label"]


def test_two_dimensional_image(tmp_path):
    mask = np.zeros((32, 20), np.float32)
    mask[8:20, 5:12] = 1
    path = write_nifti(tmp_path / "flat.nii.gz", mask, np.diag([1.0, 2.0, 1.0, 1.0]))
    case = Compose(
        [
            LoadImaged("image", ensure_channel_first=True, image_only=True),
            Spacingd("image", (1.0, 1.0), mode="bilinear"),
        ]
    )({"image": str(path)})
    restored = RestoreToSourced("pred")(case | {"pred": logits_of(case["image"])})["pred"]
    assert restored.shape == (1, 32, 20)
    assert dice(restored[0].numpy() > 0, mask > 0) > 0.95


def test_case_id_names_the_mask(ball):
    case = preprocessed(ball[0], (2.0, 2.0, 2.0)) | {"case_id": "HCC_007"}
    restored = RestoreToSourced("pred")(case | {"pred": logits_of(case["image"])})["pred"]
    assert restored.meta["filename_or_obj"] == "HCC_007.nii.gz"


def test_slab_below_one_is_refused():
    with pytest.raises(ValueError, match="slab is 0"):
        RestoreToSourced("pred", slab=0)


def test_training_transform_caches_the_deterministic_part_only():
    from monai.transforms import Identityd, RandFlipd

    fixed = Compose([Identityd("image"), Compose([Identityd("image")])])
    whole = training_transform(fixed, Compose([RandFlipd("image")]))
    assert [type(t).__name__ for t in whole.transforms] == ["Identityd", "Identityd", "Compose"]


def test_random_flips_mirror_the_given_axes_and_no_other():
    image = MetaTensor(torch.arange(24.0).reshape(1, 2, 3, 4))
    flips = random_flips(["image"], [0, 2], prob=1.0)
    assert torch.equal(flips({"image": image})["image"].as_tensor(), image.as_tensor().flip(1, 3))
    assert torch.equal(random_flips(["image"], [])({"image": image})["image"].as_tensor(), image.as_tensor())
