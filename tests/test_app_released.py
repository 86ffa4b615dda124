"""Released bundles in the app: verified before anything in them is used, once, and served as they were verified."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from app_support import app
from scripts import workflows
from verify.bundles import CANARY, TOUCH, balls, insert, pack, released, resum, root  # noqa: F401

from monailabel_app.lib import released as module
from monailabel_app.lib.models import find_source


@pytest.fixture
def verifications(monkeypatch):
    """What was verified."""
    asked, real = [], module.verified
    monkeypatch.setattr(module, "verified", lambda bundle, **more: asked.append(bundle) or real(bundle, **more))
    return asked


def test_zip_is_verified_once_and_gives_the_mask_of_infer(released, balls, tmp_path, verifications):  # noqa: F811
    images = shutil.copytree(balls / "imagesTr", tmp_path / "images")
    conf = {"bundle": f"balls={released}", "clinical": balls / "clinical.csv", "output": tmp_path / "out"}
    for _ in range(2):
        served = app(images, **conf)
    assert verifications == [released]
    assert [path.name for path in (tmp_path / "out" / "bundles").iterdir()][0].startswith("tiny_v1.0.0-")
    told = served.infer({"model": "balls", "image": "ball_03"})
    assert told["params"]["clinical"]["source"] == "table"
    run = released.parents[1] / "tiny"
    workflows.infer(str(images / "ball_03.nii.gz"), str(tmp_path), run=str(run), clinical=str(balls / "clinical.csv"))
    mask, expected = nib.load(told["file"]), nib.load(tmp_path / "ball_03_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(expected.dataobj))


def test_configuration_that_runs_code_is_refused(root, tmp_path):  # noqa: F811
    """Also with sums that fit, as an attacker writes them; nothing of it has run."""
    insert(root / "configs" / "inference.yaml", f"evil: ${TOUCH}")
    resum(root)
    for bundle in (root, pack(root, tmp_path / "evil.zip")):
        with pytest.raises(ValueError, match="nothing of it was run"):
            find_source("evil", str(bundle), tmp_path / "bundles")
    assert not Path(CANARY).exists()
    assert not list((tmp_path / "bundles").iterdir())


def test_bundle_of_another_version_names_what_there_is(root, tmp_path):  # noqa: F811
    """This program uses its own code; the command that is named has the option that is named."""
    path = root / "scripts" / "inferers.py"
    path.write_text(f"{path.read_text()}\n# newer\n")
    resum(root)
    with pytest.raises(ValueError, match=r"use the nny 0\.1\.0, or .* try it with `nny verify … --trust_code`"):
        find_source("newer", str(root), tmp_path / "bundles")


def test_changed_file_is_refused(root, tmp_path):  # noqa: F811
    (root / "models" / "model.pt").open("ab").write(b"more")
    with pytest.raises(ValueError, match=r"model\.pt: was changed"):
        find_source("balls", str(root), tmp_path / "bundles")


def test_changed_copy_is_refused(released, tmp_path):  # noqa: F811
    source = find_source("balls", str(released), tmp_path / "bundles")
    source.weights.open("ab").write(b"more")
    with pytest.raises(ValueError, match="the verified copy was changed; remove it"):
        find_source("balls", str(released), tmp_path / "bundles")


def test_what_is_no_bundle(root, tmp_path):  # noqa: F811
    (tmp_path / "no.zip").write_bytes(b"text")
    with pytest.raises(ValueError, match="is no complete zip"):
        find_source("no", str(tmp_path / "no.zip"), tmp_path / "bundles")
    with pytest.raises(FileNotFoundError, match="There is no bundle"):
        find_source("none", str(tmp_path / "none.zip"), tmp_path / "bundles")
    out = pack(root, tmp_path / "out.zip", **{"../out.txt": "x"})
    with pytest.raises(ValueError, match="zip slip"):
        find_source("out", str(out), tmp_path / "bundles")
    assert not list(tmp_path.rglob("out.txt"))
