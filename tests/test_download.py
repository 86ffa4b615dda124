"""Fetching a released bundle: from a server, a path, a clone; whole and unchanged, or nothing at all."""

import contextlib
import hashlib
import http.server
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from scripts import download as downloads
from scripts.download import download
from verify.bundles import balls, clone_of, edit, pack, released, resum, root  # noqa: F401


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path == "/endless.zip":
            return self.send_without_end()
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        content = (Path(self.directory) / self.path.removeprefix("/cut/")).read_bytes()
        self.send_response(200)  # the connection breaks off after half of what was announced
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def send_without_end(self):
        self.send_response(200)  # nothing says how much will come
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(2**16))


@pytest.fixture
def server(released, tmp_path):  # noqa: F811
    """The address of a folder that holds the release, and that folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(released, folder / released.name)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


@pytest.fixture
def untried(monkeypatch):
    """Leave out the trial of the network, which tests/verify covers, where the way of a file is what matters."""
    monkeypatch.setattr("scripts.verify.bundle.trial_problems", lambda *args, **kwargs: [])


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sum_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_from_a_server(server, root, tmp_path, untried):  # noqa: F811
    address, folder = server
    (zipped,) = folder.iterdir()
    found = download(f"{address}/{zipped.name}", str(tmp_path / "out"), sha256=sum_of(zipped))
    assert Path(found) == tmp_path / "out" / "tiny"
    assert files_of(tmp_path / "out" / "tiny") == files_of(root)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_from_a_path(released, root, tmp_path, untried, form):  # noqa: F811
    download(form.format(released), str(tmp_path / "out"), sha256=sum_of(released).upper())
    assert files_of(tmp_path / "out" / "tiny") == files_of(root)


def test_from_a_clone(root, tmp_path, untried):  # noqa: F811
    clone = clone_of(root, tmp_path / "tiny")
    download(str(clone), str(tmp_path / "out"), sha256=sum_of(clone / "SHA256SUMS"))
    assert files_of(tmp_path / "out" / "tiny") == files_of(root)  # what git and the hub added stays out


def test_clone_without_its_large_files(root, tmp_path):  # noqa: F811
    clone = clone_of(root, tmp_path / "tiny")
    weights = clone / "models" / "model.pt"
    size, digest = weights.stat().st_size, sum_of(weights)
    weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n")
    with pytest.raises(ValueError, match=r"models/model\.pt: is a Git LFS pointer, not the file .* run `git lfs pull`"):
        download(str(clone), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def altered(root, folder):  # noqa: F811
    edit(root / "configs" / "inference.yaml", "overlap: 0.5", "overlap: 0.1")
    pack(root, folder / "bad.zip")


def unsafe(root, folder):  # noqa: F811
    pack(root, folder / "bad.zip", **{"tiny/../../outside.txt": "x"})


def cut_file(root, folder):  # noqa: F811
    data = pack(root, folder / "bad.zip").read_bytes()
    (folder / "bad.zip").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered, r"configs/inference\.yaml: was changed"),
        (unsafe, r"leaves the folder it is unpacked to \(zip slip\)"),
        (cut_file, "is no complete zip .* download it again"),
    ],
)
def test_refused_zip_leaves_nothing(server, root, tmp_path, change, message):  # noqa: F811
    address, folder = server
    change(root, folder)
    before = sorted(tmp_path.rglob("*"))
    for source in (f"{address}/bad.zip", str(folder / "bad.zip")):
        with pytest.raises(ValueError, match=message):
            download(source, str(tmp_path / "deep" / "out"))
        assert sorted(tmp_path.rglob("*")) == before


def test_broken_connection_and_wrong_address(server, tmp_path):
    address, folder = server
    (zipped,) = folder.iterdir()
    for path in (f"cut/{zipped.name}", "absent.zip"):
        with pytest.raises(FileNotFoundError, match=r"cannot be fetched completely .*; try again"):
            download(f"{address}/{path}", str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()


def test_more_than_fits(server, tmp_path):
    """An announced size, one that nobody announced, and that of a file on this machine."""
    address, folder = server
    (zipped,) = folder.iterdir()
    for source in (f"{address}/{zipped.name}", f"{address}/endless.zip", str(zipped)):
        with pytest.raises(ValueError, match="more than 1e-06 GiB; if you expect that, give more --max_gb"):
            download(source, str(tmp_path / "out"), max_gb=1e-6)
        assert not (tmp_path / "out").exists()


def test_other_sum_than_the_publisher_names(server, released, root, tmp_path):  # noqa: F811
    address, folder = server
    other = "0" * 64
    for source in (f"{address}/{released.name}", str(released), str(root)):
        with pytest.raises(ValueError, match=rf"SHA-256 is .*{other}.* publisher"):
            download(source, str(tmp_path / "out"), sha256=other)
        assert not (tmp_path / "out").exists()


def test_what_is_there_stays(released, tmp_path, untried):  # noqa: F811
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    (tmp_path / "out" / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match="tiny is there already; it was left as it is. Remove it, or choose another"
    ):
        download(str(released), str(tmp_path / "out"))
    assert files_of(tmp_path / "out") == {"tiny/mine.txt": b"mine"}


def test_interruption_leaves_nothing(released, tmp_path, untried, monkeypatch):  # noqa: F811
    def interrupted(checked, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(str(released), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_recomputed_sums_are_caught_by_the_publishers(released, root, tmp_path, untried):  # noqa: F811
    """A change that breaks nothing and comes with sums of its own is only seen by who knows the sum of the zip."""
    edit(root / "configs" / "inference.yaml", "overlap: 0.5", "overlap: 0.1")
    resum(root)
    changed = pack(root, tmp_path / "changed.zip")
    with pytest.raises(ValueError, match="ask the publisher"):
        download(str(changed), str(tmp_path / "out"), sha256=sum_of(released))
