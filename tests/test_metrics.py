import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scripts.metrics import COLUMNS, CONVENTIONS, METRICS, case_metrics, summarise, write_evaluation

NAMES = {0: "background", 1: "liver", 2: "tumour"}


def box(shape, *ranges, value=1):
    x = np.zeros(shape, np.uint8)
    x[tuple(slice(*r) for r in ranges)] = value
    return x


def blobs(seed, shape=(20, 18, 16)):
    """Two overlapping, ragged label maps of two classes."""
    random = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        x = box(shape, (3, 14), (4, 13), (2, 12))
        x[6:10, 6:10, 5:9] = 2
        flips = random.random(shape) < 0.03
        x[flips] = random.integers(0, 3, flips.sum())
        maps.append(x)
    return maps


def brute_force(pred, true, spacing, tolerance):
    """Surface metrics from all pairs of surface voxels, written from the definitions."""

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = padded.copy()
        for axis in range(mask.ndim):
            inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
        return np.argwhere((padded & ~inner)[(slice(1, -1),) * mask.ndim]) * np.asarray(spacing)

    a, b = surface(pred), surface(true)
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    there, back = pairs.min(1), pairs.min(0)
    both = np.concatenate((there, back))
    return max(np.percentile(there, 95), np.percentile(back, 95)), both.mean(), (both <= tolerance).mean()


def test_identical_maps_are_perfect():
    label = blobs(0)[0]
    for row in case_metrics(label, label, (1, 2, 3), NAMES, 1.0):
        assert [row[m] for m in METRICS] == [1, 1, 0, 0, 1, 1, 1, 1]


def test_shifted_boxes_by_hand():
    # 4x4x4 voxels, shifted by 2 along the axis with 3 mm: half of each box overlaps
    label = box((12, 12, 12), (4, 8), (4, 8), (2, 6))
    pred = box((12, 12, 12), (4, 8), (4, 8), (4, 8))
    (row,) = case_metrics(pred, label, (1.0, 0.5, 3.0), {1: "liver"}, surface_tolerance_mm=0.4)
    assert list(row) == list(COLUMNS[1:])
    assert row["dice"] == row["recall"] == row["precision"] == 0.5
    assert row["iou"] == pytest.approx(32 / 96)
    assert row["accuracy"] == pytest.approx(1 - 64 / 12**3)
    assert row["volume_ml_label"] == row["volume_ml_pred"] == pytest.approx(64 * 1.5 / 1000)
    # The predicted box has 56 surface voxels in 4 layers: z=7 (16 voxels) is 6 mm from the true box, z=6 (a ring of
    # 12) 3 mm. z=5 (a ring) lies on the true box's end face. z=4 (16): its ring lies on the true box's side, its
    # 4 inner voxels are inside the true box, 0.5 mm from that side. The true box sees the same from its end.
    assert row["hd95"] == pytest.approx(6.0)
    assert row["assd"] == pytest.approx((16 * 6 + 12 * 3 + 4 * 0.5) / 56)
    assert row["surface_dice"] == pytest.approx((12 + 12) / 56)


def test_surface_tolerance_includes_its_value():
    label, pred = box((9, 9), (3, 4), (3, 4)), box((9, 9), (4, 5), (3, 4))
    for spacing, tolerance, expected in ((0.1, 0.1, 1.0), (0.7, 0.7, 1.0), (0.7, 0.69, 0.0)):
        (row,) = case_metrics(pred, label, (spacing, 1), {1: "a"}, tolerance)
        assert row["surface_dice"] == expected


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ndim", [2, 3])
def test_surface_metrics_equal_brute_force(seed, ndim):
    pred, label = (x if ndim == 3 else x[:, :, 6] for x in blobs(seed))
    spacing = (0.8, 1.3, 2.5)[:ndim]
    for row, value in zip(case_metrics(pred, label, spacing, NAMES, 1.0), (1, 2), strict=True):
        expected = brute_force(pred == value, label == value, spacing, 1.0)
        assert (row["hd95"], row["assd"], row["surface_dice"]) == pytest.approx(expected, rel=1e-6)


def test_cropping_changes_nothing_against_monai_on_the_whole_image():
    pred, label = (np.pad(x, ((9, 2), (0, 11), (5, 0))) for x in blobs(3))
    pred[0, 0, 0] = label[-1, -1, -1] = 1  # the box around class 1 then reaches the borders of the image
    spacing = [0.8, 1.3, 2.5]
    one_hot = [torch.stack([torch.from_numpy(x == c) for c in range(3)])[None].float() for x in (pred, label)]
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)[0]
    assd = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)[0]
    nsd = compute_surface_dice(*one_hot, class_thresholds=[1.0, 1.0], spacing=spacing)[0]
    for i, row in enumerate(case_metrics(pred, label, spacing, NAMES, 1.0)):
        expected = (hd95[i].item(), assd[i].item(), nsd[i].item())
        assert (row["hd95"], row["assd"], row["surface_dice"]) == pytest.approx(expected, rel=1e-6)


def test_overlap_metrics_equal_voxel_counts():
    pred, label = blobs(4)
    for row, value in zip(case_metrics(pred, label, (1, 1, 1), NAMES, 1.0), (1, 2), strict=True):
        p, t = pred == value, label == value
        tp, fp, fn, tn = (p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum()
        assert row["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert row["iou"] == pytest.approx(tp / (tp + fp + fn))
        assert row["recall"] == pytest.approx(tp / (tp + fn))
        assert row["precision"] == pytest.approx(tp / (tp + fp))
        assert row["accuracy"] == pytest.approx((tp + tn) / p.size)


def test_a_class_missing_from_one_or_both_maps():
    shape, spacing = (6, 8, 10), (1.0, 2.0, 3.0)
    diagonal = math.sqrt(6**2 + 16**2 + 30**2)
    label, pred = box(shape, (1, 3), (1, 3), (1, 3)), box(shape, (1, 3), (1, 3), (1, 3), value=2)
    missed, invented, absent = case_metrics(pred, label, spacing, {**NAMES, 3: "vein"}, 1.0)
    assert [missed[m] for m in ("dice", "iou", "surface_dice", "recall", "precision")] == [0] * 5
    assert missed["hd95"] == missed["assd"] == invented["hd95"] == invented["assd"] == pytest.approx(diagonal)
    assert [invented[m] for m in ("dice", "iou", "surface_dice", "precision")] == [0] * 4
    assert math.isnan(invented["recall"])
    assert absent["accuracy"] == 1
    assert absent["volume_ml_label"] == absent["volume_ml_pred"] == 0
    assert all(math.isnan(absent[m]) for m in METRICS if m != "accuracy")


def test_any_dtype_and_torch_tensors_give_the_same():
    pred, label = blobs(5)
    expected = case_metrics(pred, label, (1, 1, 2), NAMES, 1.0, case_id="a")
    assert list(expected[0]) == list(COLUMNS)
    for cast in (np.float64, np.int16, np.int64):
        assert case_metrics(pred.astype(cast), label.astype(cast), (1, 1, 2), NAMES, 1.0, case_id="a") == expected
    assert case_metrics(torch.tensor(pred), torch.tensor(label).half(), [1, 1, 2], NAMES, 1.0, "a") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((4, 4, 5), int)}, r"prediction has shape \(4, 4, 5\), the label \(4, 4, 4\)"),
        ({"label": np.zeros((1, 4, 4, 4), int)}, "without a channel axis"),
        ({"prediction": np.full((4, 4, 4), 7)}, "prediction holds value 7.*liver"),
        ({"label": np.full((4, 4, 4), -1)}, "label holds value -1"),
        ({"label": np.full((4, 4, 4), 0.5)}, "label holds value 0.5, expected whole numbers"),
        ({"label": np.full((4, 4, 4), np.nan)}, "label holds value nan"),
        ({"spacing": (1, 1)}, r"spacing is \(1.0, 1.0\), expected 3 positive"),
        ({"spacing": (1, 1, 0)}, "expected 3 positive numbers in mm"),
        ({"surface_tolerance_mm": -1}, "surface_tolerance_mm is -1"),
    ],
)
def test_bad_input_is_named(change, message):
    empty = np.zeros((4, 4, 4), int)
    good = {"prediction": empty, "label": empty, "spacing": (1, 1, 1), "class_names": NAMES, "surface_tolerance_mm": 1}
    with pytest.raises(ValueError, match=message):
        case_metrics(**{**good, **change})


def test_a_value_between_declared_ones_is_unknown_too():
    with pytest.raises(ValueError, match="label holds value 1"):
        case_metrics(np.zeros((3, 3), int), np.ones((3, 3), int), (1, 1), {0: "background", 2: "tumour"}, 1.0)


def rows_of(values):
    """Rows with one number in every column, from {case: {class: number}}."""
    filled = [(case, name, v) for case, classes in values.items() for name, v in classes.items()]
    return [{"case_id": case, "class": name, **dict.fromkeys(COLUMNS[2:], v)} for case, name, v in filled]


def test_summary_by_hand():
    nan = math.nan
    rows = rows_of({"a": {"liver": 1.0, "tumour": 0.5}, "b": {"liver": 0.6, "tumour": nan}})
    summary = summarise(rows)
    assert summary["classes"]["liver"]["dice"] == pytest.approx({"mean": 0.8, "std": 0.2, "median": 0.8, "n": 2})
    assert summary["classes"]["tumour"]["hd95"] == {"mean": 0.5, "std": 0.0, "median": 0.5, "n": 1}
    # total: case a has 0.75, case b only its liver
    assert summary["total"]["dice"] == pytest.approx({"mean": 0.675, "std": 0.075, "median": 0.675, "n": 2})
    nothing = summarise(rows_of({"a": {"liver": nan}}))
    assert nothing["total"]["dice"] == {"mean": None, "std": None, "median": None, "n": 0}


def test_summary_refuses_unusable_rows():
    row = rows_of({"a": {"liver": 1.0}})[0]
    with pytest.raises(ValueError, match="case 'a' has class 'liver' more than once"):
        summarise([row, row])
    with pytest.raises(ValueError, match="case_id"):
        summarise([{k: v for k, v in row.items() if k != "case_id"}])
    with pytest.raises(ValueError, match="expected also"):
        summarise([])


def test_written_evaluation_reads_back(tmp_path):
    pred, label = blobs(6)
    rows = case_metrics(pred, label, (1, 1, 2), {**NAMES, 3: "vein"}, 1.0, case_id="HCC_001")
    settings = {"surface_tolerance_mm": 1.0, "spacing_known": True}
    returned = write_evaluation(rows, tmp_path / "evaluation", settings)
    table = pd.read_csv(tmp_path / "evaluation/per_case.csv")
    assert list(table) == list(COLUMNS)
    assert list(table["class"]) == ["liver", "tumour", "vein"]
    assert table["dice"][0] == rows[0]["dice"]
    assert math.isnan(table["dice"][2])
    summary = json.loads((tmp_path / "evaluation/summary.json").read_text())
    assert summary == returned
    assert summary["settings"] == {**settings, "conventions": CONVENTIONS}
    assert summary["total"]["dice"]["n"] == 1
    assert summary["classes"]["vein"]["dice"]["mean"] is None


def test_a_failed_write_keeps_the_old_files(tmp_path, monkeypatch):
    rows = rows_of({"a": {"liver": 1.0}})
    write_evaluation(rows, tmp_path, {})
    before = {f.name: f.read_text() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        write_evaluation(rows, tmp_path, {"tolerance": math.nan})  # not JSON
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_evaluation(rows_of({"b": {"liver": 0.0}}), tmp_path, {})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == before
