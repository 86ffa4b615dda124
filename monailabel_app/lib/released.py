"""Released bundles: unpacked safely, and refused when a file is not the one that was released."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

SUMS = "SHA256SUMS"


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a released bundle once; the same bytes are not unpacked again.

    Args:
        archive: the zip, which holds one folder.
        target: folder that gets ``<name>-<first digits of the archive's hash>/<name>``.

    Returns:
        The bundle's folder.

    Raises:
        ValueError: no zip, more than one folder in it, a name that leads out of it, or a file that is not what
            ``SHA256SUMS`` says.
    """
    digest = _sha256(archive)[:12]
    home = target / f"{archive.stem}-{digest}"
    if not home.is_dir():
        part = target / f".{home.name}.{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            _extract(archive, part)
            check_sums(_only_folder(archive, part))
            part.rename(home)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return _only_folder(archive, home)


def check_sums(folder: Path) -> None:
    """Compare a released bundle with its ``SHA256SUMS``; a folder without one is not a release and passes.

    Raises:
        ValueError: a file that was changed or is missing, each by name.
    """
    sums = folder / SUMS
    if not sums.is_file():
        return
    lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines() if line.strip()]
    wrong = []
    for digest, name in lines:
        file = folder / name.strip().lstrip("*")
        if not file.is_file() or _sha256(file) != digest:
            wrong.append(str(file))
    if wrong:
        raise ValueError(f"Not the files that were released: {', '.join(wrong)}. Get the bundle again.")


def _extract(archive: Path, part: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                path = PurePosixPath(entry.filename)
                link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or link:
                    raise ValueError(f"{archive} holds {entry.filename!r}, which leads out of it. It is not unpacked.")
            opened.extractall(part)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is no zip: {error}.") from None


def _only_folder(archive: Path, home: Path) -> Path:
    folders = [path for path in home.iterdir() if path.is_dir()]
    if len(folders) != 1 or not (folders[0] / "configs" / "inference.yaml").is_file():
        raise ValueError(f"{archive} is no released bundle: expected one folder with configs/inference.yaml in it.")
    return folders[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
