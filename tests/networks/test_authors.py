"""The command that turns an authors' checkpoint into ours; each family has its own tests of numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from scripts.networks import authors, load_weights

UNET = "monai.networks.nets.UNet"
ARGUMENTS = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
}


@pytest.fixture
def official():
    torch.manual_seed(0)
    return UNet(**ARGUMENTS).eval()


def test_imports_weights(official, tmp_path):
    source = {"epoch": 3, "losses": [np.float64(0.5), np.float32(0.25)], "state_dict": official.state_dict()}
    torch.save(source, tmp_path / "theirs.pt")  # nnU-Net and its children keep numbers of numpy beside the weights
    target = tmp_path / "new" / "ours.pt"
    assert authors.import_weights(str(tmp_path / "theirs.pt"), str(target), UNET, **ARGUMENTS).startswith(str(target))
    network = authors.build(UNET, **ARGUMENTS).eval()
    load_weights(network, target)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(network(x), official(x))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_writes_nothing_when_the_weights_do_not_fit(official, tmp_path, change):
    state = official.state_dict()
    first = next(iter(state))
    tensor = state.pop(first)
    if change == "unknown":
        state |= {first: tensor, "other.weight": tensor}
    if change == "shape":
        state[first] = tensor[:1]
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"Nothing was loaded.\n1 (missing|unknown|of another shape)"):
        authors.import_weights(str(tmp_path / "theirs.pt"), str(tmp_path / "ours.pt"), UNET, **ARGUMENTS)
    assert not (tmp_path / "ours.pt").exists()


def test_refuses_code_in_a_checkpoint(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        authors.import_weights(str(tmp_path / "theirs.pt"), str(tmp_path / "ours.pt"), UNET, **ARGUMENTS)


def test_every_family_lists_its_classes():
    assert len(authors.official_classes()) == len(set(authors.official_classes())) >= 15


@pytest.mark.parametrize(
    ("name", "arguments", "error", "match"),
    [
        ("model.unknown.Net", {}, ValueError, "model.unknown.Net is unknown; known are .*model.utnet.UTNet"),
        (UNET, ARGUMENTS | {"wings": 2}, ValueError, "has no argument wings; it has"),
        (UNET, {"spatial_dims": 2}, TypeError, "needs the argument in_channels"),
    ],
)
def test_refuses(name, arguments, error, match):
    with pytest.raises(error, match=match):
        authors.build(name, **arguments)
