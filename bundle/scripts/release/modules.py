"""The part of `scripts` that a bundle's configurations reach, found by reading the code instead of running it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "scripts"
TRIMMED = "scripts.networks"  # its __init__ names every network; a bundle takes the names of its own
DOTTED = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")


def needed_modules(texts: Iterable[str], root: Path, extra: Iterable[str] = ()) -> dict[str, str]:
    """Find the modules of ``scripts`` that configurations need, directly or through other modules.

    Args:
        texts: the configurations as text; every ``scripts.module.name`` in them counts.
        root: folder that holds the package ``scripts``.
        extra: dotted names that are needed besides.

    Returns:
        Path relative to `root` to source text. ``scripts/networks/__init__.py`` keeps only the names in use.

    Raises:
        ValueError: a configuration names a module that does not exist.
    """
    return _Finder(root).find({name for text in texts for name in DOTTED.findall(text)} | set(extra))


def third_party(sources: Iterable[str]) -> set[str]:
    """Names of the top-level packages that sources need, without the standard library and `scripts`.

    Args:
        sources: Python source texts.

    Returns:
        Import names, such as ``sklearn``; imports that may fail, in a ``try`` for ImportError, are not needed.
    """
    found = set()
    for tree in map(ast.parse, sources):
        optional = {id(node) for attempt in ast.walk(tree) if _may_fail(attempt) for node in ast.walk(attempt)}
        for node in ast.walk(tree):
            if id(node) in optional:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {PACKAGE}


def _may_fail(node: ast.AST) -> bool:
    """Whether a statement goes on without a package that it imports."""
    caught = [ast.unparse(handler.type) for handler in getattr(node, "handlers", []) if handler.type]
    return any("ImportError" in name or "ModuleNotFoundError" in name for name in caught)


class _Finder:
    """Follows imports from dotted names until nothing new turns up."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, Path] = {}  # module -> file
        self.exported: set[str] = set()  # names that others take from the trimmed package
        tree = ast.parse((root / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
        assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        self.constants = {target.id for target in assigned if isinstance(target, ast.Name)}

    def find(self, names: Iterable[str]) -> dict[str, str]:
        for name in sorted(names):
            self._name(name)
        sources = {}
        for module, file in sorted(self.files.items()):
            text = self._trimmed() if module == TRIMMED else file.read_text(encoding="utf-8")
            sources[file.relative_to(self.root).as_posix()] = text
        return sources

    def _name(self, dotted: str) -> None:
        """Take the modules on the way to a dotted name; what follows the last module is an attribute of it."""
        parts = dotted.split(".")
        for n in range(1, len(parts) + 1):
            module = ".".join(parts[:n])
            if self._file(module) is None:
                if n == 2 and parts[1] not in self.constants:
                    raise ValueError(f"A configuration names {dotted}, but there is no module {module} in {self.root}.")
                if ".".join(parts[: n - 1]) == TRIMMED:
                    self._export(parts[n - 1])
                return
            self._module(module)

    def _module(self, module: str) -> None:
        file = self._file(module)
        if module in self.files or file is None:
            return
        self.files[module] = file
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if module == TRIMMED:
            for name in _own_names(tree):  # what the package itself calls when it is imported
                self._export(name)
            return
        self._imports(tree, module)

    def _imports(self, tree: ast.AST, module: str) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        self._name(alias.name)
            elif isinstance(node, ast.ImportFrom):
                source = self._source(node, module)
                if source.split(".")[0] == PACKAGE:
                    self._name(source)
                    for alias in node.names:
                        self._name(f"{source}.{alias.name}")

    def _source(self, node: ast.ImportFrom, module: str) -> str:
        """The absolute name of the module that an import statement takes names from."""
        if node.level == 0:
            return node.module or ""
        package = module if self._file(module).name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return ".".join(filter(None, (package, node.module)))

    def _export(self, name: str) -> None:
        """Take a name of the trimmed package, and the module that it comes from."""
        if name in self.exported:
            return
        self.exported.add(name)
        tree = ast.parse(self._file(TRIMMED).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
                self._name(f"{self._source(node, TRIMMED)}.{name}")

    def _trimmed(self) -> str:
        """The package's ``__init__`` with the imports of exported names alone, laid out as its source is."""
        source = self._file(TRIMMED).read_text(encoding="utf-8")
        tree = ast.parse(source)
        parts = []
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                node.names = [alias for alias in node.names if alias.name in self.exported]
                if node.names:
                    parts.append(ast.unparse(node))
            elif isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                names = [element.value for element in node.value.elts if element.value in self.exported]
                parts.append("".join(["\n__all__ = [\n", *(f'    "{name}",\n' for name in names), "]\n"]))
            else:
                parts.append(ast.get_source_segment(source, node) + "\n" * (node is tree.body[0]))  # docstring, gap
        return "\n".join(parts) + "\n"

    def _file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
        return None


def _own_names(tree: ast.Module) -> set[str]:
    """Names that the statements of a module use, imports and ``__all__`` left out."""
    used = [node for node in tree.body if not isinstance(node, ast.ImportFrom | ast.Import | ast.Assign)]
    return {name.id for node in used for name in ast.walk(node) if isinstance(name, ast.Name)}
