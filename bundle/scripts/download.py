"""`nny download`: fetches a released bundle, checks it, and only then puts it in its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlparse

from monai.apps.utils import HashCheckError, download_url

from scripts.verify import verified
from scripts.verify.snapshot import private_folder

WEB = ("http", "https")


def download(
    source: str,
    output: str,
    *,
    sha256: str | None = None,
    allow: str | Sequence[str] = (),
    trust_code: bool = False,
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
            local = _fetched(str(source), private, sha256)
            settings = {"allow": allow, "trust_code": trust_code, "memory_gb": memory_gb, "seconds": seconds}
            with verified(local, parent=private, sha256=sha256, **settings) as checked:
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


def _fetched(source: str, private: Path, sha256: str | None) -> Path:
    """The zip or folder on this machine, from the web if need be."""
    address = urlparse(source)
    if address.scheme == "file":
        return Path(unquote(address.path))
    if address.scheme not in WEB:
        return Path(source).expanduser()
    target = private / "download" / "bundle.zip"
    try:
        download_url(source, target, hash_val=sha256, hash_type="sha256", progress=True)
    except HashCheckError as error:
        raise ValueError(
            f"{source}: its SHA-256 is not {sha256}; nothing was unpacked. Download it again, or ask its publisher."
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise FileNotFoundError(f"{source}: cannot be fetched completely ({error}); try again.") from error
    return target


def _put(checked: Path, target: Path) -> None:
    """Move a checked bundle to its place in one step, unless something is there."""
    if os.path.lexists(target):
        raise FileExistsError(
            f"{target} is there already; it was left as it is. Remove it, or choose another --output."
        )
    os.rename(checked, target)
