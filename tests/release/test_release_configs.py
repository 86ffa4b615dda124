"""Flat configurations: complete alone, plain, with the ids that MONAI and MONAI Label look for."""

import pytest
import yaml
from monai.bundle import ConfigWorkflow
from scripts.release.configs import as_yaml, flat_configs, named_files

NAMES = ["inference", "train", "evaluate", "multi_gpu_train"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_complete_and_plain(bundle, name):
    text = (bundle / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    assert isinstance(config["network_def"], dict)  # MONAI Label sets network_def["dropout"]
    assert config["network_def"]["dropout"] == 0.0
    assert config["bundle_root"] == "$str(scripts.BUNDLE_ROOT)"
    assert not any(key.startswith("+") or "::" in key for key in config)
    if "train" in name:
        assert isinstance(config["train"]["handlers"], list)  # where MONAI Label inserts a CheckpointLoader
        assert config["initial_weights"] is None


@pytest.mark.parametrize(("kind", "name"), [("infer", "inference"), ("infer", "evaluate"), ("train", "train")])
def test_no_property_of_a_bundle_is_missing(bundle, data, tmp_path, kind, name):
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{name}.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        **({"clinical_statistics": str(bundle / "models" / "clinical.json")} if kind == "train" else {}),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_loads_the_weights_beside_it(bundle):
    config = yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())
    assert config["checkpoint"] == "$@bundle_root + '/models/model.pt'"
    assert config["clinical_statistics"] == "$@bundle_root + '/models/clinical.json'"


def test_what_came_before_the_training_stays_out(run, tmp_path):
    """A run that enlarged the kernels of another one: nobody else has that one."""
    first = "$scripts.stages.train_first(@output_dir + '/k3')"
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"upkern_source": "/k3.pt", "initial_weights": first}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "inference.yaml").write_text((run / "inference.yaml").read_text() + "\nupkern_source: /k3.pt\n")
    found, expected = (flat_configs(folder) for folder in (tmp_path, run))
    assert found == expected


def test_letters_of_other_alphabets_are_escaped():
    """MONAI reads a configuration in the encoding of the system."""
    text = as_yaml({"labels": ["Größe", "肝臓"]}, "train")
    assert text.isascii()
    assert yaml.safe_load(text) == {"labels": ["Größe", "肝臓"]}


def test_files_that_configurations_read_are_found():
    configs = {
        "a": {"x": ["$f(@bundle_root + '/configs/b.yaml')"], "y": "/configs/c.yaml", "z": '$g("/configs/d.json")'}
    }
    assert named_files(configs) == ["b.yaml", "d.json"]
