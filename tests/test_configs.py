"""Every choice of network, fusion and dataset merges into a complete configuration."""

import json
import pydoc

import pytest
import torch
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from scripts.clinical import ClinicalSchema
from scripts.runs import fit_clinical
from support import CONFIGS, ROOT, ball_dataset

NETWORKS = ["", *sorted(p.stem for p in CONFIGS.glob("network_*.yaml"))]
FUSIONS = ["", *sorted(p.stem for p in CONFIGS.glob("fusion_*.yaml"))]
DATASETS = sorted(p.stem for p in CONFIGS.glob("dataset_*.yaml"))
WORKFLOWS = {"training": ["train"], "evaluating": ["train", "evaluate"], "inference": []}


def merged(run_id, *overlays, **overrides):
    first, *rest = ["inference", *WORKFLOWS[run_id]]
    names = [
        first,
        *[n for n in rest if n != "evaluate"],
        *filter(None, overlays),
        *[n for n in rest if n == "evaluate"],
    ]
    return ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.yaml") for name in names],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train" if run_id == "training" else "infer",
        run_id=run_id,
        **overrides,
    )


def targets(config):
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from targets(item)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_targets_resolve(path):
    for config in targets(ConfigParser.load_config_file(str(path))):
        name = ConfigComponent(config=config, id="").resolve_module_name()
        assert pydoc.locate(name) if isinstance(name, str) else callable(name), name


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = ball_dataset(tmp_path_factory.mktemp("data"), 5)
    schema = ClinicalSchema.from_yaml(CONFIGS / "clinical_hcc_tace.yaml", columns=["age"])
    fit_clinical(schema, str(folder / "clinical.csv"), False, str(folder / "clinical.json"), str(folder), 0)
    return folder


@pytest.mark.parametrize("run_id", WORKFLOWS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_property_of_a_bundle_is_missing(run_id, fusion, data, tmp_path):
    workflow = merged(
        run_id,
        "network_swin_next_tiny",
        fusion,
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        patch_size=[32, 32, 32],
        clinical_statistics=str(data / "clinical.json"),
        clinical_columns=["age"],
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_network_is_built(network, fusion):
    workflow = merged("inference", network, fusion)
    workflow.initialize()
    network = workflow.network_def
    assert sum(p.numel() for p in network.parameters()) > 1e5
    assert network.fusion.__class__.__name__.lower().startswith(
        (fusion or "fusion_cross").split("_")[1].replace("none", "no")
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dataset", ["", *DATASETS])
def test_every_dataset_serves_networks_of_slices_and_of_volumes(dataset, dims):
    patch = [64, 64, 32][: 2 if dataset.endswith("_2d") and dims == 2 else 3]
    workflow = merged("inference", dataset, "network_swin_next_tiny", spatial_dims=dims, patch_size=patch)
    workflow.initialize()
    assert list(workflow.inferer.roi_size) == patch[:dims]
    classes = len(workflow.parser["labels"])
    with torch.no_grad():
        image = torch.zeros(1, workflow.parser["in_channels"], 40, 40, 5)
        logits = workflow.inferer(image, workflow.network_def.eval())
    assert logits.shape == (1, classes, 40, 40, 5)


def test_network_overlays_are_short():
    for path in CONFIGS.glob("network_*.yaml"):
        assert len(path.read_text().splitlines()) <= 20, path


def test_metadata_agrees_with_the_base_and_the_changelog():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    base = ConfigParser.load_config_file(str(CONFIGS / "inference.yaml"))
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values()) == base["labels"]
    assert metadata["version"] in metadata["changelog"]
    assert f"## {metadata['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{metadata["version"]}"' in (ROOT / "pyproject.toml").read_text()
    pinned = dict(line.split("#")[0].strip().split("==") for line in requirements())
    for name, version in metadata["required_packages_version"].items():
        assert pinned[name] == version, name
    assert pinned["monai"] == metadata["monai_version"]
    assert pinned["torch"] == metadata["pytorch_version"]


def requirements():
    return [line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line.split("#")[0]]
