import tempfile

import pytest
from scripts.verify import verify
from verify.bundles import CANARY, balls, pack, released, root  # noqa: F401


@pytest.fixture
def refused(root, tmp_path, monkeypatch):  # noqa: F811
    """Check that a bundle is refused with a message, that nothing ran, and that nothing stays behind."""
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.chdir(here)

    def check(message, bundle=None, **options):
        bundle = bundle or pack(root, tmp_path / "changed.zip")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=message):
            verify(str(bundle), **options)
        assert not list(temporary.iterdir())
        assert sorted(tmp_path.rglob("*")) == before
        assert not list(tmp_path.rglob(CANARY))

    return check
