import shutil
from pathlib import Path

import pytest
from scripts.prepare import prepare_hcc_tace, write_phantom_cohort

TINY = {"matrix": 48, "slice_spacing": 10.0}


@pytest.fixture(scope="session")
def download(tmp_path_factory) -> Path:
    """A synthetic download of ten patients; two of them are among those that the paper drops."""
    folder = tmp_path_factory.mktemp("download") / "raw"
    write_phantom_cohort(str(folder), cases=10, workers=1, progress=False, **TINY)
    return folder


@pytest.fixture(scope="session")
def prepared(download, tmp_path_factory) -> Path:
    """What `prepare` makes of it."""
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare_hcc_tace(str(download), str(folder), workers=1, progress=False)
    return folder


@pytest.fixture
def few(download, tmp_path):
    """A download of three patients to break things in."""
    for name in ("HCC_001", "HCC_002", "HCC_005"):
        shutil.copytree(download / "HCC-TACE-Seg" / name, tmp_path / "raw" / "HCC-TACE-Seg" / name)
    for table in download.glob("*.xlsx"):
        shutil.copy(table, tmp_path / "raw")
    return tmp_path / "raw"
