"""Versions of a model: what is kept, what is served, what can be taken back."""

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from app_support import write_run, write_studies
from support import CONFIGS, ROOT

from monailabel_app.lib.models import find_source, read_config
from monailabel_app.lib.versions import Versions
from monailabel_app.versions import versions as command


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies") / "cohort")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / name, CONFIGS / "fusion_none.yaml", seed=seed) for name, seed in (("one", 3), ("two", 4))
    ]


@pytest.fixture
def versions(runs, tmp_path):
    """Version 1 was accepted, 2 was not, 3 was never judged."""
    found = Versions(tmp_path / "models" / "one", find_source("one", str(runs[0]), tmp_path))
    for number, accepted in (("1", True), ("2", False), ("3", None)):
        assert found.new()[0] == number
        shutil.copytree(runs[1], found.folder / number / "run")
        if accepted is not None:
            found.judge(number, {"accepted": accepted, "reason": f"because {number}"})
    return found


def test_only_accepted_versions_can_be_served(versions):
    assert versions.known() == ["0", "1"]
    assert versions.served == "0"
    versions.serve("1")
    assert versions.served == "1"
    for number in ("2", "3", "4", "../1"):
        with pytest.raises(ValueError, match="There is no version .* of one; there are 0, 1"):
            versions.serve(number)
    assert versions.served == "1"


def test_choice_survives_a_restart_and_can_be_taken_back(versions):
    versions.serve("1")
    again = Versions(versions.folder, versions.base)
    assert again.served == "1"
    again.serve("0")
    assert versions.served == "0"
    assert json.loads((versions.folder / "served.json").read_text())["history"] == ["0", "1"]


def test_versions_of_another_network_are_refused(versions, runs, tmp_path):
    versions.serve("1")
    with pytest.raises(ValueError, match="holds versions of another network"):
        Versions(versions.folder, find_source("one", str(runs[1]), tmp_path))


def test_request_names_a_version_and_a_new_choice_is_noticed(versions, studies):
    from monailabel_app.lib.infers.bundle import BundleInfer

    served = BundleInfer(versions=versions)
    image = {"image": str(studies / "imagesTr" / "HCC_001.nii.gz")}

    def mask(**more):
        file, told = served(image | more)
        return told["version"], np.asarray(nib.load(file).dataobj)

    first, as_given = mask()
    other, newer = mask(version=["1"])  # clients send the list of choices
    assert (first, other) == ("0", "1")
    assert (as_given != newer).any()
    versions.serve("1")
    now, found = mask()
    assert now == "1"
    np.testing.assert_array_equal(found, newer)
    np.testing.assert_array_equal(mask(version="0")[1], as_given)
    assert served.info()["version"] == "1"


def test_command_lists_and_serves(versions, runs, tmp_path):
    given = {"studies": str(tmp_path), "bundle": str(runs[0]), "output": str(tmp_path)}
    assert "* " in command(**given).splitlines()[1]
    text = command(serve=1, **given)
    assert text.splitlines()[2].startswith("*   1  because 1")
    assert versions.served == "1"
    with pytest.raises(ValueError, match="--model is 'three'; there are one"):
        command(model="three", **given)
    done = subprocess.run([str(ROOT / "nny"), "versions", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert "--serve" in done.stdout + done.stderr


class TestSourceBundle:
    def test_overlays_make_a_network_without_weights(self, tmp_path):
        source = find_source("fresh", f"{ROOT / 'bundle'}+dataset_phantom+network_swin_next_tiny", tmp_path)
        assert source.weights is None
        assert read_config(source).get_parsed_content("labels")[0] == "background"
        assert Versions(tmp_path / "models", source).known() == []

    def test_without_overlays_or_weights(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="has no models/model.pt"):
            find_source("fresh", str(ROOT / "bundle"), tmp_path)
        with pytest.raises(ValueError, match="no overlay 'network_x'"):
            find_source("fresh", f"{ROOT / 'bundle'}+network_x", tmp_path)

    def test_overlays_on_a_run(self, runs, tmp_path):
        with pytest.raises(ValueError, match="overlays belong to a bundle"):
            find_source("one", f"{runs[0]}+network_unet", tmp_path)
