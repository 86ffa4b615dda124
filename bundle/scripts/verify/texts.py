"""Judges texts that tools evaluate, `logging.conf` and `requirements.txt`, and documents, which people open."""

from __future__ import annotations

import configparser
import re
from collections.abc import Container, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CLASSES = {
    "handler": {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"},
    "formatter": {"logging.Formatter"},
}
ARGUMENTS = {"()", "(sys.stdout,)", "(sys.stderr,)"}
CURE = "do not run this bundle"
PICTURES = {  # first and last bytes
    ".png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    ".jpg": (b"\xff\xd8\xff", b"\xff\xd9"),
}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ACTIVE = re.compile(
    r"<\s*(script|iframe|object|embed|svg|form|meta|link|style|base)\b|javascript:|<\w[^>]*\son\w+\s*=", re.IGNORECASE
)
LINE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?\s*([=<>!~]=?=?[\w.*+!]+(\s*,\s*[=<>!~]=?=?[\w.*+!]+)*)?"
)


def logging_problems(path: Path) -> Iterator[str]:
    """Judge a logging file: handlers that write to the console, and plain formatters.

    Args:
        path: the file.

    Yields:
        One message for each value that could run or write something.
    """
    parser = configparser.ConfigParser()  # with interpolation, as fileConfig reads it
    try:
        parser.read_string(path.read_bytes().decode("ascii"))  # Python reads it in the system's encoding
        sections = {name: {key: _value(section, key) for key in section} for name, section in parser.items()}
    except (configparser.Error, ValueError) as error:
        yield f"is no logging file ({str(error).splitlines()[0]}); {CURE}"
        return
    for name, section in sections.items():
        kind = name.split("_")[0]
        if "class" in section and section["class"] not in CLASSES.get(kind, ()):
            yield f"[{name}]: class={section['class']} is not on the list of allowed names; {CURE}"
        if section.get("args", "()").replace(" ", "") not in ARGUMENTS:
            yield f"[{name}]: args={section['args']} would be evaluated; only {', '.join(sorted(ARGUMENTS))}; {CURE}"
        for key in {"kwargs", "defaults"} & set(section):
            if section[key].strip() != "{}":
                yield f"[{name}]: {key}={section[key]} would be evaluated; {CURE}"


def _value(section: configparser.SectionProxy, key: str) -> str:
    """A value as fileConfig sees it: formats raw, all others interpolated."""
    return section.get(key, raw=key in ("format", "datefmt", "style"))


def requirement_problems(path: Path, allowed: Container[str]) -> Iterator[str]:
    """Judge each line.

    Args:
        path: the file.
        allowed: packages that the user vouches for, besides those that are installed here.

    Yields:
        One message for each line that is more than a package and its versions, or names a package not known here.
    """
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        if not LINE.fullmatch(text):
            yield f"line {number}: {text[:100]!r} is more than a package and its versions; do not install from it"
            continue
        name = re.split(r"[^A-Za-z0-9._-]", text)[0]
        if name not in allowed and not _installed(name):
            yield (
                f"line {number}: {name} is no package that this installation uses; look it up, and if you trust it "
                f"add --allow {name}"
            )


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def document_problems(path: Path) -> Iterator[str]:
    """Judge a picture, a table or a text.

    Args:
        path: the file.

    Yields:
        At most one message: it is something else than its name says, or a browser or terminal would run parts of it.
    """
    data = path.read_bytes()
    if path.suffix in PICTURES:
        first, last = PICTURES[path.suffix]
        if not (data.startswith(first) and data.endswith(last)):
            yield f"is no {path.suffix[1:]} picture; do not open it"
        return
    text = data.decode("utf-8", errors="replace")
    if CONTROL.search(text) or "\ufffd" in text:
        yield "is no plain text; do not open it"
    elif path.suffix == ".md" and (found := ACTIVE.search(text)):
        yield f"has {found[0]!r}, which a browser would run; do not open it in one"
