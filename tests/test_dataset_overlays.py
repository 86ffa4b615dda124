"""Overlays of datasets go with every protocol, hold what their importers write, and train on the right cases."""

import json
import math

import nibabel as nib
import pytest
import torch
import yaml
from overlay_support import DATASETS, PROTOCOLS, SETTINGS, overlays, parsed, prepare, tiny_network
from scripts import workflows
from scripts.compare import running
from scripts.compare.collect import read_runs
from scripts.compare.groups import group_table
from scripts.datalists import read_datalist, split
from scripts.release.configs import as_yaml, flat_configs
from scripts.runs import fit_clinical
from scripts.verify.allowed import AllowList
from scripts.verify.configs import config_problems
from support import CONFIGS, ROOT

PARTS = ("dataloader", "loss", "optimizer", "lr_scheduler")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of each dataset, made on first use."""
    made = {}

    def get(name):
        name = name.removesuffix("_mm")
        if name not in made:
            made[name] = prepare(name, *(tmp_path_factory.mktemp(name) / part for part in ("raw", "data")))
        return made[name]

    return get


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_network(tmp_path_factory.mktemp("network"))


def trained(parser, data, fold):
    """One training step on two crops: image, what else the network got, logits of each scale, factors of the loss."""
    cases = split(read_datalist(data), fold)["training"][:2]
    parser["train::dataset::data"] = cases * (2 // len(cases))
    get = parser.get_parsed_content
    if get("clinical_schema") is not None:
        statistics = str(parser["output_dir"] + "/clinical.json")
        fit_clinical(get("clinical_schema"), str(data / "clinical.csv"), False, statistics, str(data), fold)
    network = get("network")
    loader, loss, optimizer, _ = (get(f"train::{part}") for part in PARTS)
    batches = list(loader)
    assert len(batches) == 1
    image, label, _, extra = (*get("prepare_batch")(batches[0], torch.device("cpu"), False), (), {})[:4]
    logits = network.train()(image, **extra)
    before = [p.detach().clone() for p in network.parameters()]
    value = loss(logits, label)
    value.backward()
    optimizer.step()
    assert math.isfinite(float(value.detach()))
    assert value > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in network.parameters())
    return image, extra, logits, loss._factors(len(logits))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_trains_by_every_protocol(dataset, protocol, prepared, tiny, tmp_path):
    data = prepared(dataset)
    fold = 0 if dataset in ("synapse", "mnms") else 1
    names = [tiny, *overlays(dataset, protocol), *(["fusion_none"] if dataset == "hcc_tace" else [])]
    steps = {} if protocol == "nny" else {"train::epoch_steps": 1}
    parser = parsed(*names, dataset_dir=str(data), output_dir=str(tmp_path), fold=fold, **SETTINGS, **steps)
    image, extra, logits, _ = trained(parser, data, fold)
    dims = 2 if protocol == "utnet" else 3
    assert image.shape == (2, 4 if dataset == "brats21" else 1, *[16] * dims)
    assert ("clinical" in extra) == (dataset == "kits19")
    assert logits[0].shape == (2, len(parser.get_parsed_content("labels")), *[16] * dims)


NARROW = {  # Swin-NeXt with a quarter of its channels
    "network_def::encoder::feature_size": 12,
    "network_def::decoder::channels": [12, 12, 24, 48, 96, 192],
    "bottleneck_channels": 192,
}
FLAT = {"strides": [1, [4, 4, 1], [8, 8, 2], [16, 16, 4], [32, 32, 8]], "block::convolutions": 2}  # UNETR++ on ACDC
OWN = {  # dataset and protocol of a paper: its network, a small patch, weights of the scales, changes
    ("hcc_tace", "nny"): (None, [64, 64, 64], [n / 63 for n in (32, 16, 8, 4, 2, 1)], NARROW),
    ("btcv", "mednext"): ("mednext_s", [32, 32, 32], [0.53333, 0.26667, 0.13333, 0.06667, 0], {}),
    ("brats21", "mednext"): ("mednext_s", [32, 32, 32], [0.53333, 0.26667, 0.13333, 0.06667, 0], {}),
    ("kits19", "mednext"): ("mednext_s", [32, 32, 32], [0.53333, 0.26667, 0.13333, 0.06667, 0], {}),
    ("synapse", "unetr_pp"): ("unetr_pp", [64, 64, 32], [4 / 7, 2 / 7, 1 / 7], {}),
    ("acdc_mm", "unetr_pp"): ("unetr_pp", [64, 64, 16], [4 / 7, 2 / 7, 1 / 7], FLAT),
    ("mnms", "utnet"): ("utnet", [128, 128], [1, 0.4, 0.2, 0.1], {}),
}


@pytest.mark.parametrize(("dataset", "protocol"), OWN, ids=lambda name: name)
def test_a_papers_network_trains_on_its_data_by_its_protocol(dataset, protocol, prepared, tmp_path):
    """The overlays in the order of the docs; what the loss weights are the scales that this very network has."""
    network, patch, weights, changes = OWN[dataset, protocol]
    data, fold = prepared(dataset), 0 if dataset in ("synapse", "mnms") else 1
    names = [*([f"network_{network}"] if network else []), *overlays(dataset, protocol), "fusion_none"]
    changes = SETTINGS | {"patch_size": patch} | changes | ({"train::epoch_steps": 1} if protocol != "nny" else {})
    parser = parsed(*names, dataset_dir=str(data), output_dir=str(tmp_path), fold=fold, **changes)
    image, _, logits, factors = trained(parser, data, fold)
    assert image.shape[2:] == torch.Size(patch)
    assert logits[0].shape == (2, len(parser.get_parsed_content("labels")), *patch)
    assert factors == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize(
    ("dataset", "spacing", "patch", "classes"),
    [
        ("btcv", [1.5, 1.5, 2.0], [96, 96, 96], 14),
        ("synapse", [0.76, 0.76, 3.0], [128, 128, 64], 9),
        ("amos22", [1.0, 1.0, 1.0], [128, 128, 128], 16),
        ("kits19", [1.0, 1.0, 1.0], [128, 128, 128], 3),
        ("brats21", [1.0, 1.0, 1.0], [128, 128, 128], 4),
        ("acdc_mm", [1.52, 1.52, 6.35], [160, 160, 16], 4),
        ("mnms", [1.2, 1.2, -1], [256, 256, 16], 4),
    ],
)
def test_dataset_has_the_grid_of_its_paper_and_the_classes_of_its_importer(dataset, spacing, patch, classes, prepared):
    parser = parsed(*overlays(dataset))
    assert [parser[name] for name in ("spacing", "patch_size")] == [spacing, patch]
    declared = json.loads((prepared(dataset) / "dataset.json").read_text())["labels"]
    assert parser["labels"] == list(declared.values())
    assert len(parser["labels"]) == len(parser["class_ratios"]) == parser.get_parsed_content("out_channels") == classes


def test_first_dataset_is_that_of_the_base():
    named = yaml.safe_load((CONFIGS / "dataset_hcc_tace.yaml").read_text())
    base = parsed()
    assert {key: base[key] for key in named} == named


def test_an_epoch_has_the_steps_of_the_protocol_whatever_the_number_of_cases(prepared, tiny):
    data = prepared("left_atrium")
    parser = parsed(tiny, *overlays("left_atrium", "mednext"), dataset_dir=str(data), fold=1, **SETTINGS)
    parser.update({"train::epoch_steps": 7, "spacing": [4.0, 4.0, 4.0]})
    torch.manual_seed(0)
    drawn = list(parser.get_parsed_content("train::sampler"))
    assert len(drawn) == 14
    assert set(drawn) == {0}  # the one case there is
    assert len(parser.get_parsed_content("train::dataloader")) == 7
    assert parser.get_parsed_content("train::trainer::epoch_length") == 7


def test_minutes_of_a_comparison_count_the_steps_of_the_protocol(prepared, monkeypatch):
    monkeypatch.setattr(running, "seconds_per_step", lambda config: 0.6)
    data = str(prepared("left_atrium"))
    assert running.epochs_for(overlays("left_atrium", "mednext"), data, 10, {"fold": 1}) == 4  # of 250 steps
    assert running.epochs_for(overlays("left_atrium", "nny"), data, 10, {"fold": 1}) == 1000  # of 1


@pytest.fixture(scope="module")
def cardiac(prepared, tiny, tmp_path_factory):
    """M&Ms as UTNet trained on it, for six steps."""
    run = tmp_path_factory.mktemp("utnet") / "run"
    small = {**SETTINGS, "patch_size": [16, 16], "epochs": 6, "warmup_epochs": 1, "train::epoch_steps": 1}
    small["inferer::overlap"] = 0.0
    small["validate::dataset::data"] = "$scripts.datalists.part(@dataset_dir, @fold, 'validation')[:1]"
    names = [tiny, *overlays("mnms", "utnet")]
    workflows.train(str(prepared("mnms")), str(run), names, fold=0, **(small | {"val_interval": 6}))
    workflows.evaluate(str(run))
    return run


def test_training_sees_vendors_a_and_b_and_the_test_all_four(cardiac):
    parts = json.loads((cardiac / "datalist.json").read_text())
    groups = {name: sorted({case["group"] for case in cases}) for name, cases in parts.items()}
    assert groups == {"training": ["A", "B"], "validation": ["A", "B", "C", "D"]}
    assert {case["patient_id"] for case in parts["training"]} == {"A0S9V9", "B3K1M2"}
    rows = read_runs([cardiac])[0].files.per_case
    vendor = {case["case_id"]: case["group"] for case in parts["validation"]}
    table = rows.assign(variant="utnet", group=rows["case_id"].map(vendor), patient=rows["case_id"], value=rows["dice"])
    found = group_table(table)
    assert list(found["group"]) == ["A", "B", "C", "D"]
    assert found["worst"].sum() >= 1


def test_rate_of_a_run_follows_the_protocol(cardiac):
    log = [float(line.split(",")[-2]) for line in (cardiac / "log.csv").read_text().splitlines()[1:]]
    wanted = [0.05 * math.exp(-10), 0.05, *(0.05 * (1 - e / 6) ** 0.9 for e in range(2, 6))]
    assert log == pytest.approx(wanted, rel=1e-3)


def test_released_configurations_of_such_a_run_are_accepted(cardiac, tmp_path):
    for name, config in flat_configs(cardiac).items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(as_yaml(config, name))
        assert list(config_problems(file, AllowList(ROOT / "bundle" / "scripts"))) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_protocols_and_regions_name_is_accepted(protocol, tmp_path):
    config = {k: v for k, v in parsed("dataset_brats21", f"protocol_{protocol}").get().items() if k != "_meta_"}
    file = tmp_path / "train.yaml"
    file.write_text(as_yaml(config, "train"))
    assert list(config_problems(file, AllowList(ROOT / "bundle" / "scripts"))) == []


def test_challenge_split_of_the_importer(prepared):
    entries = json.loads((prepared("mnms") / "dataset.json").read_text())["training"]
    folds = {}
    for entry in entries:
        folds.setdefault(entry["fold"], set()).add(entry["group"])
    assert folds == {0: {"A", "B", "C", "D"}, 1: {"A", "B"}}
    image = nib.load(prepared("mnms") / "imagesTr" / f"{entries[0]['case_id']}.nii.gz")
    assert image.ndim == 3
