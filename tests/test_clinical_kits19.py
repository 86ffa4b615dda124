"""KiTS19's clinical table: a second schema, with which a network with fusion trains by configuration alone."""

import csv
import json
import warnings

import import_support as trees
import nibabel as nib
import numpy as np
import pytest
from import_support import OPTIONS, kits_entry
from scripts import workflows
from scripts.clinical import ClinicalSchema, ClinicalTable, check
from scripts.handlers import read_log
from scripts.prepare.commands import COMMANDS
from scripts.prepare.kits19_clinical import read_kits_json
from support import CONFIGS, TINY

SCHEMA = str(CONFIGS / "clinical_kits19.yaml")


def balls(image_path, label_path, values, codes, n):
    """A kidney (large ball) with a tumour (small one beside it), which a tiny network learns within seconds."""
    rng = np.random.default_rng(n)
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"))
    label = np.zeros((24, 24, 24), np.uint8)
    for value, radius, centre in ((1, 7, rng.uniform(10, 14, 3)), (2, 4, rng.uniform(5, 8, 3))):
        label[np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0)) < radius] = value
    image = (100 * label + rng.normal(0, 10, label.shape)).astype(np.int16)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    for path, array in ((image_path, image), (label_path, label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])).as_reoriented(turn), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    trees.kits19(folder / "raw", numbers=range(10), write=balls)
    COMMANDS["kits19"](str(folder / "raw"), str(folder / "data"), **OPTIONS)
    return folder / "data"


def rows(data):
    with (data / "clinical.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def test_table_holds_what_the_json_said(data):
    table = rows(data)
    assert list(table) == [f"case_{n:05d}" for n in range(10)]  # case 210 has no label
    assert table["case_00005"]["comorbidities.copd"] == "true"
    assert table["case_00004"]["comorbidities.copd"] == "false"
    assert [table[f"case_{n:05d}"]["last_preop_egfr.value"] for n in range(3)] == ["77.0", "90", ""]
    assert [table[f"case_{n:05d}"]["pack_years"] for n in range(3)] == ["0", "7", ""]
    assert not any("spacing" in name for name in table["case_00000"])


def test_schema_covers_every_variable_and_accepts_every_value(data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        everything = ClinicalSchema.from_yaml(SCHEMA, preset="paper")
        ClinicalTable(path=data / "clinical.csv", schema=everything)  # raises at the first refused cell
    assert {"case_id", *(column.name for column in everything.columns)} == set(rows(data)["case_00000"])
    assert any("known only after treatment leak" in str(warning.message) for warning in caught)
    assert "no problems" in check(str(data / "clinical.csv"), SCHEMA)


def test_what_is_known_after_the_operation_is_not_used_unless_asked_for():
    schema = ClinicalSchema.from_yaml(SCHEMA)
    names = [column.name for column in schema.columns]
    assert len(names) == 29
    assert not [n for n in names if n.startswith(("path", "surg", "vital", "intra", "tumor", "first", "last_post"))]
    assert {"age_at_nephrectomy", "gender", "radiographic_size", "comorbidities.copd"} <= set(names)


def test_vectors_are_standardised_and_unknown_stays_unknown(data):
    schema = ClinicalSchema.from_yaml(SCHEMA, columns=["age_at_nephrectomy", "gender", "last_preop_egfr.value"])
    table = ClinicalTable(path=data / "clinical.csv", schema=schema)
    table.fit([f"case_{n:05d}" for n in range(10)])
    vectors = np.stack([table.vector(f"case_{n:05d}") for n in range(10)])
    ages = 40 + 3 * np.arange(10)
    np.testing.assert_allclose(vectors[:, 0], (ages - ages.mean()) / ages.std(), rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(vectors[:, 2]), np.arange(10) % 3 == 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"age": 3}]', "is no list of cases with a case_id each"),
        ("{", "is no list of cases"),
        (json.dumps([kits_entry(1), kits_entry(1)]), "has several entries for case_00001"),
    ],
)
def test_broken_table_names_the_file(tmp_path, content, message):
    (tmp_path / "kits.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/kits.json {message}"):
        read_kits_json(tmp_path)


def test_missing_table_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no kits.json"):
        read_kits_json(tmp_path)


def test_network_with_fusion_trains_by_configuration_alone(data, tmp_path):
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(
        "\n".join(
            line for line in TINY.splitlines() if not line.startswith(("clinical_columns", "labels", "class_ratios"))
        )
    )
    run = tmp_path / "run"
    workflows.train(str(data), str(run), f"dataset_kits19,{overlay}", epochs=8, val_interval=4)
    losses = [float(row["train_loss"]) for row in read_log(run / "log.csv")]
    assert losses[-1] < 0.8 * losses[0]
    fitted = json.loads((run / "clinical.json").read_text())
    schema = ClinicalSchema.from_yaml(SCHEMA)
    assert [feature[0] for feature in fitted["features"]] == list(schema.feature_names)
    assert fitted["n_patients"] == 8  # of the training folds alone
    assert "CrossAttentionFusion" in (run / "config.yaml").read_text()
    workflows.evaluate(str(run))
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["total"]["dice"]["n"] == 2  # the held-out cases
    source = tmp_path / "new"
    source.mkdir()
    for n in (0, 1):
        path = data / "imagesTr" / f"case_{n:05d}.nii.gz"
        (source / path.name).write_bytes(path.read_bytes())
    workflows.infer(str(source), str(tmp_path / "masks"), str(run), clinical=str(data / "clinical.csv"))
    mask = nib.load(tmp_path / "masks" / "case_00001_seg.nii.gz")
    np.testing.assert_allclose(mask.affine, nib.load(data / "labelsTr" / "case_00001.nii.gz").affine)
