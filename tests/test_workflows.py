"""Training, evaluation and inference as a user starts them, on data that a tiny network learns in seconds."""

import csv
import hashlib
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts import workflows
from scripts.handlers import read_log
from scripts.networks import load_weights
from support import ROOT, ball_dataset, tiny_overlay, write_nifti


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ball_dataset(tmp_path_factory.mktemp("balls"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that is trained to the end, and evaluated."""
    folder = tmp_path_factory.mktemp("run")
    overlay = tiny_overlay(folder)
    workflows.train(str(data), str(folder / "run"), str(overlay), epochs=12, val_interval=5)
    workflows.evaluate(str(folder / "run"))
    return folder / "run"


def test_loss_falls_and_the_mask_is_right(run):
    losses = [float(row["train_loss"]) for row in read_log(run / "log.csv")]
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["total"]["dice"]["mean"] > 0.85
    assert summary["total"]["dice"]["n"] == 2


def test_run_says_what_made_it(run, data):
    versions = json.loads((run / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert versions["seed"] == 0
    split = json.loads((run / "datalist.json").read_text())
    assert [case["case_id"] for case in split["validation"]] == ["ball_00", "ball_05"]
    assert "feature_size: 4" in (run / "config.yaml").read_text()


def test_masks_and_scores_are_those_of_the_files(run, data):
    from scripts.metrics import case_metrics

    with (run / "evaluation" / "per_case.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        mask, label = (nib.load(f / f"{name}.nii.gz") for f in (run / "evaluation" / "masks", data / "labelsTr"))
        np.testing.assert_allclose(mask.affine, label.affine)
        score = case_metrics(np.asarray(mask.dataobj), np.asarray(label.dataobj), (2, 2, 2), {1: "ball"}, 2.0)[0]
        assert float(row["dice"]) == pytest.approx(score["dice"])
        assert float(row["hd95"]) == pytest.approx(score["hd95"])


def test_same_seed_same_weights_other_seed_other_weights(data, tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        overlay = f"fusion_none,{tiny_overlay(tmp_path)}"
        workflows.train(str(data), str(tmp_path / name), overlay, epochs=1, val_interval=1, seed=seed)
        weights.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    a, b, c = weights
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_inference_gives_masks_in_the_geometry_of_the_source(run, data, tmp_path):
    label = nib.load(data / "labelsTr" / "ball_00.nii.gz")
    image = nib.load(data / "imagesTr" / "ball_00.nii.gz")
    # the same scan stored with other axes: the mask must follow
    turned = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine).as_reoriented([[2, -1], [0, 1], [1, 1]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    workflows.infer(str(tmp_path / "turned.nii.gz"), str(tmp_path / "out"), run=str(run), save_probabilities=True)
    mask = nib.load(tmp_path / "out" / "turned_seg.nii.gz")
    np.testing.assert_allclose(mask.affine, turned.affine)
    assert mask.shape == turned.shape
    found = nib.as_closest_canonical(mask).get_fdata() > 0
    truth = nib.as_closest_canonical(label).get_fdata() > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    scores = nib.load(tmp_path / "out" / "turned_probabilities.nii.gz")
    assert scores.shape == (*turned.shape, 2)


def test_dicom_folder_in_mask_out(run, data, tmp_path):
    from scripts.prepare.phantom import write_phantom_cohort

    write_phantom_cohort(str(tmp_path / "raw"), cases=1, matrix=48, slices=24, decoys=False, workers=1, progress=False)
    series = next(p.parent for p in (tmp_path / "raw").rglob("*.dcm") if len(list(p.parent.glob("*.dcm"))) > 1)
    workflows.infer(str(series), str(tmp_path / "out"), run=str(run))
    (mask,) = (tmp_path / "out").glob("*_seg.nii.gz")
    from monai.transforms import LoadImage

    image = LoadImage(image_only=True)(str(series))
    assert mask.name.startswith("HCC_001")
    assert nib.load(mask).shape == image.shape
    np.testing.assert_allclose(nib.load(mask).affine, image.affine, atol=1e-4)


class TestBadInput:
    def test_bad_data_stops_before_training(self, data, tmp_path):
        bad = ball_dataset(tmp_path / "bad", 5)
        write_nifti(bad / "labelsTr" / "ball_03.nii.gz", np.full((24, 24, 24), 9, np.uint8), np.diag([-2.0, 2, 2, 1]))
        with pytest.raises(ValueError, match=r"ball_03\.nii\.gz: holds value 9"):
            workflows.train(str(bad), str(tmp_path / "run"), f"fusion_none,{tiny_overlay(tmp_path)}", epochs=1)
        assert not (tmp_path / "run" / "checkpoints").exists()

    def test_checkpoint_of_another_network(self, run, tmp_path):
        other = torch.nn.Sequential(torch.nn.Linear(3, 3))
        torch.save(other.state_dict(), tmp_path / "model.pt")
        with pytest.raises(ValueError, match="another network"):
            workflows.evaluate(str(run), checkpoint=str(tmp_path / "model.pt"), evaluation_dir=str(tmp_path))

    def test_patch_that_does_not_divide(self, data, tmp_path):
        overlay = f"fusion_none,{tiny_overlay(tmp_path)}"
        with pytest.raises(ValueError, match=r"size \(20, 24, 24\); each axis must be divisible by \(8, 8, 8\)"):
            workflows.train(str(data), str(tmp_path / "run"), overlay, epochs=1, patch_size=[20, 24, 24])

    def test_network_wants_clinical_data_and_there_is_none(self, tmp_path):
        data = ball_dataset(tmp_path / "data", 5)
        (data / "clinical.csv").unlink()
        with pytest.raises(ValueError, match=r"has no clinical\.csv, but the network takes clinical variables"):
            workflows.train(str(data), str(tmp_path / "run"), str(tiny_overlay(tmp_path)), epochs=1)

    @pytest.mark.parametrize(
        ("change", "message"), [({"fold": 1}, "fold, the cases of the folds"), ({"epochs": 20}, "epochs changed")]
    )
    def test_going_on_with_other_settings(self, run, data, tmp_path, change, message):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        overlay = tiny_overlay(run.parent)
        with pytest.raises(ValueError, match=f"holds a run with other settings: .*{message}"):
            workflows.train(str(data), str(run), str(overlay), **({"epochs": 12, "val_interval": 5} | change))
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def test_classes_of_another_dataset(self, data, tmp_path):
        with pytest.raises(
            ValueError, match="has the classes background, ball, but the configuration has background, liver"
        ):
            workflows.train(str(data), str(tmp_path / "run"), "network_swin_next_tiny", epochs=1)

    def test_unknown_setting(self, run):
        with pytest.raises(ValueError, match="no 'evaluation_di'.*evaluation_dir"):
            workflows.evaluate(str(run), evaluation_di="x")

    def test_unreadable_image(self, run, tmp_path):
        (tmp_path / "scan.nii.gz").write_bytes(b"not a scan")
        with pytest.raises(Exception, match=r"scan\.nii\.gz"):
            workflows.infer(str(tmp_path / "scan.nii.gz"), str(tmp_path / "out"), run=str(run))

    def test_unknown_overlay(self):
        with pytest.raises(ValueError, match="no overlay 'fusion_ad'.*Known: .*dataset_left_atrium"):
            workflows.overlay_paths("fusion_ad")

    def test_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a finished run: it has no config.yaml"):
            workflows.evaluate(str(tmp_path))


def test_clinical_scaling_is_fitted_on_the_training_patients_alone(data, tmp_path):
    from scripts.clinical import ClinicalSchema
    from scripts.runs import fit_clinical
    from support import CONFIGS

    schema = ClinicalSchema.from_yaml(CONFIGS / "clinical_hcc_tace.yaml", columns=["age", "Sex"])
    text = (data / "clinical.csv").read_text()
    fitted = []
    for name, row in (("own", "ball_05,55,2"), ("held out", "ball_05,99,1"), ("training", "ball_05,55,2")):
        table = tmp_path / "table.csv"
        changed = text.replace("ball_05,55,2", row)
        table.write_text(changed.replace("ball_06,56,1", "ball_06,99,2") if name == "training" else changed)
        statistics = tmp_path / name / "clinical.json"
        fit_clinical(schema, str(table), True, str(statistics), str(data), 0)
        fitted.append(statistics.read_text())
    own, held_out, training = fitted
    assert own == held_out
    assert own != training


def test_large_kernels_start_from_small_ones(data, tmp_path):
    """UpKern in one command: trains kernels of 3, and the first epoch of the enlarged network goes on from there."""
    channels = {f"network_def::{part}::channels": [4, 8] for part in ("encoder", "decoder")}
    blocks = {f"network_def::{part}::blocks": 1 for part in ("encoder", "decoder")}
    options = {"bottleneck_channels": 8, **channels, **blocks, "val_interval": 5, "epochs": 5}
    overlays = f"{tiny_overlay(tmp_path)},network_mednext_s,fusion_none"
    both = tmp_path / "both"
    workflows.train(str(data), str(both), f"{overlays},start_upkern", **options)
    small, large = (read_log(run / "log.csv") for run in (both / "k3", both))
    assert len(small) == len(large) == 5
    weights = {run: torch.load(both / run / "model.pt")["encoder.stages.0.0.conv1.weight"] for run in ("k3", ".")}
    assert [tuple(w.shape[2:]) for w in weights.values()] == [(3, 3, 3), (5, 5, 5)]
    again = (both / "k3" / "model.pt").stat().st_mtime_ns
    source = {"upkern_source": str(both / "k3" / "model.pt")}
    workflows.train(str(data), str(tmp_path / "k5"), f"{overlays},start_upkern", **options | source | {"epochs": 1})
    assert not (tmp_path / "k5" / "k3").exists()
    assert (both / "k3" / "model.pt").stat().st_mtime_ns == again
    workflows.train(str(data), str(tmp_path / "random"), overlays, kernel_size=5, **options | {"epochs": 1})
    given, random = (float(read_log(tmp_path / run / "log.csv")[0]["train_loss"]) for run in ("k5", "random"))
    assert given < 0.7 * random
    assert float(large[0]["train_loss"]) < 0.7 * random


def test_clinical_values_reach_the_network(run, data, tmp_path):
    """Evaluation follows the table: other values, other probabilities; no table, no failure."""
    other = tmp_path / "other.csv"
    other.write_text((data / "clinical.csv").read_text().replace("ball_00,50,1", "ball_00,90,2"))
    image = str(data / "imagesTr" / "ball_00.nii.gz")
    found = []
    for table in (str(data / "clinical.csv"), str(other), None):
        workflows.infer(image, str(tmp_path / "out"), run=str(run), clinical=table, save_probabilities=True)
        found.append(nib.load(tmp_path / "out" / "ball_00_probabilities.nii.gz").get_fdata())
    own, changed, unknown = found
    assert not np.array_equal(own, changed)
    assert not np.array_equal(own, unknown)
    assert np.isfinite(unknown).all()


def test_weights_of_the_run_load_strictly(run):
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(run / "inference.yaml"))
    load_weights(parser.get_parsed_content("network"), str(run / "model.pt"))


def nny(*arguments, cwd):
    return subprocess.run([str(ROOT / "nny"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_bad_input_on_the_command_line_is_one_line(tmp_path):
    done = nny("evaluate", "nowhere", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("nny: ")
    assert "is not a finished run" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(tmp_path):
    done = nny("--help", cwd=tmp_path)
    for command in ("demo", "phantom", "prepare", "clinical", "train", "evaluate", "infer", "report"):
        assert command in done.stdout + done.stderr


def test_plain_monai_command_works_from_any_folder(run, data, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file"]
    files = [ROOT / "bundle" / "configs" / "inference.yaml", run / "config.yaml", ROOT / "bundle/configs/evaluate.yaml"]
    command += [str([str(file) for file in files]), "--output_dir", str(run), "--evaluation_dir", str(tmp_path / "e")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    again = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert again == json.loads((run / "evaluation" / "summary.json").read_text())


def test_demo_weights_are_what_their_provenance_says():
    folder = workflows.DEMO_RUN
    provenance = json.loads((folder / "provenance.json").read_text())
    for name, digest in provenance["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6


def test_demo_network_segments_a_phantom(tmp_path):
    from scripts.metrics import case_metrics
    from scripts.prepare.phantom import write_phantom_cohort

    data = tmp_path / "data"
    write_phantom_cohort(str(data), cases=1, layout="msd", seed=4321, workers=1, progress=False)
    workflows.infer(str(data / "imagesTr"), str(tmp_path / "out"), clinical=str(data / "clinical.csv"))
    mask, label = nib.load(tmp_path / "out" / "HCC_001_seg.nii.gz"), nib.load(data / "labelsTr" / "HCC_001.nii.gz")
    names = {1: "liver", 2: "tumour", 3: "portal vein", 4: "aorta"}
    rows = case_metrics(np.asarray(mask.dataobj), np.asarray(label.dataobj), label.header.get_zooms(), names)
    assert {row["class"]: row["dice"] for row in rows}["liver"] > 0.85
