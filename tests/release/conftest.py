"""One evaluated run, and its release, for all tests of this folder."""

import pytest
from release_support import SAID, release_and_unpack
from scripts import workflows
from support import ball_dataset, tiny_overlay


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A run with clinical data, trained for a moment and evaluated."""
    folder = tmp_path_factory.mktemp("run")
    overlay = tiny_overlay(folder)
    workflows.train(str(data), str(folder / "balls"), str(overlay), epochs=4, val_interval=2)
    workflows.evaluate(str(folder / "balls"))
    return folder / "balls"


@pytest.fixture(scope="session")
def released(run, tmp_path_factory):
    """The zip and the unpacked bundle."""
    return release_and_unpack(run, tmp_path_factory.mktemp("release"), **SAID)


@pytest.fixture(scope="session")
def archive(released):
    return released[0]


@pytest.fixture(scope="session")
def bundle(released):
    return released[1]
