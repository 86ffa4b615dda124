"""The command that turns an authors' checkpoint into ours; each family has its own tests of numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_support import names, needs_golden, read
from monai.networks.nets import UNet
from scripts.networks import authors, load_weights
from scripts.networks.authors.keys import rename

UNET = "monai.networks.nets.UNet"
MEDNEXT = "nnunet_mednext.MedNeXt"
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


def test_refuses_keys_of_ours(official):
    network = authors.build(UNET, **ARGUMENTS)
    own, theirs = dict(network.state_dict()), dict(official.state_dict())
    before = {key: value.clone() for key, value in own.items()}
    first = next(iter(own))
    for state in (own, theirs | {first: own[first]}):
        with pytest.raises(ValueError, match=rf"{first}, are already named .*Nothing was loaded.*--initial_weights"):
            authors.load(network, state, UNET)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_two_names_for_one_tensor_are_refused():
    renamed = rename({"a.w": torch.zeros(1), "b.w": torch.ones(1)}, lambda key: "ours." + key[2:])
    assert renamed.keys() == {"ours.w", "b.w"}
    assert renamed["ours.w"] == 0


@needs_golden
def test_knows_every_class_of_the_fixtures():
    classes = {read(name)["official_class"] for name in names("*")}
    assert len(classes) >= 15
    for name in classes:
        assert authors._family(name)[1] in authors.official_classes()


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
        (MEDNEXT, {"in_channels": 1, "n_channels": 0, "n_classes": 2}, ValueError, r"MedNeXt\(.*n_channels=0"),
        ("model.utnet.UTNet", {"in_chan": 0, "base_chan": 8}, ValueError, r"UTNet\(in_chan=0, base_chan=8"),
    ],
)
def test_refuses(name, arguments, error, match):
    with pytest.raises(error, match=match):
        authors.build(name, **arguments)
