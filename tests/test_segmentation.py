"""What segmenting gives: entropy of known probabilities, volumes, and files in the right geometry."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.segmentation import Segmentation, case_score, entropy_map


class TestUncertainty:
    def test_entropy_of_known_probabilities(self):
        voxels = [[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]
        probabilities = torch.tensor(voxels).T.reshape(4, 1, 1, 3)
        found = entropy_map(probabilities.half())
        torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]).reshape(1, 1, 3), atol=1e-3, rtol=0)

    def test_map_is_the_same_however_many_slices(self):
        probabilities = torch.rand(3, 4, 5, 37, generator=torch.Generator().manual_seed(0)).softmax(0)
        direct = -(probabilities * probabilities.log()).sum(0) / math.log(3)
        torch.testing.assert_close(entropy_map(probabilities), direct)

    def test_score_weights_voxels_by_their_foreground(self):
        probabilities = torch.tensor([[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]).reshape(2, 1, 1, 3)
        entropy = entropy_map(probabilities)
        assert case_score(probabilities, entropy) == pytest.approx((0.5 * 1 + 1 * 0) / 1.5)
        background = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1).expand(2, 3, 3, 20)
        assert case_score(background, entropy_map(background)) == 0.0

    def test_score_is_that_of_active_learning(self):
        other = pytest.importorskip("scripts.acquisition.uncertainty")
        probabilities = torch.rand(3, 4, 5, 37, generator=torch.Generator().manual_seed(0)).mul(9).softmax(0)
        entropy = entropy_map(probabilities)
        torch.testing.assert_close(entropy, other.entropy_map(probabilities))
        assert case_score(probabilities, entropy) == pytest.approx(other.foreground_mean(entropy, probabilities))


class TestResult:
    @pytest.fixture
    def result(self):
        mask = np.zeros((4, 5, 6), np.uint8)
        mask[:2, 0, 0], mask[3] = 1, 3
        affine = np.array([[0, -2.0, 0, 7], [1.5, 0, 0, -3], [0, 0.3, 4, 9], [0, 0, 0, 1]])
        return Segmentation(mask=mask, affine=affine, labels={"liver": 1, "tumour": 2, "aorta": 3})

    def test_volumes(self, result):
        voxel = 2 * 1.5 * 4 / 1000
        assert result.volumes_ml == pytest.approx({"liver": 2 * voxel, "tumour": 0.0, "aorta": 30 * voxel})

    @pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
    def test_saved_mask(self, result, tmp_path, name):
        result.save(tmp_path / "new" / name)
        saved = nib.load(tmp_path / "new" / name)
        assert saved.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(saved.dataobj), result.mask)
        np.testing.assert_allclose(saved.affine, result.affine, atol=1e-6)
        assert [file.name for file in (tmp_path / "new").iterdir()] == [name]
        first = (tmp_path / "new" / name).read_bytes()
        result.save(tmp_path / "new" / name)
        assert (tmp_path / "new" / name).read_bytes() == first

    def test_refusals(self, result, tmp_path):
        with pytest.raises(ValueError, match=r"does not end in \.nii\.gz or \.nii"):
            result.save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match="no part 'logits'"):
            result.save(tmp_path / "mask.nii", "logits")
        with pytest.raises(ValueError, match="Segment with uncertainty=True"):
            result.save(tmp_path / "mask.nii", "uncertainty")
        assert not list(tmp_path.iterdir())
