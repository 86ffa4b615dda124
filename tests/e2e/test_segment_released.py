"""A released bundle from Python: verified and used by this installation, and by the scripts it carries itself."""

import os
import subprocess
import sys
import zipfile

import nibabel as nib
import numpy as np
import pytest
from scripts import workflows
from scripts.prepare.phantom import make_phantom
from scripts.release import release
from scripts.segment import Segmenter

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return release(str(workflows.DEMO_RUN), str(tmp_path_factory.mktemp("dist")), name="demo")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A synthetic scan on disk, and its mask by the run itself."""
    phantom = make_phantom(1, seed=5)
    file = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(phantom.image, phantom.geometry.affine()), file)
    return file, Segmenter(workflows.DEMO_RUN)(file, clinical={"AFP": 400}).mask


@pytest.mark.timeout(600)
def test_zip_gives_the_masks_of_its_run(archive, scan):
    file, expected = scan
    np.testing.assert_array_equal(Segmenter(archive)(file, clinical={"AFP": 400}).mask, expected)


@pytest.mark.timeout(600)
def test_bundle_segments_with_its_own_scripts(archive, scan, tmp_path):
    """As its model card says, in its folder, where nothing of this repository can be imported."""
    file, expected = scan
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    code = (
        "import scripts; from scripts.segment import segment; print(scripts.__file__);"
        f"segment({str(file)!r}, '.', clinical={{'AFP': 400}}).save('mask.nii.gz')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "demo", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(tmp_path) in done.stdout
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "demo" / "mask.nii.gz").dataobj), expected)


@pytest.mark.timeout(600)
def test_altered_zip_is_refused(archive, tmp_path):
    altered = tmp_path / "demo_v1.zip"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(altered, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("inference.yaml"):
                content += b"\nextra: $print('run')\n"
            new.writestr(entry, content)
    with pytest.raises(ValueError, match=r"not the released ones:\n.*inference\.yaml"):
        Segmenter(altered)
