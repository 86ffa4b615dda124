import pytest
import torch
from scripts.inferers import ClinicalSlidingWindowInferer


def add_clinical(windows, clinical):
    assert clinical.shape == (windows.shape[0], 2)
    return windows + clinical.sum(1)[:, None, None, None, None]


def test_row_reaches_every_window():
    inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=3, overlap=0.5)
    image = torch.rand(1, 1, 20, 16, 9)
    out = inferer(image, add_clinical, clinical=torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(out, image + 3)


def test_without_clinical_several_images_are_served():
    inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=4)
    image = torch.rand(2, 1, 12, 8, 8)
    torch.testing.assert_close(inferer(image, lambda x: 2 * x), 2 * image)


@pytest.mark.parametrize(("images", "rows"), [(2, 2), (2, 1), (1, 2)])
def test_patients_cannot_mix(images, rows):
    inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8, 8), sw_batch_size=2)
    with pytest.raises(ValueError, match="one image at a time"):
        inferer(torch.rand(images, 1, 8, 8, 8), add_clinical, clinical=torch.zeros(rows, 2))


def by_slice(windows, clinical):
    """A 2D network whose logits depend on where in the image a voxel is, not on its window."""
    assert windows.ndim == 4
    assert clinical.shape == (windows.shape[0], 2)
    return torch.cat([windows, -windows], 1) + clinical.sum(1)[:, None, None, None]


@pytest.mark.parametrize("windows_per_batch", [1, 5, 100])
@pytest.mark.parametrize("depth", [1, 7])
def test_window_of_two_axes_slides_over_slices(windows_per_batch, depth):
    inferer = ClinicalSlidingWindowInferer(
        roi_size=[8, 8], sw_batch_size=windows_per_batch, overlap=0.5, mode="gaussian", cache_roi_weight_map=True
    )
    image = torch.rand(1, 1, 20, 5, depth)  # one axis is smaller than the window
    out = inferer(image, by_slice, clinical=torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(out, torch.cat([image, -image], 1) + 3)
    assert inferer.roi_size == [8, 8]


def test_slices_do_not_see_each_other():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.InstanceNorm2d(2))
    image = torch.rand(1, 1, 8, 8, 3)
    inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8), sw_batch_size=2)
    with torch.no_grad():
        out = inferer(image, network)
        slices = [network(image[..., k]) for k in range(3)]
    torch.testing.assert_close(out, torch.stack(slices, -1))


def test_window_of_two_axes_on_an_image_of_two_axes():
    inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8), sw_batch_size=2)
    image = torch.rand(1, 1, 20, 12)
    torch.testing.assert_close(inferer(image, by_slice, clinical=torch.zeros(1, 2))[:, :1], image)
