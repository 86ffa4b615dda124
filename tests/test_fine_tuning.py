"""The clinical scaling that goes with released weights."""

import pytest
from scripts.clinical import ClinicalSchema
from scripts.fine_tuning import keep_statistics
from scripts.runs import fit_clinical
from support import CONFIGS

SCHEMA = ClinicalSchema.from_yaml(CONFIGS / "clinical_hcc_tace.yaml", columns=["age"])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "clinical.json").write_text('{"mean": [1.0]}')
    return tmp_path


def test_scaling_of_the_bundle_is_taken_over(root):
    keep_statistics(SCHEMA, str(root), str(root / "run" / "clinical.json"))
    assert (root / "run" / "clinical.json").read_text() == '{"mean": [1.0]}'


def test_scaling_of_a_run_that_is_gone_on_with_stays(root):
    own = root / "clinical.json"
    own.write_text("own")
    keep_statistics(SCHEMA, str(root), str(own))
    assert own.read_text() == "own"


def test_nothing_is_done_for_images_alone(root):
    keep_statistics(None, str(root / "missing"), str(root / "clinical.json"))
    assert not (root / "clinical.json").exists()


def test_bundle_without_scaling(root):
    (root / "models" / "clinical.json").unlink()
    with pytest.raises(FileNotFoundError, match="the weights beside it need the clinical scaling"):
        keep_statistics(SCHEMA, str(root), str(root / "clinical.json"))


def test_scaling_that_is_no_json(root):
    (root / "models" / "clinical.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        keep_statistics(SCHEMA, str(root), str(root / "clinical.json"))
    assert not (root / "clinical.json").exists()


def test_scaling_goes_to_a_file_of_its_name_alone(root):
    """A configuration of strangers names the file; a start-up file of the shell would run what it holds."""
    with pytest.raises(ValueError, match=r"goes to .*\.bashrc; expected clinical\.json in the run's folder"):
        keep_statistics(SCHEMA, str(root), str(root / ".bashrc"))
    with pytest.raises(ValueError, match="expected clinical"):
        fit_clinical(SCHEMA, str(root / "table.csv"), False, str(root / ".bashrc"), str(root), 0)
    assert not (root / ".bashrc").exists()
