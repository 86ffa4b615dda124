import json

import nibabel as nib
import numpy as np
import pytest
from plan_support import two_balls, write_dataset
from scripts.plan import fingerprint
from scripts.plan.fingerprint import take_fingerprint
from scripts.plan.measure import Job, measure_case

SHAPE = (14, 12, 10)


def volumes(n=5):
    rng = np.random.default_rng(0)
    label = two_balls(SHAPE, {1: [(6, 5, 4)]})
    return [((rng.normal(100, 20, SHAPE) + 50 * label).astype(np.float32), label) for _ in range(n)]


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", volumes(), spacing=(1.0, 1.5, 3.0))


def take(dataset, **options):
    return take_fingerprint(dataset, 0, dataset.parent / "store", workers=1, progress=False, **options)


def test_training_cases_are_measured(dataset):
    data = take(dataset / "dataset.json")
    assert [case["case_id"] for case in data.cases] == ["case_01", "case_02", "case_03", "case_04"]
    assert (data.name, data.labels, data.channels, data.held_out) == ("made", ("background", "ball"), ("MR",), 1)
    assert data.spacings.tolist() == [[1.0, 1.5, 3.0]] * 4
    assert data.shapes.tolist() == [list(SHAPE)] * 4
    image, label = volumes()[1]
    foreground = data.records[0]["channels"][0]["foreground"]
    assert np.median(foreground) == pytest.approx(np.median(image[label > 0]), abs=1)
    assert data.of_class(1)[0]["components"] == 1


def test_the_order_of_axes_in_the_file_does_not_matter(tmp_path):
    image, label = volumes(1)[0]
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    records = []
    for codes in ("RAS", "LPS", "SAR", "IRP"):
        paths = []
        for name, array in (("image", image), ("label", label)):
            turn = nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
            )
            paths.append(tmp_path / f"{codes}_{name}.nii.gz")
            nib.save(nib.Nifti1Image(array, affine).as_reoriented(turn), paths[-1])
        records.append(measure_case(Job("case", str(paths[0]), str(paths[1]), 2, "", str(tmp_path / "record.json"))))
    assert records[0]["spacing"] == [1.0, 1.5, 3.0]
    assert all(record == records[0] for record in records[1:])


def test_held_out_cases_are_not_opened(dataset):
    before = take(dataset).records
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder / "case_00.nii.gz").write_bytes(b"not an image")
    assert take(dataset).records == before
    for folder in ("imagesTr", "labelsTr"):
        (dataset / folder / "case_00.nii.gz").unlink()
    assert take(dataset).records == before


def test_what_was_measured_is_kept_until_files_change(dataset, monkeypatch):
    measured = []

    def counted(job):
        measured.append(job.case_id)
        return measure_case(job)

    monkeypatch.setattr(fingerprint, "measure_case", counted)
    first = take(dataset)
    assert len(measured) == 4
    assert take(dataset).records == first.records
    assert len(measured) == 4
    image, label = volumes()[2]
    nib.save(nib.Nifti1Image(image + 1000, np.diag([1.0, 1.5, 3.0, 1.0])), dataset / "imagesTr" / "case_02.nii.gz")
    changed = take(dataset)
    assert measured[4:] == ["case_02"]
    assert changed.records[1]["channels"][0]["mean"] > 1000
    (dataset.parent / "store" / "case_03.json").write_text("{")
    assert take(dataset).records == changed.records
    assert measured[5:] == ["case_03"]


def test_every_unusable_file_is_named_and_nothing_is_measured(dataset):
    (dataset / "imagesTr" / "case_01.nii.gz").write_bytes(b"not an image")
    (dataset / "labelsTr" / "case_02.nii.gz").unlink()
    with pytest.raises(ValueError, match="2 problem") as caught:
        take(dataset)
    assert "case_01.nii.gz: cannot be read" in str(caught.value)
    assert "case_02.nii.gz: no such file" in str(caught.value)
    assert not (dataset.parent / "store").exists()


def test_bad_datasets_are_refused_with_a_cure(dataset):
    with pytest.raises(FileNotFoundError, match="no dataset.json.*nny prepare"):
        take(dataset / "imagesTr")
    about = json.loads((dataset / "dataset.json").read_text())
    for labels in (None, {"0": "background"}, {"background": 0, "ball": 1}, {"0": "background", "2": "ball"}):
        (dataset / "dataset.json").write_text(json.dumps(about | {"labels": labels}))
        with pytest.raises(ValueError, match="expected value -> name"):
            take(dataset)
    for regions, said in (
        ({"a": [1, 2]}, "made of the values"),
        ({"a": [1], "b": [1, 2]}, "2 regions for 1 foreground"),
    ):
        (dataset / "dataset.json").write_text(json.dumps(about | {"regions": regions}))
        with pytest.raises(ValueError, match=f"dataset.json: .*{said}"):
            take(dataset)
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not the JSON of a dataset"):
        take(dataset)
