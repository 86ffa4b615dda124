import numpy as np
import pytest
from plan_support import fingerprint_of, record, two_balls
from scripts.plan.intensity import find_modality, plan_intensity

LABEL = two_balls((20, 20, 20), {1: [(10, 10, 10)]}, 5)


def body(rng, *, air=-1000.0, organ=(40.0, 10.0)):
    """A body in air, with an organ."""
    image = np.full(LABEL.shape, air)
    image[3:17, 3:17, :] = rng.normal(-50, 20, (14, 14, 20))
    image[LABEL == 1] = rng.normal(*organ, (LABEL == 1).sum())
    return image


def data_of(*images, channels=("image",)):
    return fingerprint_of([record(image, LABEL) for image in images], channels=channels)


def ct(n=4):
    return [body(np.random.default_rng(i)) for i in range(n)]


def mr(n=4, air=0.0):
    return [body(np.random.default_rng(i), air=air) + 300.0 * (air == 0.0) for i in range(n)]


def test_ct_is_recognised_by_its_air_and_said_to_be_guessed():
    kind = find_modality(data_of(*ct()))
    assert (kind.ct, kind.guessed) == (True, True)
    kind = find_modality(data_of(*mr()))
    assert (kind.ct, kind.guessed) == (False, True)


def test_the_dataset_and_the_user_are_believed_and_told_of_doubts():
    kind = find_modality(data_of(*ct(), channels=("CT",)))
    assert (kind.ct, kind.guessed, kind.warning) == (True, False, "")
    kind = find_modality(data_of(*ct(), channels=("MRI",)))
    assert not kind.ct
    assert "like air in HU" in kind.warning
    kind = find_modality(data_of(*mr(), channels=("CT",)))
    assert kind.ct
    assert "not in HU" in kind.warning
    assert not find_modality(data_of(*ct()), "mr").ct
    assert find_modality(data_of(*mr()), "ct").ct


def test_ct_is_clipped_to_percentiles_of_the_labelled_voxels_of_all_cases():
    images = [body(np.random.default_rng(0), organ=(0.0, 1.0)), body(np.random.default_rng(1), organ=(100.0, 1.0))]
    data = data_of(*images, channels=("CT",))
    found = plan_intensity(data, find_modality(data))
    window, values = found["intensity"].value, np.concatenate([image[LABEL == 1] for image in images])
    assert window["_target_"] == "ScaleIntensityRanged"
    assert window["a_min"] == pytest.approx(np.percentile(values, 0.5), abs=0.5)
    assert window["a_max"] == pytest.approx(np.percentile(values, 99.5), abs=0.5)
    assert window["clip"] is True
    assert found["padding_value"].value == window["b_min"] == -1.0


def test_mr_is_normalised_volume_by_volume_and_padded_with_its_border():
    data = data_of(*mr(), channels=("MRI",))
    found = plan_intensity(data, find_modality(data))
    assert found["intensity"].value == {"_target_": "NormalizeIntensityd", "keys": "image"}
    image = mr()[0]
    assert found["padding_value"].value == pytest.approx((300.0 - image.mean()) / image.std(), abs=0.1)


def test_bright_outliers_are_clipped():
    images = mr()
    for image in images:
        image[10, 10, 10] = 30_000.0
    found = plan_intensity(data_of(*images, channels=("MRI",)), find_modality(data_of(*images, channels=("MRI",))))
    names = [step["_target_"] for step in found["intensity"].value["transforms"]]
    assert names == ["ClipIntensityPercentilesd", "NormalizeIntensityd"]
    assert -3 < found["padding_value"].value < 3


def test_zeros_around_a_cut_out_brain_do_not_count():
    images = [np.where(np.pad(np.ones((8, 8, 20)), ((6, 6), (6, 6), (0, 0))) > 0, image, 0) for image in mr()]
    data = data_of(*images, channels=("MRI",))
    found = plan_intensity(data, find_modality(data))
    assert found["intensity"].value["nonzero"] is True
    assert found["padding_value"].value == 0.0


def test_channels_are_normalised_one_by_one():
    images = [np.stack([image, 10 * image], -1) for image in mr()]
    data = data_of(*images, channels=("T1", "T2"))
    assert plan_intensity(data, find_modality(data))["intensity"].value["channel_wise"] is True


def test_a_ct_without_contrast_is_refused():
    data = data_of(np.full(LABEL.shape, 40.0), channels=("CT",))
    with pytest.raises(ValueError, match="all have the value 40"):
        plan_intensity(data, find_modality(data))
