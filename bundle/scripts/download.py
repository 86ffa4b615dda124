"""`nny download`: fetches a released bundle, checks it, and only then puts it in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

from tqdm import tqdm

from scripts.verify import verified
from scripts.verify.snapshot import private_folder

WEB = ("http", "https")
CHUNK = 2**20
PATIENCE = 60  # seconds without a byte


def download(
    source: str,
    output: str,
    *,
    sha256: str | None = None,
    allow: str | Sequence[str] = (),
    trust_code: bool = False,
    max_gb: float = 16,
    memory_gb: float = 16,
    seconds: float = 600,
) -> str:
    """Fetch a released bundle to <output>/<name>, checked as `nny verify` does; if it is refused nothing stays behind.

    Args:
        source: address (http, https, file) or path of a zip, or the folder of a bundle, such as a clone from Hugging
            Face.
        output: folder that gets the bundle's folder.
        sha256: sum that the publisher names: of the zip, or of a folder's ``SHA256SUMS``. Without it the sums inside
            say that nothing broke on the way, but not who made it.
        allow: see `nny verify`.
        trust_code: see `nny verify`.
        max_gb: size above which nothing more is fetched, copied or unpacked.
        memory_gb: see `nny verify`.
        seconds: see `nny verify`.

    Returns:
        The bundle's folder.

    Raises:
        FileExistsError: the bundle is there already.
        FileNotFoundError: there is no such file or address.
        ValueError: the bundle is refused, with the reasons.
    """
    folder = Path(output).expanduser().resolve()
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with private_folder(folder) as private:
            local = _fetched(str(source), private, max_gb)
            settings = {"allow": allow, "trust_code": trust_code, "memory_gb": memory_gb, "seconds": seconds}
            with verified(local, parent=private, sha256=sha256, max_gb=max_gb, **settings) as checked:
                target = folder / checked.name
                _put(checked, target)
    except BaseException:
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    print(
        f"{target}: checked; run it with `python -m monai.bundle run --config_file {target}/configs/inference.yaml …`"
    )
    return str(target)


def _fetched(source: str, private: Path, max_gb: float) -> Path:
    """The zip or folder on this machine, from the web if need be."""
    address = urlparse(source)
    if address.scheme == "file":
        return Path(unquote(address.path))
    if address.scheme not in WEB:
        return Path(source).expanduser()
    target = private / "bundle.zip"
    try:
        complete = _fetch(source, target, max_gb * 2**30)
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise FileNotFoundError(f"{source}: cannot be fetched completely ({error}); try again.") from error
    if not complete:
        raise ValueError(f"{source}: has more than {max_gb:g} GiB; if you expect that, give more --max_gb.")
    return target


def _fetch(address: str, target: Path, most: float) -> bool:
    """Write what a server sends to a file; False, and nothing more is read, where that is too much."""
    with urlopen(Request(address, headers={"User-Agent": "nny"}), timeout=PATIENCE) as answer:
        announced = int(answer.headers.get("Content-Length") or 0)
        with open(target, "xb") as file, tqdm(total=announced or None, unit="B", unit_scale=True, disable=None) as bar:
            written = 0
            while max(written, announced) <= most and (chunk := answer.read(CHUNK)):
                written += file.write(chunk)
                bar.update(len(chunk))
    if written < announced <= most:
        raise HTTPException(f"{written} of {announced} bytes came")
    return max(written, announced) <= most


def _put(checked: Path, target: Path) -> None:
    """Move a checked bundle to its place in one step, unless something is there."""
    if os.path.lexists(target):
        raise FileExistsError(
            f"{target} is there already; it was left as it is. Remove it, or choose another --output."
        )
    os.rename(checked, target)
