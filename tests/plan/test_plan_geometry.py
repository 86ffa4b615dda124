import math

import numpy as np
import pytest
from plan_support import fingerprint_of, geometry
from scripts.plan.geometry import coarsen, plan_grid
from scripts.plan.stages import patch_path


def grid_of(*cases, known=None):
    return plan_grid(fingerprint_of([geometry(*case) for case in cases]), known)


def test_one_spacing_is_kept():
    grid = grid_of(*[((100, 70, 44), (1.25, 1.25, 1.25))] * 4)
    assert grid.spacing == (1.25, 1.25, 1.25)
    assert grid.shape == (100, 70, 44)
    assert (grid.known, grid.thick, grid.axcodes) == (True, False, "RAS")


def test_median_spacing_and_thin_end_of_thick_slices():
    thin, thick = ((256, 256, 60), (1.0, 1.0, 2.0)), ((256, 256, 20), (1.0, 1.0, 6.0))
    grid = grid_of(thin, *[thick] * 9)
    assert grid.spacing[:2] == (1.0, 1.0)
    assert grid.spacing[2] == pytest.approx(np.percentile([2.0] + [6.0] * 9, 10), abs=1e-3)  # 5.6
    assert grid.thick
    assert grid.shape[2] == round(20 * 6 / 5.6)
    grid = grid_of(*[thin] * 4, ((256, 256, 50), (0.8, 0.8, 2.5)))
    assert grid.spacing == (1.0, 1.0, 2.0)
    assert not grid.thick


def test_slices_across_another_axis_come_last():
    grid = grid_of(*[((200, 18, 220), (0.9, 5.0, 0.8))] * 3, ((200, 200, 18), (0.9, 0.8, 5.0)))
    assert grid.axcodes == "RSA"
    assert grid.order == [0, 2, 1]
    assert "3 of 4" in grid.reasons["axcodes"]
    sagittal = grid_of(*[((20, 200, 220), (4.0, 0.8, 0.7))] * 3)
    assert (sagittal.axcodes, sagittal.spacing, sagittal.shape) == ("ASR", (0.8, 0.7, 4.0), (200, 220, 20))


def test_a_spacing_of_one_is_believed_only_where_it_can_be():
    flat = ((216, 256, 10), (1.0, 1.0, 1.0))
    assert not grid_of(flat, flat).known
    assert grid_of(flat, flat).thick
    assert "guessed" in grid_of(flat).reasons["spacing_known"]
    cube = ((240, 240, 155), (1.0, 1.0, 1.0))
    assert grid_of(cube, cube).known
    assert not grid_of((*cube, False), (*cube, False)).known  # the header says nothing of its geometry
    assert grid_of(flat, known=True).known
    assert not grid_of(((216, 256, 10), (1.4, 1.4, 8.0)), known=False).known


def test_voxels_grow_until_a_patch_sees_enough():
    case = ((512, 512, 300), (0.75, 0.75, 1.5))
    data = fingerprint_of([geometry(*case)] * 3)
    grid = plan_grid(data)
    wide = coarsen(grid, data, 96**3)
    assert 96**3 / math.prod(wide.shape) == pytest.approx(0.05, rel=0.1)
    assert wide.spacing[0] == wide.spacing[1] > 1.4  # the finest axes first …
    assert wide.spacing[2] <= 1.6  # … and no further than needed
    assert coarsen(grid, data, 2**23) is grid  # 10 % are enough
    assert max(coarsen(grid, data, 16**3).spacing) <= 2.5 * 0.75  # but not without end


def test_patches_grow_alike_to_the_volume():
    grid = grid_of(*[((100, 70, 44), (1.25, 1.25, 1.25))] * 2)
    path = patch_path(grid, (16, 16, 16))
    assert path[0] == [32, 32, 32]
    assert [64, 48, 32] in path
    assert path[-1] == [112, 80, 48]
    assert all(sum(b) - sum(a) == 16 for a, b in zip(path, path[1:], strict=False))
    flat = grid_of(*[((216, 256, 10), (1.0, 1.0, 1.0))] * 2)
    assert patch_path(flat, (16, 16, 2))[0] == [32, 32, 10]  # few slices are never cut
    assert patch_path(flat, (16, 16, 2))[-1] == [224, 256, 10]
    assert patch_path(flat, (16, 16))[-1] == [224, 256]
    long = grid_of(*[((512, 512, 900), (0.7, 0.7, 0.7))] * 2)
    assert math.prod(patch_path(long, (16, 16, 16))[-1]) <= 1.2 * 256**3
