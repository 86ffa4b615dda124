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
