"""Runs that are repeated, changed or killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from prepare_support import BUNDLE, digests, files_of, prepare

# resuming


def test_second_run_makes_nothing_again(few, tmp_path):
    prepare(few, tmp_path / "out")
    before, stamps = digests(tmp_path / "out"), {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.nii.gz")}
    done = prepare(few, tmp_path / "out")
    assert done["resumed"] == 3
    assert digests(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.nii.gz")} == stamps


def test_changed_deleted_and_overwritten_cases_are_made_again(few, tmp_path):
    prepare(few, tmp_path / "out")
    os.utime(files_of(few, "HCC_001")[0], ns=(1, 1))
    (tmp_path / "out" / "labelsTr" / "HCC_002.nii.gz").unlink()
    assert prepare(few, tmp_path / "out")["resumed"] == 1
    assert prepare(few, tmp_path / "out", overwrite=True)["resumed"] == 0


def test_killed_run_resumes_to_the_same_bytes(few, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts.prepare import hcc_tace, hcc_tace_case, output, prepare_hcc_tace\n"
        "import time\n"
        "whole = output.os.replace\n"
        "def slow(a, b):\n"
        "    if 'HCC_002' in str(b) and 'imagesTr' in str(b): print('now', flush=True); time.sleep(60)\n"
        "    whole(a, b)\n"
        "output.os.replace = slow\n"
        f"prepare_hcc_tace({str(few)!r}, {str(tmp_path / 'out')!r}, workers=1, progress=False)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"  # the label of the second case is there, its image is not
        process.send_signal(signal.SIGKILL)
    left = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "HCC_002.nii.gz" in left
    assert any(name.endswith(".part") for name in left)
    assert "dataset.json" not in left
    done = prepare(few, tmp_path / "out")
    assert (done["resumed"], done["kept"]) == (1, 3)
    prepare(few, tmp_path / "reference")
    assert digests(tmp_path / "out") == digests(tmp_path / "reference")


def test_workers_end_with_their_killed_parent(few, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\n"
        "from scripts.prepare.output import run_in_parallel\n"
        "import os, time\n"
        "if __name__ == '__main__':\n"
        f"    run_in_parallel(time.sleep, {{'a': 30, 'b': 30}}, workers=2, progress=False)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as process:
        deadline = time.monotonic() + 30
        while len(children := workers_of(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 2
    assert not any(alive(pid) for pid in children)


def workers_of(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and "spawn_main" in (path.parent / "cmdline").read_text():
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers_make_the_same_as_one(few, tmp_path):
    prepare(few, tmp_path / "one")
    prepare(few, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
