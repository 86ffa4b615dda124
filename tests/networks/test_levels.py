"""The words that all networks share for their levels and sizes."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import UnetBasicBlock
from scripts.networks import levels
from torch import nn


@pytest.mark.parametrize(
    ("strides", "dims", "expected"),
    [
        (None, 2, ((1, 1), (2, 2), (4, 4))),
        ([2, 4, 8], 3, ((2,) * 3, (4,) * 3, (8,) * 3)),
        ([1, [2, 1], [4, 2]], 2, ((1, 1), (2, 1), (4, 2))),
    ],
)
def test_strides_and_steps(strides, dims, expected):
    full = levels.level_strides(strides, 3, dims)
    assert full == expected
    for fine, coarse, step in zip(full, full[1:], levels.steps(full), strict=False):
        assert tuple(f * s for f, s in zip(fine, step, strict=True)) == coarse


@pytest.mark.parametrize(
    ("strides", "match"),
    [
        ([1, 2], r"strides is \[1, 2\]; expected 3 entries"),
        ([1, 2, [4, 4, 4]], "each a number or 2 of them"),
        ([1, 0, 4], "expected 3 entries"),
        ([1, 2, 3], r"\(3, 3\) is not a multiple of \(2, 2\)"),
    ],
)
def test_refuses_strides(strides, match):
    with pytest.raises(ValueError, match=match):
        levels.level_strides(strides, 3, 2)


def test_one_number_or_a_list():
    assert levels.per_axis("window", 3, 2) == (3, 3)
    assert levels.per_axis("window", [3, 1], 2) == (3, 1)
    assert levels.per_level("blocks", 0, 3, minimum=0) == [0, 0, 0]
    assert levels.per_level("blocks", (1, 2), 2, minimum=1) == [1, 2]
    assert levels.fixed_size(32, (16, 8)) == (32, 32)
    for call, match in (
        (lambda: levels.per_axis("window", [3], 2), r"window is \[3\]; expected a positive number, or 2 of them"),
        (lambda: levels.per_level("blocks", [1, 0], 2, minimum=1), r"blocks is \[1, 0\]; expected .* at least 1, or 2"),
        (lambda: levels.fixed_size([16, 12], (16, 8)), r"img_size is \[16, 12\]; .* divisible by \(16, 8\)"),
        (lambda: levels.check_positive(width=3, heads=0), "heads is 0; expected at least 1"),
        (lambda: levels.check_rates(dropout=1.0), r"dropout is 1.0; expected a probability in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_grey_images_become_colour_where_colour_is_expected():
    x = torch.randn(2, 1, 4, 5)
    assert torch.equal(levels.grey_or_colour(x, 3), x.repeat(1, 3, 1, 1))
    assert levels.grey_or_colour(x, 1) is x
    assert levels.grey_or_colour(x.expand(-1, 2, -1, -1), 3).shape[1] == 2  # left to be refused


@pytest.mark.parametrize(
    ("module", "least"),
    [
        (nn.BatchNorm2d(4), 1),
        (nn.GroupNorm(2, 4), 1),
        (nn.GroupNorm(4, 4), 2),
        (nn.InstanceNorm2d(4), torch.inf),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(4, 4)), 2),
        (UnetBasicBlock(2, 4, 4, 3, 1, norm_name="instance"), torch.inf),
        (nn.Identity(), 1),
    ],
)
def test_single_positions_are_allowed_where_torch_takes_them(module, least):
    assert levels.least_batch(module) == least
    for batch in (1, 2):
        x = torch.randn(batch, 4, 1, 1)
        if batch < least:
            with pytest.raises(ValueError, match=r"spatial size \(1, 1\): a single position.*divisible by \(8, 8\)"):
                levels.check_not_single((1, 1), (8, 8), batch=batch, least_batch=least)
            with pytest.raises(ValueError, match="more than 1"):
                module.eval()(x)
        else:
            levels.check_not_single((1, 1), (8, 8), batch=batch, least_batch=least)
            assert module.eval()(x).isfinite().all()
    levels.check_not_single((1, 2), (8, 8), batch=1, least_batch=least)
