"""The entropy of a network's probabilities: the map that clients can show, and the number of a case."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from app_support import task, write_run, write_studies

from monailabel_app.lib.infers.uncertainty import Uncertaintyd


def test_entropy_of_known_probabilities():
    p = torch.tensor([[0.5, 1.0, 0.9], [0.5, 0.0, 0.1]]).clamp(1e-30)  # (classes, voxels)
    found = Uncertaintyd()({"pred": p.log().reshape(2, 1, 1, 3)})
    mixed = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    np.testing.assert_allclose(found["entropy"].numpy().ravel(), [1.0, 0.0, mixed], atol=1e-6)
    assert found["uncertainty"] == pytest.approx((1 + mixed) / 2)  # the voxel that is surely background does not count


def test_more_background_does_not_make_a_case_surer():
    logits = torch.full((2, 4, 4, 40), 10.0)
    logits[1] = -10
    logits[:, :2, :2, :2] = 0
    small = Uncertaintyd()({"pred": logits[..., :5]})["uncertainty"]
    assert small == pytest.approx(Uncertaintyd()({"pred": logits})["uncertainty"]) == pytest.approx(1)


def test_without_any_foreground_all_voxels_count():
    logits = torch.stack([torch.full((2, 2, 2), 5.0), torch.full((2, 2, 2), -5.0)])
    found = Uncertaintyd()({"pred": logits})
    assert 0 < found["uncertainty"] < 0.01
    assert found["uncertainty"] == pytest.approx(float(found["entropy"].mean()))


def test_map_lies_on_the_grid_of_the_image(tmp_path):
    studies = write_studies(tmp_path / "cohort")
    served = task(write_run(tmp_path / "tiny", table=studies / "clinical.csv"))
    for case in ("HCC_002", "HCC_003"):
        image = nib.load(studies / "imagesTr" / f"{case}.nii.gz")
        file, result = served({"image": image.get_filename(), "result": "entropy"})
        found = nib.load(file)
        assert found.shape == image.shape
        assert found.get_data_dtype() == np.float32
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
        voxels = found.get_fdata()
        assert 0 <= voxels.min() < voxels.max() <= 1 + 1e-6
        assert result["uncertainty"] == served({"image": image.get_filename()})[1]["uncertainty"] > 0
