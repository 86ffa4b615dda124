"""Judges the text files that tools evaluate: `logging.conf`, of which Python runs parts, and `requirements.txt`."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

CLASSES = {
    "handler": {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"},
    "formatter": {"logging.Formatter"},
}
ARGUMENTS = {"()", "(sys.stdout,)", "(sys.stderr,)"}
CURE = "do not run this bundle"
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
        parser.read_string(path.read_bytes().decode("utf-8"))
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


def requirement_problems(path: Path) -> Iterator[str]:
    """Judge each line.

    Args:
        path: the file.

    Yields:
        One message for each line that is more than a package and its versions.
    """
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        text = line.split(" #")[0].strip()
        if text and not text.startswith("#") and not LINE.fullmatch(text):
            yield f"line {number}: {text[:100]!r} is more than a package and its versions; do not install from it"
