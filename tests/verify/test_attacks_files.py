"""Attacks by what lies in a bundle besides its configuration: names, sizes, code that only looks like a list, texts."""

import io
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from scripts.verify import sandbox, verified
from scripts.verify import sums as listed
from scripts.verify.archive import END, open_zip, zip_problems
from scripts.verify.code import is_trimmed
from scripts.verify.texts import document_problems, requirement_problems
from support import ROOT
from verify.bundles import TOUCH, pack, resum

CONFINE = ROOT / "bundle" / "scripts" / "verify" / "confine.py"


@pytest.mark.parametrize(
    "line",
    [f"{TOUCH}.x = []", f"[{TOUCH}.x, *__all__] = ()", f"__all__ = {TOUCH}.x = []", f"__all__ = [{TOUCH}]"],
    ids=["attribute", "unpacking", "two targets", "element"],
)
def test_code_in_the_target_of_a_list_of_names(root, refused, line):
    """A statement without names in its list has to be one of ours as well."""
    path = root / "scripts" / "networks" / "__init__.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    resum(root)
    refused(r"scripts/networks/__init__\.py: differs from this installation")


def test_shorter_list_of_names_is_accepted():
    own = b'"""Doc."""\nfrom .a import x, y\n__all__ = ["x", "y"]\nf()\n'
    assert is_trimmed(b'from .a import x\n__all__ = ["x"]\nf()\n', own)
    for other in (b"from .b import x", b"from .a import x as z", b"__all__ = [f()]", b"__all__ = 'z',", b"g()"):
        assert not is_trimmed(other, own)


@pytest.mark.parametrize("name", [".git/config", ".cache/x.sh", "README.md", ".gitattributes"])
def test_zip_with_what_only_a_clone_has(root, refused, tmp_path, name):
    """Git would run what `.git/config` says, for everybody who only looks at the folder."""
    bundle = pack(root, tmp_path / "clone.zip", **{f"tiny/{name}": "[core]\n\tfsmonitor = touch x\n"})
    refused(rf"{name.replace('.', '[.]')}: is not in SHA256SUMS", bundle)


@pytest.mark.parametrize(
    "name",
    ["tiny/docs/" + "a/" * 1000 + "x.txt", "tiny/docs/" + "a" * 300 + ".txt", "tiny/docs/NUL.txt", "tiny/docs/com1"],
    ids=["deep", "long", "device", "port"],
)
def test_names_that_no_one_can_remove_or_write(root, refused, tmp_path, name):
    """Folders a thousand deep are made in a moment, and then nothing removes them."""
    bundle = pack(root, tmp_path / "names.zip", **{name: "x"})
    refused(
        r"nothing was unpacked:\n  entry 'tiny/docs/.* has a (path of \d+ parts|name that not every system)", bundle
    )


def test_deep_folder(root, refused):
    deep = root / "docs" / "/".join("a" * 30)
    deep.mkdir(parents=True)
    (deep / "x.txt").write_text("x")
    resum(root)
    refused(r"docs/a/a/.*has a path of 32 parts", root)


def test_folders_without_files_stay_out(root, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.verify.bundle.trial_problems", lambda *args, **kwargs: [])
    with verified(pack(root, tmp_path / "folders.zip", **{"tiny/torch/": b""})) as folder:
        assert not (folder / "torch").exists()


def test_second_name_of_an_entry():
    """Other versions of Python take a name from a field that comes behind the first."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/b", "x")
    with zipfile.ZipFile(buffer) as archive:
        archive.infolist()[0].filename = "../outside"
        assert "has a second name, '../outside'" in "\n".join(zip_problems(archive))


def test_list_of_entries_that_fills_the_memory(tmp_path):
    """A zip is opened by reading all of its list; here it claims 3 GB, in the short and in the long form."""
    size = 3 * 2**30
    end = END.pack(b"PK\5\6", 0, 0, 9, 9, size, 0, 0)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, size, 0)
    large = record + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + END.pack(b"PK\5\6", 0, 0, 9, 9, 0, 0, 0)
    for tail in (end, large):
        (tmp_path / "list.zip").write_bytes(b"PK\3\4" + bytes(200) + tail)
        with pytest.raises(zipfile.BadZipFile, match=f"its list of entries has {size} bytes"):
            open_zip(tmp_path / "list.zip")


def test_comment_behind_the_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "comment.zip", "w") as archive:
        archive.comment = b"more"
    with pytest.raises(zipfile.BadZipFile, match="does not end as a zip does"):
        open_zip(tmp_path / "comment.zip")


def test_sizes(root, refused, monkeypatch):
    refused(r"changed\.zip: has more than 1e-06 GiB; if you expect that, give more --max_gb", max_gb=1e-6)
    refused(r"its files have .* GiB, at most 1e-06 are accepted \(--max_gb\)", root, max_gb=1e-6)
    monkeypatch.setitem(listed.LARGEST, "scripts", 0)
    refused(r"scripts/__init__\.py: has \d+ bytes, at most 0 are read")
    monkeypatch.setattr(listed, "MAX_SUMS", 9)
    refused(r"SHA256SUMS: has \d+ bytes, at most 9 are read")


def test_device_in_place_of_a_bundle(refused):
    refused("/dev/zero: is neither a zip nor a folder", "/dev/zero")


def test_array_with_a_header_of_gigabytes(root, refused, monkeypatch):
    """The header is read as a whole before anything is known of the array."""
    content = np.lib.format.magic(2, 0) + struct.pack("<L", 2**31) + bytes(2**18)
    monkeypatch.setattr("scripts.verify.weights.MAX_ARRAY", 2**17)
    with zipfile.ZipFile(root / "models" / "check.npz", "w") as archive:
        archive.writestr("image.npy", content)
        archive.writestr("logits.npy", content)
    resum(root)
    refused(r"models/check\.npz: image\.npy: has 262156 bytes, at most 131072 are read")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("docs/curves.png", b"<html><script>alert(1)</script>", "is no png picture; do not open it"),
        ("docs/curves.png", b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82<script>", "is no png picture"),
        ("docs/scan.jpg", b"MZ", "is no jpg picture"),
        ("docs/README.md", b"# Card\n<script src='http://x'></script>", "has '<script', which a browser would run"),
        ("docs/README.md", b"[x](JavaScript:alert(1))", "which a browser would run"),
        ("docs/README.md", b"<img src=x onerror=alert(1)>", "which a browser would run"),
        ("docs/README.md", b"\x1b]0;title\x07", "is no plain text; do not open it"),
        ("docs/evaluation/per_case.csv", b"PK\3\4\xff", "is no plain text"),
        ("LICENSE", "do \u202eevil".encode(), "is no plain text"),
    ],
)
def test_documents_that_are_something_else(tmp_path, name, content, message):
    path = tmp_path / name.split("/")[-1]
    path.write_bytes(content)
    (problem,) = document_problems(path)
    assert message in problem


def test_documents_of_the_repository_are_accepted():
    files = [p for p in (ROOT / "bundle" / "docs").rglob("*") if p.suffix in (".md", ".png", ".jpg", ".csv", ".txt")]
    assert files
    assert {path.name: list(document_problems(path)) for path in files} == {path.name: [] for path in files}


def test_requirement_that_nobody_here_knows(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("torch==2.0.0\nPyYAML==6.0\nnumpyy==1.26.4\n")
    (problem,) = requirement_problems(path, ())
    assert problem.startswith("line 3: numpyy is no package that this installation uses; look it up")
    assert list(requirement_problems(path, {"numpyy"})) == []


def test_message_that_would_drive_the_terminal(root, refused):
    (root / "docs" / "x\x1b[2J.txt").write_text("x")
    resum(root)
    refused(r"docs/x\\x1b\[2J\.txt: has a name that not every system can write", root)


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_process_of_the_trial_cannot_leave_its_folder(tmp_path):
    """What it may: compute, read, write in one folder. Not: write elsewhere, run programs, connect."""
    (tmp_path / "work").mkdir()
    (tmp_path / "outside.txt").write_text("mine")
    code = """
import os, runpy, socket, subprocess, sys
there, confine = sys.argv[1:]
listening = socket.create_server(("127.0.0.1", 0))
if not runpy.run_path(confine)["confine"](f"{there}/work"):
    print("not here"); sys.exit()
def refused(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
tries = [
    lambda: open(f"{there}/new.txt", "w"), lambda: open(f"{there}/outside.txt", "a"),
    lambda: os.truncate(f"{there}/outside.txt", 0), lambda: os.remove(f"{there}/outside.txt"),
    lambda: os.mkdir(f"{there}/folder"), lambda: os.symlink("/", f"{there}/link"),
    lambda: os.rename(f"{there}/outside.txt", f"{there}/work/x"), lambda: subprocess.run(["true"]),
    lambda: socket.create_connection(listening.getsockname(), 1),
]
print(*map(refused, tries))
with open(f"{there}/work/a.txt", "w") as file:
    file.write("a")
os.mkdir(f"{there}/work/b"); os.replace(f"{there}/work/a.txt", f"{there}/work/b/a.txt")
print(open(f"{there}/outside.txt").read(), open(os.devnull, "w").write("x"))
"""
    done = run(code, tmp_path, CONFINE)
    if done.stdout == "not here\n":
        pytest.skip("this system has no Landlock")
    assert done.returncode == 0, done.stderr
    tries, rest = done.stdout.splitlines()
    assert tries.split()[:8] == ["PermissionError"] * 8
    assert tries.split()[8] in ("PermissionError", "None")  # None: Linux before 6.7
    assert rest == "mine 1"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "outside.txt", "work", "work/b", "work/b/a.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("printed", ['{"check": "load", "problem": ""}\n', '{"check": "load", "probl', ""])
def test_trial_that_ends_before_it_is_through(tmp_path, monkeypatch, printed):
    """Code that ends the process says nothing bad; neither does it say anything good."""
    (tmp_path / "trial.py").write_text(
        f"import sys; sys.stdout.write({printed!r} + '\\n' * ({printed!r}[-1:] == '}}'))"
    )
    monkeypatch.setattr(sandbox, "TRIAL", tmp_path / "trial.py")
    (tmp_path / "schema").write_text("{}")
    problems = sandbox.trial_problems(tmp_path, tmp_path / "work", tmp_path / "schema", memory_gb=4, seconds=60)
    assert "the process that tried it ended with 0" in "\n".join(problems)


@pytest.mark.parametrize(("before", "status"), [("SIG_DFL", 129), ("SIG_IGN", 0)])  # nohup ignores it
def test_private_folder_goes_away_with_the_terminal(before, status, tmp_path):
    code = (
        f"import os, runpy, signal, sys\nsignal.signal(signal.SIGHUP, signal.{before})\n"
        "with runpy.run_path(sys.argv[1])['private_folder'](sys.argv[2]):\n    os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    (tmp_path / "here").mkdir()
    assert run(code, CONFINE.with_name("snapshot.py"), tmp_path / "here").returncode == status
    assert not list((tmp_path / "here").iterdir())


def test_change_within_the_text_of_a_config_is_seen_beyond_ascii(root, refused):
    """In another encoding than UTF-8 the second byte of this letter ends a line, and the comment with it."""
    path = root / "configs" / "inference.yaml"
    path.write_bytes(b"# \xc3\x85note: $open('x')\n" + path.read_bytes())
    resum(root)
    refused(r"configs/inference\.yaml, is not plain yaml: 'ascii' codec can't decode byte 0xc3")
