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


class TestFlips:
    """Mirrored passes are turned back: equivariant networks see no difference, others become the mean of themselves."""

    AXES = [(0,), (1,), (0, 1)]

    @staticmethod
    def convolution(spatial_dims, kernel):
        network = (torch.nn.Conv2d if spatial_dims == 2 else torch.nn.Conv3d)(1, 2, 3, padding=1, bias=False)
        with torch.no_grad():
            network.weight.copy_(kernel)
        return network.eval()

    @staticmethod
    def mean_kernel(kernel, axes):
        """What a convolution is whose passes over all flips are averaged: flipping the image flips the kernel."""
        for axis in axes:
            kernel = (kernel + kernel.flip(axis + 2)) / 2
        return kernel

    @pytest.mark.parametrize("axes", [*AXES, (2,), (0, 1, 2), (2, 0)])
    def test_volumes(self, axes):
        kernel, image = torch.rand(2, 1, 3, 3, 3), torch.rand(1, 1, 9, 7, 8)
        inferer = ClinicalSlidingWindowInferer(roi_size=(9, 7, 8), flip_axes=axes)
        with torch.no_grad():
            found = inferer(image, self.convolution(3, kernel))
            torch.testing.assert_close(found, self.convolution(3, self.mean_kernel(kernel, axes))(image))
            assert not torch.allclose(found, self.convolution(3, kernel)(image), atol=1e-3)
            even = self.convolution(3, self.mean_kernel(kernel, axes))
            torch.testing.assert_close(inferer(image, even), even(image))

    @pytest.mark.parametrize("axes", AXES)
    @pytest.mark.parametrize("depth", [None, 3])
    def test_slices(self, axes, depth):
        kernel = torch.rand(2, 1, 3, 3)
        image = torch.rand(1, 1, 9, 7, *([depth] if depth else []))
        inferer = ClinicalSlidingWindowInferer(roi_size=(9, 7), sw_batch_size=2, flip_axes=axes)
        odd, mean = self.convolution(2, kernel), self.convolution(2, self.mean_kernel(kernel, axes))
        with torch.no_grad():
            found = inferer(image, odd)
            planes = [image[..., k] for k in range(depth)] if depth else [image]
            expected = [mean(plane) for plane in planes]
            torch.testing.assert_close(found, torch.stack(expected, -1) if depth else expected[0])

    def test_every_view_is_seen_once_with_its_clinical_row(self):
        image, row, seen = torch.rand(1, 1, 8, 8, 8), torch.tensor([[1.0, 2.0]]), []

        def network(windows, clinical):
            seen.append(windows[0, 0])
            return add_clinical(windows, clinical)

        found = ClinicalSlidingWindowInferer(roi_size=(8, 8, 8), flip_axes=(0, 2))(image, network, clinical=row)
        torch.testing.assert_close(found, image + 3)
        own = image[0, 0]
        views = [own, own.flip(0), own.flip(2), own.flip(0, 2)]
        assert len(seen) == 4
        assert all(any(torch.equal(view, other) for other in seen) for view in views)

    @pytest.mark.parametrize(("size", "shape", "axes"), [((8, 8), (8, 8, 3), (2,)), ((8, 8, 8), (8, 8, 8), (3,))])
    def test_axes_that_the_network_does_not_see(self, size, shape, axes):
        inferer = ClinicalSlidingWindowInferer(roi_size=size, flip_axes=axes)
        with pytest.raises(ValueError, match="the network sees . axes of the image"):
            inferer(torch.rand(1, 1, *shape), torch.nn.Identity())

    def test_windows_that_meet_unevenly(self):
        image = torch.rand(1, 1, 20, 12, 9)
        inferer = ClinicalSlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.5, mode="gaussian", flip_axes=(0, 1, 2))
        torch.testing.assert_close(inferer(image, lambda windows: 2 * windows), 2 * image)
