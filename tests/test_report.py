"""The report page: its numbers, its pictures and what it says when something is missing."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel import orientations
from PIL import Image
from scripts.report import pick_cases, report
from scripts.report_figures import colour, curves_figure, dice_figure, tint, volume_figure
from scripts.report_overlays import case_figure, display_window, load_case, select_slice
from scripts.report_run import read_run

CLASSES = ["liver", "<i>tumour</i> $x$"]
DICE = {"good": 0.95, "middle": 0.8, "<b>bad</b>": 0.3, "poor": 0.5, "fine": 0.9}


def sphere(shape, centre, radius):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def write_case(folder: Path, case_id: str, masks: Path, *, shape=(24, 20, 16), shift=2, affine=None) -> dict[str, str]:
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    centre = [n // 2 for n in shape]
    label = sphere(shape, centre, 6).astype(np.uint8)
    label[sphere(shape, centre, 3)] = 2
    prediction = np.roll(label, shift, axis=0)
    image = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32) + 50 * label
    paths = {"image": folder / f"image_{len(case_id)}.nii.gz", "label": folder / f"label_{len(case_id)}.nii.gz"}
    mask = masks / f"{case_id}.nii.gz"
    mask.parent.mkdir(parents=True, exist_ok=True)
    for path, array in ((paths["image"], image), (paths["label"], label), (mask, prediction)):
        nib.save(nib.Nifti1Image(array, affine), path)
    return {"case_id": case_id, **{name: str(path) for name, path in paths.items()}}


def write_evaluation(run: Path, dice: dict[str, float], *, spacing_known: bool = True) -> None:
    evaluation = run / "evaluation"
    evaluation.mkdir(parents=True, exist_ok=True)
    values = {"iou": 0.7, "assd": 0.5, "surface_dice": 0.9, "accuracy": 0.99, "recall": 0.8, "precision": 0.85}
    rows = [
        {"case_id": case, "class": name, "dice": d, "hd95": "" if case == "poor" else 3.25, **values,
         "volume_ml_label": 10.0, "volume_ml_pred": 11.5}
        for case, d in dice.items() for name in CLASSES
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(evaluation / "per_case.csv", index=False)
    stats = {key: {"mean": value, "std": 0.01, "median": value, "n": len(dice)} for key, value in values.items()}
    stats["dice"] = {"mean": 0.87654, "std": 0.04321, "median": 0.9, "n": len(dice)}
    stats["hd95"] = {"mean": 3.25, "std": 1.0, "median": None, "n": len(dice) - 1}
    settings = {
        "surface_tolerance_mm": 2.0,
        "spacing_known": spacing_known,
        "conventions": {"both_empty": "Dice is 1 & distances are not counted"},
    }
    summary = {"classes": dict.fromkeys(CLASSES, stats), "total": stats, "settings": settings}
    (evaluation / "summary.json").write_text(json.dumps(summary))


def write_run(folder: Path) -> Path:
    """A run whose best, median and worst case have files; (their pictures take most of a page's time)."""
    run = folder / "run_7"
    run.mkdir()
    shown = [write_case(folder, case, run / "evaluation" / "masks") for case in ("good", "middle", "<b>bad</b>")]
    write_evaluation(run, DICE)
    (run / "datalist.json").write_text(json.dumps({"training": [], "validation": shown}))
    (run / "log.csv").write_text(
        "epoch,train_loss,val_dice,val_dice_liver,lr,seconds\n1,1.5,,,0.001,1800\n2,1.0,0.7,0.7,0.001,1800\n"
        "3,0.9,0.6,0.6,0.0005,125\n"
    )
    (run / "versions.json").write_text(
        json.dumps({"torch": "2.13.0", "parameters": 17312345, "command": "nny <train>"})
    )
    (run / "config.yaml").write_text("site: https://example.org/<script>alert(1)</script>\n")
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run to change: its masks are gone, so that its page comes quickly."""
    run = write_run(tmp_path)
    shutil.rmtree(run / "evaluation" / "masks")
    return run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(whole_run: Path) -> str:
    return page(whole_run)


def page(run: Path, **options) -> str:
    return Path(report(str(run), **options)).read_text(encoding="utf-8")


def pictures(html: str) -> dict[str, np.ndarray]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]*)"', html)
    return {alt: decode(data) for data, alt in found}


def decode(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[-1]))).convert("RGB"))


def pixels_of(picture: np.ndarray, line: str) -> int:
    wanted = 255 * np.array(matplotlib.colors.to_rgb(line))
    return int((np.abs(picture - wanted).max(axis=-1) <= 6).sum())


def test_report_is_one_self_contained_file(html: str) -> None:
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert not re.search(r"<(script|link|iframe)|href=|url\(|@import", html)
    assert len(html) < 3e6


def test_report_is_the_same_for_the_same_run(run: Path) -> None:
    path = report(str(run))
    assert path == str(run / "report.html")
    assert Path(path).read_bytes() == Path(report(str(run), output=str(run / "new" / "again.html"))).read_bytes()


def test_report_prints_the_numbers_of_the_table(html: str) -> None:
    row = html[html.index('<tr class="total">') :].split("</tr>")[0]
    cells = re.findall(r'<td>([^<]*)<span class="small">([^<]*)</span></td>', row)
    assert cells == [
        ("0.877 ± 0.043", "median 0.900"),
        ("0.700 ± 0.010", "median 0.700"),
        ("3.25 ± 1.00", "median –, n 4"),
        ("0.990 ± 0.010", "median 0.990"),
        ("0.800 ± 0.010", "median 0.800"),
        ("0.850 ± 0.010", "median 0.850"),
        ("0.50 ± 0.01", "median 0.50"),
        ("0.900 ± 0.010", "median 0.900"),
    ]
    titles = re.findall(r'<th scope="col">([^<]*)<span', html[: html.index('<tr class="total">')])
    assert titles == [
        "Dice ↑", "mIoU ↑", "HD95 ↓", "Accuracy ↑", "Recall ↑", "Precision ↑", "ASSD ↓", "Surface Dice ↑", "n",
    ]  # fmt: skip
    for text in ("at 2 mm", "17.31 M", "1 h 2 min", "3 epochs, best 2", "3.25 ± 1.00 mm", "2.13.0", "both empty"):
        assert text in html
    assert "Dice is 1 &amp; distances are not counted" in html


def test_report_shows_best_median_and_worst_case_with_both_contours(html: str) -> None:
    assert re.findall(r"<h3>(.*?)</h3>", html) == [
        "Best case: good · Dice 0.950",
        "Median case: middle · Dice 0.800",
        "Worst case: &lt;b&gt;bad&lt;/b&gt; · Dice 0.300",
    ]
    views = [picture for alt, picture in pictures(html).items() if "contours" in alt]
    assert len(views) == 3
    for view in views:
        for index in range(2):
            assert pixels_of(view, colour(index)) > 100
            assert pixels_of(view, tint(index)) > 50


def test_report_escapes_text_from_files(html: str) -> None:
    for raw, escaped in (
        ("<b>bad</b>", "&lt;b&gt;bad&lt;/b&gt;"),
        (CLASSES[1], "&lt;i&gt;tumour&lt;/i&gt; $x$"),
        ("<script>alert", "https://example.org/&lt;script&gt;alert"),
        ("nny <train>", "nny &lt;train&gt;"),
    ):
        assert raw not in html
        assert escaped in html


def test_report_lists_every_case_worst_first(html: str) -> None:
    table = html[html.index('<table class="cases">') :]
    first_cells = re.findall(r"<tr><td>([^<]*)</td>", table)
    assert first_cells == [c for c in ("&lt;b&gt;bad&lt;/b&gt;", "poor", "middle", "fine", "good") for _ in CLASSES]


def test_report_without_evaluation_says_what_to_run(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    html = page(run)
    assert "No evaluation found in this run: run <code>nny evaluate</code>" in html
    assert list(pictures(html)) == ["Training loss, validation Dice and learning rate over the epochs"]


def test_report_of_an_evaluation_alone_says_what_is_missing(run: Path) -> None:
    for name in ("log.csv", "versions.json", "config.yaml", "datalist.json"):
        (run / name).unlink()
    html = page(run)
    for text in ("No training log", "No versions.json", "No config.yaml", "datalist.json does not name its image"):
        assert text in html
    assert "0.877 ± 0.043" in html


def test_report_names_a_missing_mask_and_a_wrong_shape(run: Path) -> None:
    (run / "evaluation/masks/<b>bad<").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), run / "evaluation/masks/middle.nii.gz")
    (run / "evaluation/masks/<b>bad</b>.nii.gz").write_bytes(b"not a picture")
    html = page(run)
    assert "good.nii.gz does not exist" in html
    assert "middle.nii.gz has shape (4, 4, 4), but its image" in html
    assert "cannot be read as NIfTI" in html


def test_report_labels_distances_as_voxels_when_the_spacing_is_unknown(run: Path) -> None:
    write_evaluation(run, DICE, spacing_known=False)
    html = page(run)
    assert "3.25 ± 1.00 voxels" in html
    assert "at 2 voxels" in html
    assert "distances are in voxels, not millimetres" in html
    assert not re.search(r"\bmm\b", re.sub(r"<style>.*?</style>|base64,[^\"]+", "", html, flags=re.S))


def test_report_warns_when_cases_were_trained_on_or_chosen_by(run: Path) -> None:
    assert "The best epoch was chosen on the same cases" in page(run)
    (run / "datalist.json").write_text(
        json.dumps({"training": [{"case_id": "good"}], "validation": [{"case_id": "poor"}]})
    )
    assert "1 of the 5 evaluated cases were also trained on" in page(run)


def test_report_of_2d_cases_shows_one_plane(run: Path, tmp_path: Path) -> None:
    masks = run / "evaluation" / "masks"
    flat = [
        write_case(tmp_path, "good", masks, shape=(32, 24)),
        write_case(tmp_path, "middle", masks, shape=(32, 24, 1)),
    ]
    (run / "datalist.json").write_text(json.dumps({"validation": flat}))
    views = [picture for alt, picture in pictures(page(run)).items() if "contours" in alt]
    assert len(views) == 2
    for view in views:
        assert view.shape[1] < 600  # one panel
        assert pixels_of(view, colour(0)) > 100


def test_report_refuses_folders_that_are_no_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds neither log.csv .* nor evaluation/"):
        report(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        report(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="expected the name of an HTML file"):
        report(str(run), output=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("evaluation/summary.json", "{", "summary.json is not valid JSON"),
        ("versions.json", "[]", "versions.json holds a list"),
        ("evaluation/per_case.csv", "case,dice\na,1\n", r"per_case.csv lacks the columns \['case_id', 'class'\]"),
        ("log.csv", 'epoch,lr\n"1,2\n', "log.csv cannot be read as CSV"),
    ],
)
def test_report_refuses_malformed_files(run: Path, name: str, content: str, match: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        report(str(run))


def test_report_of_a_run_that_has_just_started(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,train_loss,val_dice,lr,seconds\n1,1.5,,0.001,3\n")
    assert "1 epoch<" in page(tmp_path)
    (tmp_path / "log.csv").write_text("epoch,train_loss,val_dice,lr,seconds\n")
    assert "No training log" in page(tmp_path)


def test_pick_cases() -> None:
    ranking = pd.Series({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4})
    assert pick_cases(ranking) == [("Best case", "d"), ("Median case", "b"), ("Worst case", "a")]
    assert pick_cases(ranking[:2]) == [("Best case", "b"), ("Worst case", "a")]
    assert pick_cases(ranking[:1]) == [("Only case", "a")]
    assert pick_cases(ranking[:0]) == []


def test_parameters_are_counted_without_index_tables(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,train_loss\n1,0.5\n")
    assert "parameters" not in read_run(tmp_path).versions
    net = torch.nn.Linear(3, 2, dtype=torch.float16)
    net.register_buffer("relative_position_index", torch.zeros(100, dtype=torch.int64))
    torch.save(net.state_dict(), tmp_path / "model.pt")
    assert read_run(tmp_path).versions["parameters"] == 3 * 2 + 2


def test_a_failed_write_keeps_the_old_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("old")
    monkeypatch.setattr("scripts.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report(str(run))
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".*"))


def test_a_case_called_na_is_a_case(run: Path) -> None:
    write_evaluation(run, {"NA": 0.5, "01": 0.9})
    assert re.findall(r"<h3>(.*?) · ", page(run)) == ["Best case: 01", "Worst case: NA"]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR", "PIL"])
def test_load_case_turns_every_orientation_to_the_same_volume(tmp_path: Path, axes: str) -> None:
    rng = np.random.default_rng(0)
    reference = nib.Nifti1Image(rng.integers(0, 9, (4, 5, 6)).astype(np.int16), np.diag([-1.0, -2.0, 3.0, 1.0]))  # LPS
    transform = orientations.ornt_transform(
        orientations.io_orientation(reference.affine), orientations.axcodes2ornt(tuple(axes))
    )
    nib.save(reference.as_reoriented(transform), tmp_path / "a.nii.gz")
    case = load_case(*[tmp_path / "a.nii.gz"] * 3)
    assert np.array_equal(case.image, np.asarray(reference.dataobj))
    assert case.spacing == (1.0, 2.0, 3.0)
    file_axis, flipped = case.stored[2]  # what a viewer of the file calls the axial slice number
    stored = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    assert sorted(np.take(stored, 4 if flipped else 1, axis=file_axis).ravel()) == sorted(case.label[:, :, 1].ravel())


def test_case_figure_has_the_patients_right_on_the_left(tmp_path: Path) -> None:
    """A bright block at the patient's right and front comes out at the left and top of the axial plane."""
    image, mask = np.zeros((20, 20, 20), np.float32), np.zeros((20, 20, 20), np.uint8)
    image[14:, 14:, :] = 1.0  # RAS: +x right, +y front
    mask[2:18, 2:18, 2:18] = 1
    for name, array in (("image", image), ("label", mask), ("mask", mask)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = load_case(*(tmp_path / f"{name}.nii.gz" for name in ("image", "label", "mask")))
    picture = decode(case_figure(case, 1))
    axial = picture[40:, : picture.shape[1] // 3].mean(axis=-1)
    half = axial.shape[0] // 2, axial.shape[1] // 2
    bright = {
        (row, column): axial[slice(*row), slice(*column)].mean()
        for row in ((0, half[0]), (half[0], None))
        for column in ((0, half[1]), (half[1], None))
    }
    assert max(bright, key=bright.get) == ((0, half[0]), (0, half[1]))


def test_case_figure_keeps_the_true_aspect(tmp_path: Path) -> None:
    """Voxels of 1 x 1 x 4 mm: a ball in mm is drawn as a disc in the coronal plane."""
    x, y, z = np.ogrid[:48, :48, :12]
    mask = ((x - 23.5) ** 2 + (y - 23.5) ** 2 + (4 * (z - 5.5)) ** 2 <= 15**2).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "a.nii.gz")
    case = load_case(*[tmp_path / "a.nii.gz"] * 3)
    picture = decode(case_figure(case, 1))
    third = picture.shape[1] // 3
    coronal = picture[:, third : 2 * third]
    wanted = 255 * np.array(matplotlib.colors.to_rgb(colour(0)))
    rows, columns = np.nonzero(np.abs(coronal - wanted).max(axis=-1) <= 6)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.2)


def test_select_slice_weighs_a_small_structure_like_a_large_one() -> None:
    label = np.zeros((20, 20, 20), np.int16)
    label[2:18, 2:18, 2:18] = 1
    label[9:11, 9:11, 13:15] = 2
    assert select_slice(label, label, 2, 2) in (13, 14)
    assert select_slice(np.zeros_like(label), np.zeros_like(label), 2, 2) == 10


@pytest.mark.parametrize(
    ("values", "low", "high", "words"),
    [
        (np.r_[np.full(100, -1000.0), np.linspace(-100, 300, 900)], -160, 240, "CT window W 400 L 40 HU"),
        (np.linspace(0, 1000, 1001), 10, 990, "1st to the 99th percentile"),
        (np.full(10, 3.0), 3, 3, "percentile"),
        (np.full(10, np.nan), 0, 1, "no finite"),
    ],
)
def test_display_window(values: np.ndarray, low: float, high: float, words: str) -> None:
    black, white, text = display_window(values)
    assert (black, white) == pytest.approx((low, high), abs=1e-3)
    assert white > black
    assert words in text


def test_figures_take_many_classes_and_undefined_values() -> None:
    classes = [f"class {i}" for i in range(9)]
    rows = [{"case_id": c, "class": n, "dice": 0.5, "volume_ml_label": 1.0, "volume_ml_pred": 2.0}
            for c in "ab" for n in classes]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["class"] == "class 3", ["dice", "volume_ml_pred"]] = np.nan
    log = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "val_dice": [np.nan, np.nan]})
    for data in (dice_figure(table, classes), volume_figure(table, classes), curves_figure(log, classes)):
        assert decode(data).std() > 1
