"""Judges and unpacks a zip that nobody vouches for."""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

MAX_ENTRIES = 10_000
MAX_BYTES = 16 * 2**30  # unpacked
MAX_RATIO = 100  # unpacked to packed; weights have 1.1, tables and logs below 30
SMALL = 2**20  # bytes; below, a high ratio harms nobody
CHUNK = 2**20
PART = re.compile(r"\.?[\w()+,=@-][\w .()+,=@-]*(?<![ .])", re.ASCII)  # one part of a path, on every system
FILES = (0, stat.S_IFREG)


def zip_problems(archive: zipfile.ZipFile) -> Iterator[str]:
    """Find what would make unpacking an archive unsafe, from its directory alone.

    Args:
        archive: the open zip.

    Yields:
        One message for each problem.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        yield f"holds {len(entries)} entries, at most {MAX_ENTRIES} are unpacked; it is no released bundle"
        return
    if entries and (min(entry.header_offset for entry in entries) != 0 or archive.comment):
        yield "has something before its first entry or after its last: programs would find other files in it"
    seen: dict[str, str] = {}
    for entry in entries:
        yield from _entry_problems(entry)
        same = unicodedata.normalize("NFC", entry.orig_filename.rstrip("/")).casefold()
        if same in seen:
            yield f"entry {entry.orig_filename!r} comes twice, also as {seen[same]!r}: one would replace the other"
        seen[same] = entry.orig_filename
    for name in seen:
        for parent in PurePosixPath(name).parents:
            if str(parent) in seen and not seen[str(parent)].endswith("/"):
                yield f"entry {seen[str(parent)]!r} is both a file and the folder of {seen[name]!r}"
    total, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    size = Path(archive.filename).stat().st_size if archive.filename else packed
    if total > MAX_BYTES:
        yield f"declares {total / 2**30:.0f} GiB unpacked, at most {MAX_BYTES // 2**30} are accepted: a zip bomb"
    if packed > size:
        yield f"its entries claim {packed} packed bytes, but the file has {size}: they overlap, a zip bomb"
    tops = {PurePosixPath(entry.filename).parts[0] for entry in entries if entry.filename.strip("/")}
    if len(tops) != 1:
        yield f"has {len(tops)} entries at the top, expected the one folder of a bundle"


def _entry_problems(entry: zipfile.ZipInfo) -> Iterator[str]:
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ":" in parts[0] or "\\" in name or ".." in parts:
        yield f"entry {name!r} leaves the folder it is unpacked to (zip slip)"
    elif not all(PART.fullmatch(part) for part in parts):
        yield f"entry {name!r} has a name that not every system can write; use letters, digits and ._-"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        yield f"entry {name!r} is a symbolic link; a bundle holds plain files"
    elif kind not in (*FILES, stat.S_IFDIR) or (kind == stat.S_IFDIR and not name.endswith("/")):
        yield f"entry {name!r} is no plain file"
    if entry.flag_bits & 0x1:
        yield f"entry {name!r} is encrypted; pack it without a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"entry {name!r} is packed by method {entry.compress_type}; use deflate"
    if entry.file_size > SMALL and entry.file_size > MAX_RATIO * entry.compress_size:
        yield (
            f"entry {name!r} grows from {entry.compress_size} to {entry.file_size} bytes, more than {MAX_RATIO} "
            "times: a zip bomb"
        )


def unpack(archive: zipfile.ZipFile, folder: Path) -> Iterator[str]:
    """Unpack an archive that `zip_problems` found safe; no entry may grow beyond what it declared.

    Args:
        archive: the open zip.
        folder: an empty folder of this process alone.

    Yields:
        One message for each entry that is damaged.
    """
    for entry in tqdm(archive.infolist(), desc="unpacking", leave=False, disable=None):
        target = folder / entry.filename
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(entry) as source, open(target, "xb") as file:
                _copy(source, file, entry.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
            yield f"entry {entry.filename!r} is damaged ({error}); download the zip again"


def _copy(source: IO[bytes], file: IO[bytes], declared: int) -> None:
    """Copy until the end, or until more came than was declared."""
    written = 0
    while chunk := source.read(CHUNK):
        written += len(chunk)
        if written > declared:
            raise ValueError(f"it holds more than the {declared} bytes that it declares")
        file.write(chunk)
    if written != declared:
        raise ValueError(f"it holds {written} bytes and declares {declared}")
