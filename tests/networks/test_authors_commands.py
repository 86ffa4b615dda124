"""`nny import-weights`, `nny upkern` and `nny networks` as users type them: help, refusals, and what stays behind."""

from __future__ import annotations

import sys

import pytest
import torch
from monai.networks.nets import UNet
from scripts.__main__ import main

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
def nny(monkeypatch):
    """Run a command line; its exit status, or the message with which it ended."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nny", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code
        return 0

    return run


@pytest.fixture
def theirs(tmp_path):
    torch.manual_seed(0)
    torch.save(UNet(**ARGUMENTS).state_dict(), tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt"


def options(**changes):
    return [f"--{name}={value}" for name, value in (ARGUMENTS | changes).items()]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("import-weights", ["SOURCE", "TARGET", "OFFICIAL_CLASS", "model.utnet.UTNet", "--img_size [64,128,128]"]),
        ("upkern", ["SOURCE", "TARGET", "--kernel_size", "MedNeXt block", "odd side of the new kernels"]),
        ("networks", ["--output", "--forward", "--train", "half an hour"]),
    ],
)
def test_help_teaches(nny, capsys, command, said):
    assert nny(command, "--help") in (0, 2)  # fire says 2 where a command takes any flags
    text = " ".join("".join(capsys.readouterr()).split())
    assert [words for words in said if words not in text] == []


def test_imports(nny, theirs, tmp_path, capsys):
    assert nny("import-weights", theirs, tmp_path / "new" / "ours.pt", UNET, *options()) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "ours.pt")
    state = torch.load(tmp_path / "new" / "ours.pt", weights_only=True)
    expected = torch.load(theirs, weights_only=True)
    assert sum(value.sum() for value in state.values()) == pytest.approx(sum(v.sum() for v in expected.values()).item())


@pytest.mark.parametrize(
    ("official_class", "changes", "message"),
    [
        ("monai.networks.nets.Wings", {}, "monai.networks.nets.Wings is unknown; known are"),
        (UNET, {"wings": 2}, "has no argument wings; it has"),
        (UNET, {"strides": 2}, "strides=2"),
        (UNET, {"channels": "[4,12]"}, "of another shape"),
        ("monai.networks.nets.SegResNet", {"channels": "[4]"}, "has no argument channels"),
    ],
)
def test_refuses_class_arguments_and_weights(nny, theirs, tmp_path, official_class, changes, message):
    ended = nny("import-weights", theirs, tmp_path / "ours.pt", official_class, *options(**changes))
    assert ended.startswith("nny: ")
    assert message in ended
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pt"]


def damaged(theirs, how):
    """A file of weights with something wrong, in the format of today or, as the authors' files are, of years ago."""
    if how == "code":
        torch.save({"state_dict": print}, theirs)
    if how == "lacking":
        state = torch.load(theirs, weights_only=True)
        state.popitem()
        torch.save(state, theirs)
    if how.startswith("cut"):
        if how == "cut, old":
            torch.save(torch.load(theirs, weights_only=True), theirs, _use_new_zipfile_serialization=False)
        content = theirs.read_bytes()
        theirs.write_bytes(content[: len(content) // 2])
    return theirs


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code", "cannot be read as weights"),
        ("cut", "cannot be read as weights"),
        ("cut, old", "cannot be read as weights"),
        ("lacking", "1 missing in the file"),
    ],
)
def test_refuses_file(nny, theirs, tmp_path, how, message):
    ended = nny("import-weights", damaged(theirs, how), tmp_path / "ours.pt", UNET, *options())
    assert ended.startswith("nny: ")
    assert message in ended
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pt"]


@pytest.mark.parametrize("command", ["import-weights", "upkern"])
def test_target_is_another_file_of_weights(nny, theirs, command):
    if command == "upkern":
        block = {
            "norm.weight": torch.ones(2),
            "conv2.weight": torch.ones(4, 2, 1, 1),
            "conv1.weight": torch.ones(2, 1, 3, 3),
        }
        torch.save(block | {"conv3.weight": torch.ones(2, 4, 1, 1)}, theirs)
    before = theirs.read_bytes()
    rest = [UNET, *options()] if command == "import-weights" else []
    for target, message in ((theirs, "is also the source"), (theirs.with_suffix(".sh"), r"is no *.pt file")):
        ended = nny(command, theirs, target, *rest)
        assert message in ended
    assert theirs.read_bytes() == before
    assert len(list(theirs.parent.iterdir())) == 1


def test_a_write_that_fails_leaves_the_old_file(nny, theirs, tmp_path, monkeypatch):
    (tmp_path / "ours.pt").write_bytes(b"old")

    def disk_is_full(state, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", disk_is_full)
    assert nny("import-weights", theirs, tmp_path / "ours.pt", UNET, *options()) == "nny: No space left on device"
    assert (tmp_path / "ours.pt").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.pt", "theirs.pt"]
