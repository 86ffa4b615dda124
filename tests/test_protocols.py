"""The papers' protocols: numbers, learning rates, augmentation, sampling; and commands of the docs that can be run."""

import inspect
import math
import re
import shlex

import numpy as np
import pytest
import torch
import yaml
from monai.losses import DiceCELoss
from overlay_support import PROTOCOLS, parsed
from scripts.compare import compare
from scripts.compare.papers import paper_tables
from scripts.prepare.commands import COMMANDS
from scripts.schedules import ExponentialWarmup
from support import CONFIGS

WANTED = {  # the papers' numbers
    "mednext": {
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [128, 128, 128],
        "batch_size": 2,
        "epochs": 1000,
        "train::epoch_steps": 250,
        "learning_rate": 0.001,
        "weight_decay": 3e-5,
        "max_gradient_norm": 12,
        "inferer::overlap": 0.5,
        "val_interval": 1000,
        "train::loss::lambda_focal": 0,
        "train::optimizer::_target_": "torch.optim.AdamW",
        "train::optimizer::eps": 1e-4,
        "ema_decay": 0,
    },
    "unetr_pp": {
        "batch_size": 2,
        "epochs": 1000,
        "train::epoch_steps": 250,
        "learning_rate": 0.01,
        "weight_decay": 3e-5,
        "max_gradient_norm": 12,
        "inferer::overlap": 0.5,
        "train::loss::lambda_focal": 0,
        "train::optimizer::_target_": "torch.optim.SGD",
        "train::optimizer::momentum": 0.99,
        "train::optimizer::nesterov": True,
        "train::loss::deep_supervision_weights": None,
    },
    "utnet": {
        "spatial_dims": 2,
        "patch_size": [256, 256],
        "batch_size": 32,
        "epochs": 150,
        "learning_rate": 0.05,
        "weight_decay": 1e-4,
        "warmup_epochs": 5,
        "max_gradient_norm": math.inf,
        "class_ratios": [1, 0, 0, 0],
        "train::loss::weight": [0.5, 1, 1, 1],
        "train::loss::finest_weights": [1, 0.4, 0.2, 0.1],
        "train::loss::lambda_focal": 0,
        "train::optimizer::_target_": "torch.optim.SGD",
        "train::optimizer::momentum": 0.9,
    },
    "nny": {
        "train::loss::lambda_dice": 1,
        "train::loss::lambda_focal": 1,
        "train::loss::lambda_ce": 1,
        "inferer::overlap": 0.5,
    },
}


def value_of(parser, name):
    held = parser[name]
    return held if name.endswith("_target_") or held is None else parser.get_parsed_content(name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocol_has_the_numbers_of_its_paper(protocol):
    parser = parsed("dataset_mnms", f"protocol_{protocol}")
    assert {name: value_of(parser, name) for name in WANTED[protocol]} == WANTED[protocol]


def test_protocol_of_the_first_paper_is_the_training_of_the_base():
    base, named = parsed(), parsed("protocol_nny")
    for key in ("batch_size", "epochs", "learning_rate", "weight_decay", "warmup_epochs", "ema_decay"):
        assert named[key] == base[key]
    for part in ("optimizer", "lr_scheduler", "cropping", "augmentation", "dataloader"):
        assert named[f"train::{part}"] == base[f"train::{part}"]
    loss = base.get_parsed_content("train::loss")
    assert [loss.lambda_dice, loss.lambda_focal, loss.lambda_ce] == [1, 1, 1]  # as the protocol says


def rates(protocol):
    """Learning rate of each epoch."""
    parser = parsed(f"protocol_{protocol}", "fusion_none")
    weights = torch.nn.Parameter(torch.zeros(1))
    parser["train::optimizer::params"] = [weights]
    optimizer, schedule = (parser.get_parsed_content(f"train::{name}") for name in ("optimizer", "lr_scheduler"))
    found = []
    for _ in range(parser["epochs"]):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rates_from_start_over_warm_up_to_end():
    for protocol, top in (("mednext", 0.001), ("unetr_pp", 0.01)):
        found = rates(protocol)
        wanted = {0: top, 1: top * 0.999**0.9, 500: top * 0.5**0.9, 999: top * 0.001**0.9}
        assert {epoch: found[epoch] for epoch in wanted} == pytest.approx(wanted, rel=1e-6)
    found = rates("utnet")
    wanted = {0: 0.05 * math.exp(-10), 4: 0.05 * math.exp(-2), 5: 0.05, 6: 0.05 * (144 / 150) ** 0.9}
    wanted[149] = 0.05 * (1 / 150) ** 0.9
    assert {epoch: found[epoch] for epoch in wanted} == pytest.approx(wanted, rel=1e-6)
    assert max(found) == found[5]
    found = rates("nny")
    assert [found[0], found[10]] == pytest.approx([0.0001, 0.001])
    assert found[155] == pytest.approx(0.0005)
    assert found[299] < 1e-7


def test_schedule_goes_on_where_it_was_saved():
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
        return optimizer, ExponentialWarmup(optimizer, warmup_epochs=2, max_epochs=10)

    (_, first), (optimizer, second) = made(), made()
    for _ in range(4):
        first.optimizer.step()
        first.step()
    second.load_state_dict(first.state_dict())
    optimizer.step()
    second.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**0.9)
    for wrong in ({"warmup_epochs": 10, "max_epochs": 10}, {"warmup_epochs": -1, "max_epochs": 10}):
        with pytest.raises(ValueError, match="warmup_epochs"):
            ExponentialWarmup(optimizer, **wrong)
    with pytest.raises(ValueError, match="power is 0"):
        ExponentialWarmup(optimizer, warmup_epochs=1, max_epochs=10, power=0)


def probabilities(parser, part):
    return [(step["_target_"], step.get("prob")) for step in parser[f"train::{part}::transforms"] if "prob" in step]


def test_augmentation_is_that_of_the_paper():
    nnunet = [
        ("RandGaussianNoised", 0.1),
        ("RandGaussianSmoothd", 0.2),
        ("RandScaleIntensityd", 0.15),
        ("RandScaleIntensityFixedMeand", 0.15),
        ("RandSimulateLowResolutiond", 0.25),
        ("RandAdjustContrastd", 0.1),
        ("RandAdjustContrastd", 0.3),
    ]
    for protocol in ("mednext", "unetr_pp"):
        parser = parsed("dataset_acdc", f"protocol_{protocol}")
        assert probabilities(parser, "augmentation") == nnunet
        assert probabilities(parser, "cropping") == [("RandAffined", 0.2)] * 2
        assert parser["flip_axes"] == [0, 1, 2]  # also where the dataset's overlay does not mirror
    parser = parsed("dataset_mnms", "protocol_utnet")
    always = ["RandGaussianNoised", "RandShiftIntensityd", "RandAdjustContrastd"]
    assert probabilities(parser, "augmentation") == [(name, 1.0) for name in always]
    assert probabilities(parser, "cropping") == [("RandAffined", 1.0)]
    affine = parser.get_parsed_content("train::cropping::transforms::1").rand_affine.rand_affine_grid
    assert affine.rotate_range == pytest.approx([0, 0, math.pi], abs=1e-4)
    assert [list(limits) for limits in affine.scale_range] == [[-0.3, 0.3], [-0.3, 0.3], [0.0, 0.0]]


def test_intensities_are_cut_at_the_percentiles_and_z_scored():
    image = torch.arange(1000.0).reshape(1, 10, 10, 10)
    found = parsed("dataset_mnms").get_parsed_content("intensity")({"image": image})["image"]
    low, high = np.percentile(image, [5, 98])
    wanted = np.clip(image.numpy(), low, high)
    np.testing.assert_allclose(np.asarray(found), (wanted - wanted.mean()) / wanted.std(), atol=1e-4)


def test_loss_is_dice_of_the_foreground_and_cross_entropy():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 6, 6), torch.randint(4, (2, 1, 6, 6, 6))
    wanted = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(logits, label)
    for protocol in ("mednext", "unetr_pp"):
        loss = parsed("dataset_mnms", f"protocol_{protocol}").get_parsed_content("train::loss")
        assert float(loss(logits, label)) == pytest.approx(float(wanted), rel=1e-5)


def test_half_of_the_patches_show_foreground():
    for protocol in ("mednext", "unetr_pp"):
        for dataset, classes in (("left_atrium", 2), ("btcv", 14)):
            ratios = parsed(f"dataset_{dataset}", f"protocol_{protocol}").get_parsed_content("class_ratios")
            assert ratios[0] == sum(ratios[1:])
            assert len(ratios) == classes


COMMANDS_IN_DOCS = {
    f"{key} {number}": command
    for key, table in paper_tables().items()
    for number, command in enumerate(table["commands"])
    if command.startswith("./nny")
}
DOCS = (CONFIGS.parent / "docs" / "datasets.md").read_text()
COMMANDS_IN_DOCS |= {
    f"datasets.md {number}": f"./{line}"
    for number, line in enumerate(re.findall(r"^nny .+$", DOCS, flags=re.MULTILINE))
}


@pytest.mark.parametrize("where", COMMANDS_IN_DOCS)
def test_command_of_the_docs_can_be_run(where):
    _, verb, *words = shlex.split(COMMANDS_IN_DOCS[where])
    flags = [word.removeprefix("--").split("=")[0] for word in words if word.startswith("--")]
    values = dict(zip(words, [*words[1:], ""], strict=True))
    if verb in ("networks", "evaluate"):
        return
    if verb == "prepare":
        assert set(flags) <= set(inspect.signature(COMMANDS[words[0]]).parameters)
        return
    chosen = values.get("--overlays", "") if verb == "compare" else words[2]
    networks = [f"network_{name}" for name in values.get("--networks", "").split(",") if name not in ("", "base")]
    fusions = [f"fusion_{name}" for name in values.get("--fusions", "").split(",") if name]
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in (*networks, *fusions))
    parser = parsed(*filter(None, [*networks[:1], *chosen.split(","), *fusions[:1]]))
    known = set(parser.get()) | set(inspect.signature(compare).parameters)
    assert {re.split("::", flag)[0] for flag in flags} <= known
    parser.update({flag: yaml.safe_load(values[f"--{flag}"]) for flag in flags if flag in parser.get()})
    parser.get_parsed_content("class_ratios")


def test_every_overlay_is_in_the_docs():
    for path in [*CONFIGS.glob("protocol_*.yaml"), *CONFIGS.glob("dataset_*.yaml")]:
        if not re.search("phantom|cpu|_2d", path.stem):
            assert path.stem in DOCS, path.stem


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("protocol_*.yaml")), ids=lambda path: path.stem)
def test_numbers_of_a_protocol_name_their_source(path):
    for line in path.read_text().splitlines():
        if re.match(r"[a-z_]+: -?[\d.]+", line):
            assert "#" in line or line.startswith("crops_per_case"), line
