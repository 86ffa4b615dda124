import os
import stat

import pytest
from scripts.files import replacing


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "new" / "x.txt"
    with replacing(str(target)) as part:
        part.write_text("whole")
        assert part.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [p.name for p in target.parent.iterdir()] == ["x.txt"]


def fail_halfway(target, error):
    with replacing(target) as part:
        part.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_alone(tmp_path, error):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(error):
        fail_halfway(target, error)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_what_a_kill_leaves_is_overwritten(tmp_path):
    (tmp_path / ".x.txt.part").write_text("a longer leftover")
    with replacing(tmp_path / "x.txt") as part:
        assert part.name == ".x.txt.part"
        part.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.txt", "new")]


def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "x.txt") as part:
            part.write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o644


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.txt.part"), replacing(tmp_path / "x.txt"):
        pass
