"""`nny verify`: judges a released bundle stage by stage; a later stage only sees what the earlier ones let through."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .allowed import AllowList
from .archive import unpack, zip_problems
from .code import OURS, code_problems
from .configs import config_problems, plain_problems, read_config
from .metadata import metadata_problems, schema_of
from .sandbox import trial_problems
from .snapshot import copy_files, list_files, private_folder
from .sums import SUMS, name_problems, read_sums, sum_problems
from .texts import logging_problems, requirement_problems
from .torchscript import torchscript_problems
from .weights import arrays_problems, weights_problems

SHOWN = 20


def verify(
    bundle: str,
    *,
    allow: str | Sequence[str] = (),
    trust_code: bool = False,
    memory_gb: float = 16,
    seconds: float = 600,
) -> None:
    """Check a released bundle: its files, its weights, its configuration, and that it gives the expected answer.

    Nothing of it is parsed by MONAI, imported or run before all of it was judged by reading; it is then tried in a
    process of its own. Works on a private copy that is removed.

    Args:
        bundle: a released zip, or the folder of a bundle.
        allow: names that the configuration may use besides those of docs/verify.md, separated by commas.
        trust_code: accept Python files that differ from those of this installation; read them first.
        memory_gb: address space for trying the network.
        seconds: after which trying the network is given up.

    Raises:
        ValueError: what is wrong, each with its file and its cure.
    """
    with verified(bundle, allow=allow, trust_code=trust_code, memory_gb=memory_gb, seconds=seconds) as folder:
        count = len(read_sums(folder)[0])
    print(f"{bundle}: {count} files as released; configuration, code and weights accepted; the stored case gives the")
    print("expected answer; MONAI finds no fault with metadata, shapes and properties.")


@contextmanager
def verified(
    bundle: str | Path,
    *,
    parent: str | Path | None = None,
    sha256: str | None = None,
    allow: str | Sequence[str] = (),
    trust_code: bool = False,
    memory_gb: float = 16,
    seconds: float = 600,
) -> Iterator[Path]:
    """Check a bundle, and give the private copy that was checked while the block runs.

    Args:
        bundle: see `verify`.
        parent: folder in which to make the private copy.
        sha256: expected sum of the zip, or of a folder's ``SHA256SUMS``, which names all others.
        allow: see `verify`.
        trust_code: see `verify`.
        memory_gb: see `verify`.
        seconds: see `verify`.

    Yields:
        The folder with the released files and nothing else; it may be moved away.

    Raises:
        FileNotFoundError: there is no such bundle.
        ValueError: see `verify`.
    """
    source = Path(bundle).expanduser().resolve()
    if not source.exists():
        raise FileNotFoundError(f"{bundle}: there is no such zip or folder.")
    with private_folder(parent) as private:
        folder = _copy_of(source, private, sha256)
        sums, _ = read_sums(folder)
        refuse(source, "its files are not the released ones", sum_problems(folder, sums))
        more = tuple(allow.split(",")) if isinstance(allow, str) else tuple(allow)
        allowed = AllowList(folder / "scripts" if trust_code else OURS, more)
        refuse(
            source, "its content is not accepted; nothing of it was run", _content(folder, sums, allowed, trust_code)
        )
        schema = schema_of(read_config(folder / "configs" / "metadata.json"))
        tried = trial_problems(folder, private / "work", schema, memory_gb=memory_gb, seconds=seconds)
        refuse(source, "it does not do what it says", tried)
        yield folder


def refuse(source: str | Path, reason: str, problems: Iterable[str]) -> None:
    """Raise when there are problems.

    Args:
        source: what was checked.
        reason: what they mean together.
        problems: one message each.

    Raises:
        ValueError: with all of them.
    """
    found = list(dict.fromkeys(problems))
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ValueError("\n  ".join([f"{source}: {reason}:", *found[:SHOWN], *more]))


def _copy_of(source: Path, private: Path, sha256: str | None) -> Path:
    """Put the listed files of a zip or a folder into the private folder, below a folder of the bundle's name."""
    content = private / "content"
    content.mkdir()
    if source.is_dir():
        return _copy_of_folder(source, content / source.name, sha256)
    copy_files(source.parent, [source.name], private / "zip")
    copy = private / "zip" / source.name
    _expect(copy, sha256)
    try:
        archive = zipfile.ZipFile(copy)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{source}: is no complete zip ({error}); download it again.") from error
    with archive:
        refuse(source, "the zip is not safe to unpack; nothing was unpacked", zip_problems(archive))
        refuse(source, "the zip is damaged", unpack(archive, content))
    copy.unlink()
    (folder,) = content.iterdir()
    _released_files(source, folder)
    return folder


def _copy_of_folder(source: Path, folder: Path, sha256: str | None) -> Path:
    sums = _released_files(source, source)
    try:
        copy_files(source, [*sums, SUMS], folder)
    except OSError as error:
        raise ValueError(f"{source}: it changed while it was read ({error}); try again.") from error
    _expect(folder / SUMS, sha256)
    refuse(source, "it changed while it was read", [] if read_sums(folder)[0] == sums else [f"{SUMS}: try again"])
    return folder


def _released_files(source: Path, folder: Path) -> dict[str, str]:
    """The sums of a folder that has the files of a bundle and no others."""
    names, problems = list_files(folder)
    sums, unreadable = read_sums(folder)
    refuse(source, "its files are not the released ones", [*problems, *unreadable, *name_problems(names, sums)])
    return sums


def _expect(file: Path, sha256: str | None) -> None:
    if sha256 is not None and file.is_file():
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != str(sha256).lower():
            raise ValueError(
                f"{file.name}: its SHA-256 is {found}, expected {sha256}; ask the publisher which is right."
            )


def _content(folder: Path, sums: Iterable[str], allowed: AllowList, trust_code: bool) -> Iterator[str]:
    """Judge what is in the files, by reading alone."""
    for name in sums:
        path = folder / name
        if name.startswith("configs/") and path.suffix == ".conf":
            yield from (f"{name}, {problem}" for problem in logging_problems(path))
        elif name.startswith("configs/"):
            yield from (f"{name}, {problem}" for problem in config_problems(path, allowed))
        elif name.startswith("models/") and path.suffix == ".json":
            yield from (f"{name}: {problem}" for problem in plain_problems(path))
        elif name == "requirements.txt":
            yield from (f"{name}, {problem}" for problem in requirement_problems(path))
        elif name.startswith("models/") and path.suffix == ".pt":
            yield from (f"{name}: {problem}" for problem in weights_problems(path))
        elif name.startswith("models/") and path.suffix == ".ts":
            yield from (f"{name}: {problem}" for problem in torchscript_problems(path, folder / "models" / "model.pt"))
        elif name.startswith("models/") and path.suffix == ".npz":
            yield from (f"{name}: {problem}" for problem in arrays_problems(path))
    yield from metadata_problems(folder)
    if not trust_code:
        yield from code_problems(folder, list(sums), _version(folder))


def _version(folder: Path) -> str:
    try:
        return str(read_config(folder / "configs" / "metadata.json")["version"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
