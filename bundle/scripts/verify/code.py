"""Judges the Python files of a bundle: those of this installation, or a package's list of names with fewer names."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts import BUNDLE_ROOT

OURS = BUNDLE_ROOT / "scripts"


def code_problems(folder: Path, names: Sequence[str], version: str) -> Iterator[str]:
    """Compare a bundle's code with the code of this installation; none of it is imported.

    Args:
        folder: the private copy of the bundle.
        names: its files.
        version: the version of nny that released it, for the message.

    Yields:
        One message for each file that is neither ours nor a shorter list of our imports.
    """
    for name in names:
        if not name.startswith("scripts/"):
            continue
        own = OURS / name.removeprefix("scripts/")
        content = (folder / name).read_bytes()
        if own.is_file() and own.read_bytes() == content:
            continue
        if not (own.is_file() and name.endswith("/__init__.py") and is_trimmed(content, own.read_bytes())):
            what = "differs from" if own.is_file() else "is not part of"
            yield (
                f"{name}: {what} this installation, and what code does cannot be judged without running it; use the "
                f"nny {version}, or read the file and try it with `nny verify … --trust_code`"
            )


def is_trimmed(source: bytes, own: bytes) -> bool:
    """Whether an ``__init__.py`` says nothing that ours does not say; a release leaves out networks that it lacks.

    Args:
        source: the bundle's file, parsed and never run.
        own: ours.
    """
    try:
        return _statements(source) <= _statements(own)
    except (SyntaxError, ValueError, RecursionError):
        return False


def _statements(source: bytes) -> set[str]:
    """The top-level statements of a module, imports and ``__all__`` taken apart by name."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            head = f"from {'.' * node.level}{node.module or ''} import"
            found |= {f"{head} {ast.unparse(alias)}" for alias in node.names}
        elif isinstance(node, ast.Assign) and _is_list_of_names(node):
            found |= {f"__all__ {name}" for name in ast.literal_eval(node.value)}
        else:
            found.add(ast.unparse(node))
    return found


def _is_list_of_names(node: ast.Assign) -> bool:
    """Whether a statement is ``__all__ = ["a", "b"]``; another target, such as ``f().x = []``, would be run."""
    target, *others = node.targets
    named = isinstance(target, ast.Name) and target.id == "__all__" and not others
    return named and isinstance(node.value, ast.List) and all(isinstance(e, ast.Constant) for e in node.value.elts)
