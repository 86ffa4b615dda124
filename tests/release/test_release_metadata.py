"""metadata.json says what the run is: classes, sizes, versions, scores, clinical input, origin."""

import json

import pytest
import torch
from monai.bundle import verify_net_in_out
from networks.test_contract import build
from scripts.release import requirements
from scripts.release.facts import patch_rule, read_facts


@pytest.fixture(scope="module")
def meta(bundle):
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def test_classes_and_shapes_are_those_of_the_network(meta):
    image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "ball"}
    assert pred["num_channels"] == 2
    assert image["num_channels"] == 1
    assert image["dtype"] == pred["dtype"] == "float32"
    assert image["spatial_shape"] == pred["spatial_shape"] == ["8*(n+1)"] * 3
    assert image["patch_size"] == [24, 24, 24]
    assert image["value_range"] == []  # normalised, not scaled to a range


def test_clinical_input_is_described_after_the_image(meta):
    inputs = meta["network_data_format"]["inputs"]
    assert list(inputs) == ["image", "clinical"]
    clinical = inputs["clinical"]
    assert clinical["channel_def"] == {"0": "age", "1": "Sex"}
    assert clinical["num_channels"] == 2
    assert clinical["optional"] is True
    age, sex = clinical["columns"]
    assert (age["kind"], age["unit"]) == ("numeric", "years")
    assert sex["categories"] == ["1", "2"]


def test_scores_are_those_of_the_evaluation(meta, run):
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert meta["eval_metrics"]["mean_dice"] == round(summary["total"]["dice"]["mean"], 4)
    assert meta["eval_metrics"]["dice"] == {"ball": round(summary["classes"]["ball"]["dice"]["mean"], 4)}
    assert meta["eval_metrics"]["cases"] == 2


def test_versions_are_those_that_trained_it(meta, run, bundle):
    trained = json.loads((run / "versions.json").read_text())
    assert meta["monai_version"] == trained["monai"]
    assert meta["pytorch_version"] == trained["torch"].partition("+")[0]
    assert meta["numpy_version"] == trained["numpy"]
    pins = dict(line.split("==") for line in (bundle / "requirements.txt").read_text().splitlines())
    assert meta["required_packages_version"] == {k: v for k, v in pins.items() if k not in ("torch", "monai", "numpy")}
    assert {"nibabel", "pytorch-ignite", "fire", "jsonschema", "scikit-image", "PyYAML"} <= set(pins)
    assert not {"monailabel", "pytest", "matplotlib", "Jinja2"} & set(pins)


def test_what_the_user_said_is_there(meta):
    assert meta["data_source"] == "Balls that a test drew"
    assert meta["data_licence"] == "CC0-1.0"
    assert meta["intended_use"] == "Tests"
    assert meta["copyright"] == "Copyright (c) A. Tester"
    assert list(meta["changelog"]) == ["1.2.0", "1.1.0"]


def test_monai_finds_the_declared_output(bundle):
    clinical = torch.tensor([[float("nan"), 1.0]])
    for extra in ({}, {"clinical": clinical}):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(bundle / "configs" / "metadata.json"),
            config_file=str(bundle / "configs" / "inference.yaml"),
            device="cpu",
            extra_forward_args=extra,
        )


@pytest.mark.parametrize(
    ("name", "patch", "rule", "smallest"),
    [
        ("dynunet", [16, 8, 8], ["4*(n+1)"] * 3, [8, 8, 8]),
        ("segresnet", [8, 8, 8], ["2*n"] * 3, [2, 2, 2]),
        ("nnformer", [16, 8, 8], ["8*n", "8*n", "4*n"], [8, 8, 4]),
        ("transunet", [32, 32], [32, 32], [32, 32]),  # position embeddings fit one size only
        ("swin_unet", [16, 8], [16, 8], [16, 8]),
    ],
)
def test_rule_for_sizes(name, patch, rule, smallest):
    assert patch_rule(build(name).eval(), patch) == (rule, smallest)


def test_network_is_left_as_it_was_by_the_search_for_its_sizes():
    network = build("unet").eval()
    patch_rule(network, [8, 8, 8])
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_dataset_says_where_the_data_come_from(run, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "masks"))
    from scripts.release.metadata import data_licence, data_source

    assert data_source(read_facts(folder), {}) == "not known"
    stated = {"name": "Balls", "description": "drawn", "licence": "CC0", "reference": "a test", "labels": {}}
    (folder / "dataset.json").write_text(json.dumps(stated))
    facts = read_facts(folder)
    assert data_source(facts, {}) == "Balls, drawn (a test)"
    assert data_licence(facts, {}) == "CC0"


def test_versions_of_the_run_win_over_installed_ones():
    pins = requirements.requirements(["import nibabel"], ["LoadImaged"], {"nibabel": "1.2.3", "torch": "9.9.9+cu999"})
    assert pins["nibabel"] == "1.2.3"
    assert pins["torch"] == "9.9.9"
    assert "itk" in pins
    assert "tensorboard" not in pins


def test_package_that_is_not_installed_is_refused():
    with pytest.raises(ValueError, match="nothing_like_it is not installed"):
        requirements.requirements(["import nothing_like_it"], [], {})
