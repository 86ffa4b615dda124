import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent
from scripts.components import RemoveSmallComponentsd, components, voxel_ml

AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])  # voxels of 0.02 ml


def label_map():
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[:3, :3, :3] = 1  # 27 voxels, 0.54 ml
    mask[3, 3, 3] = 1  # touches it at a corner
    mask[6, 6, 6:8] = 1  # 2 voxels, 0.04 ml
    mask[6, 0, 0] = 2
    mask[5, 7, :4] = 3
    return mask


def removed(mask, volumes):
    case = {"pred": MetaTensor(torch.from_numpy(mask[None]), affine=torch.from_numpy(AFFINE)), "case_id": "c0"}
    found = RemoveSmallComponentsd("pred", volumes=volumes)(case)
    assert np.array_equal(case["pred"].numpy()[0], mask)  # the input stays
    assert found["pred"].dtype == torch.uint8
    np.testing.assert_allclose(found["pred"].affine, AFFINE)
    return found["pred"].numpy()[0]


def test_volume_of_a_voxel():
    assert voxel_ml(AFFINE) == pytest.approx(0.02)


def test_parts_that_touch_at_a_corner_are_one():
    numbers, place = components(label_map() == 1)
    assert numbers.max() == 2
    assert sorted(np.bincount(numbers.ravel())[1:]) == [2, 28]
    assert numbers.shape == label_map()[place].shape


@pytest.mark.parametrize(("ml", "left"), [(0.03, 30), (0.05, 28), (0.5, 28), (0.57, 0)])
def test_what_is_smaller_goes_and_other_classes_stay(ml, left):
    found = removed(label_map(), [[1, ml]])
    assert (found == 1).sum() == left
    assert (found == 2).sum() == 1
    assert (found == 3).sum() == 4


def test_each_class_has_its_own_volume():
    found = removed(label_map(), [[2, 0.03], [3, 0.03]])
    assert np.bincount(found.ravel(), minlength=4).tolist()[1:] == [30, 0, 4]


def test_class_that_is_absent():
    mask = np.zeros((4, 4, 4), np.uint8)
    assert not removed(mask, [[1, 1.0]]).any()


def test_agrees_with_the_largest_component_of_monai():
    mask = label_map()
    largest = KeepLargestConnectedComponent(applied_labels=[1], is_onehot=False)(mask[None])
    assert np.array_equal(np.asarray(largest)[0], removed(mask, [[1, 0.05]]))


@pytest.mark.parametrize("volumes", [[[0, 1.0]], [[1, 0]], [[1, -1.0]], [1, 2.0], [[1]], [[1, 2, 3]]])
def test_something_else_than_pairs(volumes):
    with pytest.raises(ValueError, match="expected pairs of label value and ml"):
        RemoveSmallComponentsd("pred", volumes=volumes)
