import tempfile
from pathlib import Path

import pytest
from scripts.verify import bundle as stages
from scripts.verify import verify
from verify.bundles import CANARY, balls, pack, released, root  # noqa: F401


@pytest.fixture
def refused(root, tmp_path, monkeypatch):  # noqa: F811
    """Check that a bundle is refused with a message, that nothing ran, and that nothing stays behind.

    What reading refuses is never tried; what only the trial can tell says so by `tried`.
    """
    temporary, here, trials = tmp_path / "temporary", tmp_path / "here", []
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.chdir(here)
    original = stages.trial_problems

    def watched(*args, **kwargs):
        trials.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(stages, "trial_problems", watched)

    def check(message, bundle=None, *, tried=False, **options):
        bundle = bundle or pack(root, tmp_path / "changed.zip")
        before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path != temporary}
        trials.clear()
        with pytest.raises(ValueError, match=message):
            verify(str(bundle), **options)
        assert len(trials) == tried
        assert not list(temporary.iterdir())
        assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path != temporary} == before
        assert not Path(CANARY).exists()

    yield check
    Path(CANARY).unlink(missing_ok=True)
