"""The README's demo, small: from a synthetic download to a report."""

import json
from pathlib import Path

import pytest
from scripts import workflows

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(900)
def test_demo_ends_in_a_report(tmp_path):
    html = Path(workflows.demo(str(tmp_path / "demo"), cases=12, epochs=6)).read_text()
    run = tmp_path / "demo" / "run"
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["classes"]["liver"]["dice"]["mean"] > 0.5
    for name in ("liver", "tumour", "portal vein", "abdominal aorta"):
        assert name in html
    assert f"{summary['total']['dice']['mean']:.3f}" in html
    # a second call finds everything done and changes nothing
    before = (run / "model.pt").read_bytes()
    workflows.demo(str(tmp_path / "demo"), cases=12, epochs=6)
    assert (run / "model.pt").read_bytes() == before
