"""Judges and unpacks a zip that nobody vouches for."""

from __future__ import annotations

import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

MAX_ENTRIES = 10_000
MAX_DIRECTORY = 8 * 2**20  # bytes of a zip's list of entries; 10,000 entries have some 1 MiB
MAX_BYTES = 16 * 2**30  # unpacked
MAX_DEPTH = 20  # folders in folders; TorchScript has some 8
MAX_NAME = 240  # characters
MAX_RATIO = 100  # unpacked to packed; weights have 1.1, tables and logs below 30
SMALL = 2**20  # bytes; below, a high ratio harms nobody
CHUNK = 2**20
PART = re.compile(r"\.?[\w()+,=@-][\w .()+,=@-]*(?<![ .])", re.ASCII)  # one part of a path, on every system
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # what Windows opens instead of a file
FILES = (0, stat.S_IFREG)
END, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
LOCATOR = 20  # bytes between the two


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip, unless the list of its entries alone would fill the memory.

    Args:
        path: the file.

    Returns:
        The open zip.

    Raises:
        zipfile.BadZipFile: it is no zip, ends in something else, or lists too much.
    """
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, END64.size + LOCATOR + END.size), os.SEEK_END)
        tail = file.read()
    if len(tail) < END.size or tail[-END.size : -END.size + 4] != b"PK\5\6":
        raise zipfile.BadZipFile("it does not end as a zip does")
    size = END.unpack(tail[-END.size :])[5]
    if tail[-END.size - LOCATOR : -END.size].startswith(b"PK\6\7"):
        if not tail.startswith(b"PK\6\6"):
            raise zipfile.BadZipFile("it does not end as a large zip does")
        size = END64.unpack(tail[: END64.size])[8]
    if size > MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"its list of entries has {size} bytes, at most {MAX_DIRECTORY} are read")
    return zipfile.ZipFile(path)


def path_problems(name: str) -> Iterator[str]:
    """Find what keeps a path from being written, or from meaning the same, on every system.

    Args:
        name: path inside a bundle, with ``/``.

    Yields:
        At most one message, without the name.
    """
    parts = name.split("/")
    if len(parts) > MAX_DEPTH or len(name) > MAX_NAME:
        yield f"has a path of {len(parts)} parts and {len(name)} characters; at most {MAX_DEPTH} and {MAX_NAME}"
    elif any(not PART.fullmatch(part) or DEVICE.fullmatch(part) for part in parts):
        yield "has a name that not every system can write; use letters, digits and ._-"


def zip_problems(archive: zipfile.ZipFile, most: float = MAX_BYTES) -> Iterator[str]:
    """Find what would make unpacking an archive unsafe, from its directory alone.

    Args:
        archive: the open zip.
        most: bytes that it may have when it is unpacked.

    Yields:
        One message for each problem.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        yield f"holds {len(entries)} entries, at most {MAX_ENTRIES} are unpacked; it is no released bundle"
        return
    if entries and (min(entry.header_offset for entry in entries) != 0 or archive.comment):
        yield "has something before its first entry or after its last: programs would find other files in it"
    unsafe = [problem for entry in entries for problem in _entry_problems(entry)]
    yield from unsafe
    if unsafe:
        return  # names that are refused may be too long to compare
    seen: dict[str, str] = {}
    for entry in entries:
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
    if total > most:
        yield f"declares {total / 2**30:.3g} GiB unpacked, at most {most / 2**30:.3g} are accepted: a zip bomb"
    if packed > size:
        yield f"its entries claim {packed} packed bytes, but the file has {size}: they overlap, a zip bomb"
    tops = {PurePosixPath(entry.filename).parts[0] for entry in entries if entry.filename.strip("/")}
    if len(tops) != 1 or min(tops).startswith((".", "-")):
        yield f"has {len(tops)} entries at the top ({', '.join(sorted(tops)[:2])}), expected the one folder of a bundle"


def _entry_problems(entry: zipfile.ZipInfo) -> Iterator[str]:
    name = entry.orig_filename
    shown = repr(name[:MAX_NAME])
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ":" in parts[0] or "\\" in name or ".." in parts:
        yield f"entry {shown} leaves the folder it is unpacked to (zip slip)"
    else:
        yield from (f"entry {shown} {problem}" for problem in path_problems(name.removesuffix("/")))
    if entry.filename != name:
        yield f"entry {shown} has a second name, {entry.filename[:MAX_NAME]!r}"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        yield f"entry {shown} is a symbolic link; a bundle holds plain files"
    elif kind not in (*FILES, stat.S_IFDIR) or (kind == stat.S_IFDIR and not name.endswith("/")):
        yield f"entry {shown} is no plain file"
    if entry.flag_bits & 0x1:
        yield f"entry {shown} is encrypted; pack it without a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"entry {shown} is packed by method {entry.compress_type}; use deflate"
    if entry.file_size > SMALL and entry.file_size > MAX_RATIO * entry.compress_size:
        yield (
            f"entry {shown} grows from {entry.compress_size} to {entry.file_size} bytes, more than {MAX_RATIO} "
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
        if entry.is_dir():
            continue  # folders come with their files; a bundle has no use for empty ones
        target = folder / entry.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(entry) as source, open(target, "xb") as file:
                _copy(source, file, entry.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
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
