"""The notebook of docs: stored without outputs, and what it shows is true when it is run."""

import json

import nbformat
import pytest
from nbclient import NotebookClient
from support import ROOT

FILE = ROOT / "bundle" / "docs" / "segment.ipynb"
FACTS = """
import json
truth = {title: float(answer.probabilities[tumour][nodules].astype(float).mean()) for title, answer in answers.items()}
liver = result.labels["liver"]
found, true = result.mask == liver, patient.label == liver
print(json.dumps({"nodules": truth, "liver": 2 * int((found & true).sum()) / int(found.sum() + true.sum()),
                  "score": result.uncertainty_score, "saved": np.allclose(saved.affine, affine, atol=1e-4)}))
"""


@pytest.fixture(scope="module")
def stored():
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(scope="module")
def executed(stored):
    """The notebook after all of its cells, and one more that prints what they found."""
    notebook = nbformat.from_dict(stored)
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(FILE.parent)}}).execute()
    return notebook


def test_stored_without_outputs(stored):
    for cell in stored.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert len(FILE.read_bytes()) < 20_000


def test_pictures(executed):
    kinds = [kind for cell in executed.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3


def test_what_it_says(executed):
    facts = json.loads(executed.cells[-1].outputs[0].text)
    assert facts["liver"] > 0.85
    assert 0 < facts["score"] < 1
    assert facts["saved"]
    assert 0 < abs(facts["nodules"]["this patient"] - facts["nodules"]["harmless nodules"]) < 0.05
    assert facts["nodules"]["this patient"] != facts["nodules"]["nothing known"]
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert "did you mean 'AFP'?" in printed
