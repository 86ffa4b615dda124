"""`nny verify`: judges a released bundle stage by stage; a later stage only sees what the earlier ones let through."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .allowed import AllowList
from .archive import open_zip, unpack, zip_problems
from .code import OURS, code_problems
from .configs import config_problems, plain_problems, read_config
from .metadata import metadata_problems, schema_of
from .sandbox import trial_problems
from .snapshot import copy_files, list_files, private_folder
from .sums import SUMS, name_problems, read_sums, size_problems, sum_problems
from .texts import document_problems, logging_problems, requirement_problems
from .torchscript import torchscript_problems
from .weights import arrays_problems, weights_problems

SHOWN = 20


def verify(
    bundle: str,
    *,
    allow: str | Sequence[str] = (),
    trust_code: bool = False,
    max_gb: float = 16,
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
        max_gb: size above which a bundle is refused, packed or unpacked.
        memory_gb: address space for trying the network.
        seconds: after which trying the network is given up.

    Raises:
        ValueError: what is wrong, each with its file and its cure.
    """
    settings = {"allow": allow, "trust_code": trust_code, "max_gb": max_gb, "memory_gb": memory_gb, "seconds": seconds}
    with verified(bundle, **settings) as folder:
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
    max_gb: float = 16,
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
        max_gb: see `verify`.
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
        folder = _copy_of(source, private, sha256, max_gb * 2**30)
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
        raise ValueError("\n  ".join([f"{source}: {reason}:", *map(_printable, found[:SHOWN]), *more]))


def _printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _copy_of(source: Path, private: Path, sha256: str | None, most: float) -> Path:
    """Put the listed files of a zip or a folder into the private folder, below a folder of the bundle's name."""
    content = private / "content"
    content.mkdir()
    if source.is_dir():
        return _copy_of_folder(source, content / source.name, sha256, most)
    if not source.is_file():
        raise ValueError(f"{source}: is neither a zip nor a folder.")
    if source.stat().st_size > most:
        raise ValueError(f"{source}: has more than {most / 2**30:.3g} GiB; if you expect that, give more --max_gb.")
    copy_files(source.parent, [source.name], private / "zip")
    copy = private / "zip" / source.name
    _expect(copy, sha256)
    try:
        archive = open_zip(copy)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{source}: is no complete zip ({error}); download it again.") from error
    with archive:
        refuse(source, "the zip is not safe to unpack; nothing was unpacked", zip_problems(archive, most))
        refuse(source, "the zip is damaged", unpack(archive, content))
    copy.unlink()
    (folder,) = content.iterdir()
    _released_files(source, folder, most, clone=False)
    return folder


def _copy_of_folder(source: Path, folder: Path, sha256: str | None, most: float) -> Path:
    sums = _released_files(source, source, most, clone=True)
    try:
        copy_files(source, [*sums, SUMS], folder)
    except OSError as error:
        raise ValueError(f"{source}: it changed while it was read ({error}); try again.") from error
    _expect(folder / SUMS, sha256)
    refuse(source, "it changed while it was read", [] if read_sums(folder)[0] == sums else [f"{SUMS}: try again"])
    return folder


def _released_files(source: Path, folder: Path, most: float, *, clone: bool) -> dict[str, str]:
    """The sums of a folder that has the files of a bundle and no others."""
    names, problems = list_files(folder, clone=clone)
    sums, unreadable = read_sums(folder)
    reason = "its files are not the released ones"
    refuse(source, reason, [*problems, *unreadable, *name_problems(names, sums, clone=clone)])
    refuse(source, reason, size_problems(folder, sums, most))
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
        joint = ", " if name.startswith("configs/") or name == "requirements.txt" else ": "
        yield from _judged(name, (f"{name}{joint}{problem}" for problem in _problems(folder, name, allowed)))
    yield from _judged("configs/metadata.json", metadata_problems(folder))
    if not trust_code:
        yield from code_problems(folder, list(sums), _version(folder))


def _judged(name: str, problems: Iterator[str]) -> Iterator[str]:
    """The problems of a file; one that cannot even be judged is refused as well."""
    try:
        yield from problems
    except Exception as error:  # whatever a reader meets in a file that is made to confuse it
        yield f"{name}: cannot be judged ({type(error).__name__}: {error}); do not use this bundle"


def _problems(folder: Path, name: str, allowed: AllowList) -> Iterator[str]:
    """What is wrong with a file of a bundle, by its place and its ending; code is judged by itself."""
    path = folder / name
    place, suffix = name.partition("/")[0] if "/" in name else "", path.suffix
    if place == "configs":
        return logging_problems(path) if suffix == ".conf" else config_problems(path, allowed)
    if place == "models":
        if suffix == ".ts":
            return torchscript_problems(path, folder / "models" / "model.pt")
        return {".json": plain_problems, ".pt": weights_problems, ".npz": arrays_problems}[suffix](path)
    if name == "requirements.txt":
        return requirement_problems(path, allowed.more)
    return iter(()) if place == "scripts" else document_problems(path)


def _version(folder: Path) -> str:
    """The nny that released a bundle, as the bundle says."""
    try:
        return str(read_config(folder / "configs" / "metadata.json")["supported_apps"]["nny"])
    except (ValueError, KeyError, TypeError):
        return "that released it"
