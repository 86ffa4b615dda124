"""What segmenting gives: volumes, and files in the right geometry."""

import nibabel as nib
import numpy as np
import pytest
from scripts.segmentation import Segmentation


class TestResult:
    @pytest.fixture
    def result(self):
        mask = np.zeros((4, 5, 6), np.uint8)
        mask[:2, 0, 0], mask[3] = 1, 3
        affine = np.array([[0, -2.0, 0, 7], [1.5, 0, 0, -3], [0, 0.3, 4, 9], [0, 0, 0, 1]])
        return Segmentation(
            mask=mask, affine=affine, labels={"liver": 1, "tumour": 2, "aorta": 3}, uncertainty_score=0.1
        )

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
