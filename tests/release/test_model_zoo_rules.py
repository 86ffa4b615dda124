"""The published rules of MONAI's model zoo and bundle specification, one test each.

Sources: model-zoo's CONTRIBUTING.md, docs/readme_template.md, ci/verify_bundle.py and ci/get_bundle_requirements.py,
MONAI's docs/source/mb_specification.rst.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from support import CONFIGS

TYPES = {"image", "series", "tuples", "probabilities"}
TENSOR = {"type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
FORBIDDEN = (".pyc", ".zip", ".tar", ".gz", ".exe", ".sh", ".so", ".pkl", ".ipynb", ".log", ".nii", ".dcm")


@pytest.fixture(scope="module")
def meta(bundle):
    return json.loads((bundle / "configs" / "metadata.json").read_text())


@pytest.fixture(scope="module")
def train(bundle):
    return yaml.safe_load((bundle / "configs" / "train.yaml").read_text())


@pytest.fixture(scope="module")
def inference(bundle):
    return yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())


def test_unzips_into_a_folder_named_like_the_bundle(archive, bundle):
    with zipfile.ZipFile(archive) as file:
        assert {name.split("/")[0] for name in file.namelist()} == {bundle.name}
    assert archive.name.startswith(f"{bundle.name}_v")


def test_name_says_task_and_data(bundle):
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", bundle.name)


def test_required_files_metadata_and_weights(bundle):
    assert (bundle / "configs" / "metadata.json").is_file()
    assert (bundle / "models" / "model.pt").is_file()


def test_preferred_files_licence_readme_inference(bundle):
    for name in ("LICENSE", "docs/README.md", "configs/inference.yaml"):
        assert (bundle / name).stat().st_size > 0


def test_licence_is_one_that_the_zoo_takes(bundle):
    assert "Apache License" in (bundle / "LICENSE").read_text()


def test_data_licence_is_in_docs(bundle):
    assert "Licence: CC0-1.0" in (bundle / "docs" / "data_license.txt").read_text()


def test_files_over_25_mb_come_by_link_and_none_is(bundle):
    assert max(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) <= 25 * 2**20


def test_no_forbidden_files(bundle):
    for path in bundle.rglob("*"):
        assert not path.name.startswith((".", "__pycache__")), path
        assert not path.is_symlink()
        assert path.suffix not in FORBIDDEN, path


def test_mandatory_keys_of_metadata(meta):
    mandatory = """version monai_version pytorch_version numpy_version required_packages_version task description
        authors copyright network_data_format"""
    assert set(mandatory.split()) <= set(meta)
    assert all(meta[key] for key in mandatory.split())


def test_display_name_in_metadata(meta):
    assert meta["name"] == "ball ct segmentation"


def test_version_is_in_the_changelog(meta):
    assert meta["version"] in meta["changelog"]


def test_tensors_are_described_by_the_mandatory_keys(meta):
    tensors = meta["network_data_format"]
    for tensor in (*tensors["inputs"].values(), *tensors["outputs"].values()):
        assert TENSOR | {"channel_def"} <= set(tensor)
        assert len(tensor["channel_def"]) == tensor["num_channels"]


def test_tensors_have_types_and_shapes_of_the_specification(meta):
    tensors = meta["network_data_format"]
    for tensor in (*tensors["inputs"].values(), *tensors["outputs"].values()):
        assert tensor["type"] in TYPES
        assert tensor["dtype"] == "float32"
        assert len(tensor["value_range"]) in (0, 2)
        for size in tensor["spatial_shape"]:  # a number, or an expression of variables with one letter
            assert isinstance(size, int) or re.fullmatch(r"\d+\*(n|\(n\+\d\))", size), size


def test_optional_keys_of_metadata_are_there(meta):
    optional = "changelog intended_use data_source data_type references image_classes label_classes pred_classes"
    assert all(meta[key] for key in optional.split())


def test_input_is_called_image_and_output_pred(meta):
    assert next(iter(meta["network_data_format"]["inputs"])) == "image"
    assert list(meta["network_data_format"]["outputs"]) == ["pred"]


def test_schema_is_that_of_monai_and_metadata_follow_it(bundle, meta):
    assert meta["schema"].startswith("https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/")
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(bundle / "docs" / "schema.json"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", "1"), ("changelog", {}), ("network_data_format", {"inputs": {}}), ("copyright", ""), ("task", None)],
)
def test_schema_refuses_what_the_specification_forbids(bundle, meta, tmp_path, key, value):
    (tmp_path / "metadata.json").write_text(json.dumps(meta | {key: value}))
    with pytest.raises(ValueError, match="."):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(bundle / "docs" / "schema.json"))


def test_metadata_of_the_repository_follow_the_schema(bundle):
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(bundle / "docs" / "schema.json"))


def test_keys_of_the_inference_config(inference):
    assert {"bundle_root", "device", "network_def", "inferer", "output_dir"} <= set(inference)


def test_keys_of_the_train_config(train):
    parser = ConfigParser(config=train)
    for key in ("bundle_root", "device", "dataset_dir", "output_dir", "val_interval"):
        assert key in parser
    for key in ("trainer", "trainer::max_epochs", "dataset", "dataset::data", "handlers", "preprocessing", "inferer"):
        assert f"train::{key}" in parser
    for key in ("evaluator", "handlers", "dataset", "dataset::data", "preprocessing", "postprocessing", "key_metric"):
        assert f"validate::{key}" in parser
    (handler,) = [h for h in train["train"]["handlers"] if h["_target_"] == "ValidationHandler"]
    assert handler["interval"] == "@val_interval"


def test_paths_hold_nothing_personal(bundle):
    for path in (bundle / "configs").iterdir():
        assert not re.search(r"/home/|/Users/|/root\b|/tmp/|C:\\", path.read_text()), path


def test_declared_shapes_hold(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
        bundle_root=str(bundle),
        device="cpu",
    )


@pytest.mark.parametrize(("kind", "name"), [("infer", "inference"), ("train", "train")])
def test_properties_are_complete(bundle, data, tmp_path, kind, name):
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{name}.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=str(bundle / "configs" / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(bundle),
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        clinical_statistics=str(bundle / "models" / "clinical.json"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_monai_exports_the_weights_and_the_torchscript_loads(bundle, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
        bundle_root=str(bundle),
        use_trace=True,
        input_shape=[1, 1, 24, 24, 24],
    )
    image = torch.zeros(1, 1, 24, 24, 24)
    unknown = torch.full((1, 2), torch.nan)
    own = torch.jit.load(bundle / "models" / "model.ts")(image, unknown)
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), own, atol=1e-4, rtol=1e-4)


def test_zoo_installs_what_the_bundle_requires(bundle, meta):
    """Its CI installs from the metadata; people install from requirements.txt."""
    named = meta["required_packages_version"] | meta.get("optional_packages_version", {})
    named |= {"monai": meta["monai_version"], "torch": meta["pytorch_version"], "numpy": meta["numpy_version"]}
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name}=={version}" for name, version in named.items())
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line) for line in lines)


def test_card_has_the_parts_of_the_template(bundle, meta):
    card = (bundle / "docs" / "README.md").read_text()
    assert f"| authors | {meta['authors']} |" in card
    assert meta["description"] in card
    for data in ("| training data | Balls that a test drew |", "| cases | 8 training, 2 validation |", "resampled to"):
        assert data in card
    for part in ("| runs on |", "| trained for | 4 epochs |", "## Use it", "## How good it is", "## Where it fails"):
        assert part in card
    assert "not a medical device" in card or meta["intended_use"] in card
    assert all(reference in card for reference in meta["references"])


def test_card_says_how_to_export_and_what_was_not_tried(bundle):
    card = (bundle / "docs" / "README.md").read_text()
    assert "ckpt_export network_def" in card
    assert "--use_trace True" in card
    assert "TensorRT (`trt_export`) was not tried" in card


def test_code_has_the_zoos_style(bundle):
    """Its black, isort and flake8 with lines of 120, by ruff; names that a package hands on are no unused imports."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    settings = ["--isolated", "--no-cache", "--line-length=120", "--target-version=py311"]
    rules = ["--select=E,F,W,I", "--per-file-ignores=__init__.py:F401"]
    for command in (["check", *rules], ["format", "--check"]):
        done = subprocess.run([ruff, *command, *settings, bundle / "scripts"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
