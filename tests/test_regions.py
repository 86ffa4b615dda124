"""Overlapping regions: the loss is MONAI's on sigmoids, masks hold the classes again, and regions are scored."""

import json

import import_support as trees
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from import_support import OPTIONS
from monai.losses import DiceLoss, FocalLoss
from scripts import report, workflows
from scripts.handlers import read_log
from scripts.losses import DiceFocalCELoss
from scripts.metrics import case_metrics
from scripts.prepare.commands import COMMANDS
from scripts.regions import LabelsToRegionsd, RegionLoss, region_matrices, region_metrics
from scripts.report_run import read_run
from support import TINY, write_nifti
from torch.nn import functional as F

BRATS = {"whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]}
CROSSED = {"left": [1, 3], "right": [2, 3], "both": [3]}
NETWORK = TINY[TINY.index("bottleneck_channels") :] + "spacing: [2.0, 2.0, 2.0]\npatch_size: [24, 24, 24]\n"


def region_logits(logits, regions):
    return torch.einsum("rc,bc...->br...", region_matrices(regions)[1], logits)


def masks(label, regions):
    """Regions (B, R, *spatial) of a label map (B, 1, *spatial)."""
    return torch.cat([torch.isin(label, torch.tensor(values)) for values in regions.values()], 1).float()


@pytest.mark.parametrize("regions", [BRATS, CROSSED, {"organ": [1, 2], "tumour": [2]}])
def test_class_logits_made_of_region_logits_give_them_back(regions):
    members = region_matrices(regions)[0]
    wanted = torch.randn(2, len(regions), 5)
    logits = torch.einsum("cr,brn->bcn", members, wanted) + 3.7
    torch.testing.assert_close(region_logits(logits, regions), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ((-1, -2, -3), 0),  # thresholds of 0.5
        ((2, -1, -3), 1),
        ((2, 1, -3), 2),
        ((2, 1, 0.5), 3),
        ((2, -3, 1), 1),  # a core without its surroundings: the likelier reading
        ((2, -1, 5), 3),
        ((-4, 3, -1), 0),
    ],
)
def test_largest_output_is_the_most_probable_combination(scores, value):
    logits = region_matrices(BRATS)[0] @ torch.tensor(scores, dtype=torch.float32)
    assert int(logits.argmax()) == value
    odds = torch.tensor(scores, dtype=torch.float32).sigmoid()
    member = region_matrices(BRATS)[0]
    likelihood = (odds * member + (1 - odds) * (1 - member)).prod(1)
    assert int(likelihood.argmax()) == value


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"whole": [0, 1], "core": [1]}, "made of the values"),
        ({"whole": [1, 2, 3], "core": [3]}, "as many regions as foreground classes"),
        ({"whole": [], "core": [1]}, "made of the values"),
        ({"a": [1, 2], "b": [1, 2]}, "do not tell 2 foreground classes apart"),
    ],
)
def test_regions_that_make_no_label_map_are_refused(regions, message):
    with pytest.raises(ValueError, match=message):
        region_matrices(regions)


@pytest.mark.parametrize("batch", [True, False])
def test_loss_is_that_of_monai_and_torch(batch):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 6, 5, 4, dtype=torch.float64), torch.randint(4, (2, 1, 6, 5, 4))
    scores, truth = region_logits(logits.float(), BRATS).double(), masks(label, BRATS).double()
    terms = {
        "lambda_dice": DiceLoss(sigmoid=True, batch=batch)(scores, truth),
        "lambda_focal": FocalLoss(gamma=2.0, include_background=True)(scores, truth),
        "lambda_ce": F.binary_cross_entropy_with_logits(scores, truth),
    }
    for name, wanted in terms.items():
        factors = dict.fromkeys(terms, 0.0) | {name: 1.0}
        loss = RegionLoss(regions=BRATS, to_onehot_y=True, batch=batch, **factors)
        assert float(loss(logits, label)) == pytest.approx(float(wanted), abs=2e-5), name


def test_scales_weights_and_ignored_voxels():
    torch.manual_seed(0)
    logits, label = torch.randn(1, 4, 8, 8), torch.randint(4, (1, 1, 8, 8))
    coarse = torch.randn(1, 4, 4, 4)
    both = RegionLoss(regions=BRATS, to_onehot_y=True, finest_weights=[1.0, 0.5])([logits, coarse], label)
    plain = RegionLoss(regions=BRATS, to_onehot_y=True)
    small = label[..., 1::2, 1::2]
    assert float(both) == pytest.approx(float(plain(logits, label) + 0.5 * plain(coarse, small)), rel=1e-5)
    marked = label.clone()
    marked[..., 4:, :] = 9
    ignoring = RegionLoss(regions=BRATS, to_onehot_y=True, ignore_index=9)(logits, marked)
    assert float(ignoring) == pytest.approx(float(plain(logits[..., :4, :], label[..., :4, :])), rel=1e-4)
    only_core = RegionLoss(regions=BRATS, to_onehot_y=True, lambda_dice=0, lambda_focal=0, weight=[5.0, 0.0, 1.0, 0.0])
    wanted = F.binary_cross_entropy_with_logits(region_logits(logits, BRATS)[:, 1], masks(label, BRATS)[:, 1])
    assert float(only_core(logits, label)) == pytest.approx(float(wanted), rel=1e-5)


def test_loss_of_the_wrong_network_is_refused():
    with pytest.raises(ValueError, match="5 outputs, but 3 regions need 4"):
        RegionLoss(regions=BRATS, to_onehot_y=True)(torch.zeros(1, 5, 4, 4), torch.zeros(1, 1, 4, 4))


def test_gradient_reaches_every_output_and_leads_to_the_truth():
    torch.manual_seed(0)
    label = torch.randint(4, (1, 1, 6, 6))
    logits = torch.zeros(1, 4, 6, 6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    loss = RegionLoss(regions=BRATS, to_onehot_y=True)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, label).backward()
        assert logits.grad.abs().amax((0, 2, 3)).gt(0).all()
        optimizer.step()
    assert torch.equal(logits.argmax(1, keepdim=True), label)


def test_weights_of_the_finest_scales_fit_any_network():
    loss = DiceFocalCELoss(to_onehot_y=True, finest_weights=[1.0, 0.4, 0.2, 0.1])
    assert loss._factors(1) == [1.0]
    assert loss._factors(2) == [1.0, 0.4]
    assert loss._factors(6) == [1.0, 0.4, 0.2, 0.1, 0.0, 0.0]
    with pytest.raises(ValueError, match="both given"):
        DiceFocalCELoss(finest_weights=[1.0], deep_supervision_weights=[1.0])


def test_labels_become_region_masks():
    label = torch.tensor([[[0, 1], [2, 3]]])
    found = LabelsToRegionsd(keys="label", regions=BRATS)({"label": label})["label"]
    wanted = [[[1, 0], [0, 0]], [[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 1]]]
    assert found.tolist() == wanted


def test_scores_are_those_of_the_unions():
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:10, 2:10, 2:10], label[3:8, 3:8, 3:8], label[4:6, 4:6, 4:6] = 1, 2, 3
    prediction = np.roll(label, 1, axis=0)
    prediction[prediction == 2] = 3  # the core is all enhancing
    rows = {row["class"]: row for row in region_metrics(prediction, label, (1, 1, 2), BRATS, 1.0, "case")}
    assert list(rows) == list(BRATS)
    assert rows["whole tumour"]["dice"] == pytest.approx(7 / 8)
    assert rows["tumour core"]["dice"] == pytest.approx(4 / 5)
    assert rows["enhancing tumour"]["dice"] == pytest.approx(2 * 8 / (8 + 125))
    assert rows["whole tumour"]["hd95"] == pytest.approx(1.0)
    unions = (array >= 2 for array in (prediction, label))
    wanted = case_metrics(*unions, (1, 1, 2), {1: "tumour core"}, 1.0, "case")[0]
    assert rows["tumour core"] == wanted
    label[0, 0, 0] = 4
    with pytest.raises(ValueError, match="label holds value 4, which is in none of the regions"):
        region_metrics(prediction, label, (1, 1, 2), BRATS, 1.0, "case")


def tumours(root, numbers):
    """A download of nested balls: FLAIR and T2 show the whole tumour, T1 the core, contrast what enhances."""
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"))
    for n in numbers:
        rng = np.random.default_rng(n)
        centre = rng.uniform(10, 14, 3)[:, None, None, None]
        distance = np.sqrt(((grid - centre) ** 2).sum(0))
        label = np.zeros(distance.shape, np.uint8)
        for radius, value in ((9, 2), (7, 1), (5, 4)):  # oedema, necrosis, enhancing: the values of the download
            label[distance < radius] = value
        name = f"BraTS2021_{n:05d}"
        shown = {"t1": np.isin(label, (1, 4)), "t1ce": label == 4, "t2": label > 0, "flair": label > 0}
        for channel, mask in shown.items():
            image = 500 + 200 * mask + rng.normal(0, 20, mask.shape)
            write_nifti(root / name / f"{name}_{channel}.nii.gz", image.astype(np.float32), np.diag([-2.0, -2, 2, 1]))
        write_nifti(root / name / f"{name}_seg.nii.gz", label, np.diag([-2.0, -2, 2, 1]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brats")
    tumours(folder / "raw", range(6))
    COMMANDS["brats21"](str(folder / "raw"), str(folder / "data"), folds=3, **OPTIONS)
    return folder / "data"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    (folder / "tiny.yaml").write_text(NETWORK)
    overlays = f"dataset_brats21,{folder / 'tiny.yaml'}"
    settings = {"epochs": 30, "val_interval": 30, "learning_rate": 0.02, "train::loss::lambda_focal": 0.0}
    workflows.train(str(data), str(folder / "run"), overlays, **settings)
    workflows.evaluate(str(folder / "run"))
    return folder / "run"


def test_training_learns_the_regions_and_scores_them(run):
    log = read_log(run / "log.csv")
    assert float(log[-1]["train_loss"]) < 0.6 * float(log[0]["train_loss"])
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert list(summary["classes"]) == list(BRATS)
    for name in BRATS:
        assert summary["classes"][name]["dice"]["mean"] > 0.6, name
        assert 0 <= summary["classes"][name]["hd95"]["mean"] < 10
        # validated on the training grid, evaluated on that of the source
        assert float(log[-1][f"val_dice_{name}"]) == pytest.approx(summary["classes"][name]["dice"]["mean"], abs=0.1)


def test_masks_hold_the_classes_again(run, data, tmp_path):
    first = sorted((run / "evaluation" / "masks").glob("*.nii.gz"))[0]
    mask, label = nib.load(first), nib.load(data / "labelsTr" / first.name)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1, 2, 3}
    np.testing.assert_allclose(mask.affine, label.affine)
    rows = region_metrics(np.asarray(mask.dataobj), np.asarray(label.dataobj), (2, 2, 2), BRATS, 1.0)
    case = first.name.removesuffix(".nii.gz")
    table = pd.read_csv(run / "evaluation" / "per_case.csv").query("case_id == @case").set_index("class")
    for row in rows:
        assert table.loc[row["class"], "dice"] == pytest.approx(row["dice"])
        assert table.loc[row["class"], "hd95"] == pytest.approx(row["hd95"])
    workflows.infer(str(data / "imagesTr" / first.name), str(tmp_path), run=str(run), save_probabilities=True)
    np.testing.assert_array_equal(nib.load(tmp_path / f"{case}_seg.nii.gz").dataobj, mask.dataobj)
    shares = nib.load(tmp_path / f"{case}_probabilities.nii.gz").get_fdata()
    np.testing.assert_allclose(shares.sum(-1), 1, atol=2e-2)
    assert shares.shape[-1] == 4


def test_report_names_regions_for_scores_and_classes_for_pictures(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["regions"] == BRATS
    found = read_run(run)
    assert found.classes == list(BRATS)
    assert report._label_names(found) == ["oedema", "necrotic core", "enhancing tumour"]


def test_synthetic_download_keeps_what_the_regions_need(tmp_path):
    trees.brats21(tmp_path / "raw", numbers=(0, 2))
    COMMANDS["brats21"](str(tmp_path / "raw"), str(tmp_path / "data"), folds=2, **OPTIONS)
    about = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert about["regions"] == BRATS
    overlay = yaml.safe_load((workflows.CONFIGS / "dataset_brats21.yaml").read_text())
    assert overlay["regions"] == about["regions"]
    assert overlay["labels"] == list(about["labels"].values())
    assert overlay["in_channels"] == len(about["modality"])
