"""Which files a bundle has, and whether each is the one that was released."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from .archive import path_problems

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")
POINTER = b"version https://git-lfs.github.com/spec/"
NEEDED = (
    "LICENSE",
    "configs/inference.yaml",
    "configs/metadata.json",
    "configs/train.yaml",
    "docs/README.md",
    "models/check.npz",
    "models/model.pt",
    "scripts/__init__.py",
)
TOP = {"LICENSE", "data_license.txt", "requirements.txt", SUMS}
UNLISTED = {".gitattributes", "README.md"}  # of a clone from Hugging Face; no tool of the bundle reads them
KINDS = {
    "configs": {".yaml", ".json", ".conf"},
    "docs": {".md", ".png", ".jpg", ".json", ".csv", ".txt"},
    "models": {".pt", ".ts", ".npz", ".json"},
    "scripts": {".py"},  # compared with ours
}
MAX_SUMS = 2**20  # bytes
LARGEST = {"configs": 5, "docs": 64, "scripts": 1}  # MiB of a file; weights may have what a bundle may
LARGEST_TOP = 1


def read_sums(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Read the sums of a bundle.

    Args:
        folder: the bundle.

    Returns:
        Hexadecimal SHA-256 by path; and one message for each line that says nothing.
    """
    path = folder / SUMS
    if not path.is_file() or path.is_symlink():
        return {}, [f"{SUMS}: is missing, so nothing says which files were released; download the bundle again"]
    if path.stat().st_size > MAX_SUMS:
        return {}, [f"{SUMS}: has {path.stat().st_size} bytes, at most {MAX_SUMS} are read; download the bundle again"]
    sums: dict[str, str] = {}
    problems = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None:
            problems.append(f"{SUMS}, line {number}: {line[:80]!r} is not '<sha256>  <path>'")
        elif match[2] in sums:
            problems.append(f"{SUMS}, line {number}: {match[2]} is listed twice")
        else:
            sums[match[2]] = match[1]
    return sums, problems


def name_problems(names: Iterable[str], sums: dict[str, str], *, clone: bool) -> Iterator[str]:
    """Compare the files that are there with those that were released and those that a bundle has.

    Args:
        names: the files there are.
        sums: `read_sums`.
        clone: accept the files that Hugging Face adds.

    Yields:
        One message for each missing, unlisted or unexpected file.
    """
    there = set(names) - {SUMS}
    listed = set(sums)
    unlisted = UNLISTED if clone else set()
    for name in sorted(listed - there):
        yield f"{name}: is missing; download the bundle again"
    for name in sorted(there - listed - unlisted):
        spare = " (Python would run it in place of its source)" if name.endswith(".pyc") else ""
        yield f"{name}: is not in {SUMS}{spare}; take it out of the bundle's folder"
    for name in sorted(set(NEEDED) - listed):
        if name not in there or name in unlisted:
            yield f"{name}: every released bundle has it, and this one does not; release it again"
    folded: dict[str, str] = {}
    for name in sorted(there):
        if name.casefold() in folded:
            yield f"{name}: has the name of {folded[name.casefold()]} on systems that ignore case; rename one"
        folded[name.casefold()] = name
        if not _belongs(name, unlisted):
            yield f"{name}: a released bundle has no such file; take it out"
        yield from (f"{name}: {problem}" for problem in path_problems(name))


def _belongs(name: str, unlisted: set[str]) -> bool:
    """Whether a bundle may hold a file of this name."""
    top, _, rest = name.partition("/")
    if not rest:
        return name in TOP | unlisted
    return PurePosixPath(name).suffix in KINDS.get(top, ())


def size_problems(folder: Path, names: Iterable[str], most: float) -> Iterator[str]:
    """Compare sizes with what such files need, since some are read as a whole.

    Args:
        folder: the bundle; every file is there.
        names: the listed files.
        most: bytes that they may have together.

    Yields:
        One message for each file that is too large, and one for all.
    """
    total = 0
    for name in names:
        size = (folder / name).stat().st_size
        total += size
        limit = 2**20 * LARGEST.get(name.partition("/")[0], LARGEST_TOP)
        if size > limit and not name.startswith("models/"):
            yield f"{name}: has {size} bytes, at most {limit} are read; download the bundle again"
    if total > most:
        yield f"its files have {total / 2**30:.3g} GiB, at most {most / 2**30:.3g} are accepted (--max_gb)"


def sum_problems(folder: Path, sums: dict[str, str]) -> Iterator[str]:
    """Compare the content of every file with its sum.

    Args:
        folder: the private copy; every listed file is there.
        sums: `read_sums`.

    Yields:
        One message for each file that is not the released one.
    """
    for name, expected in sums.items():
        path = folder / name
        with open(path, "rb") as file:
            start = file.read(len(POINTER))
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if start == POINTER:
            yield f"{name}: is a Git LFS pointer, not the file it stands for; run `git lfs pull` in the clone"
        elif found != expected:
            yield f"{name}: was changed: its SHA-256 is {found[:12]}…, {SUMS} says {expected[:12]}…; download it again"
