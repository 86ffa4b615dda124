"""Judges `$` expressions by their syntax tree: look-ups, calls of known names, and arithmetic; nothing is evaluated."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from monai.bundle import ReferenceResolver

from .allowed import ATTRIBUTES, BUILTINS, IMPORTS, METHODS, AllowList

REFERENCES = "__local_refs"  # MONAI writes `@id` as __local_refs['id'] before it evaluates
MAX_LENGTH = 2000
ONCE = "scripts.distributed.once"  # calls its first argument
PLAIN = (
    ast.Expression,
    ast.Constant,
    ast.Tuple,
    ast.List,
    ast.Dict,
    ast.Slice,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.keyword,
    ast.Load,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def expression_problems(text: str, allowed: AllowList) -> Iterator[str]:
    """Judge one expression as MONAI would evaluate it.

    Args:
        text: the value in the configuration, ``$`` included.
        allowed: the names it may use.

    Yields:
        One message for each part that is refused.
    """
    if len(text) > MAX_LENGTH:
        yield f"is {len(text)} characters long, at most {MAX_LENGTH} are read"
        return
    if "__" in text:
        yield "uses names with a double underscore"
        return
    # the text that is judged has to be the text that is evaluated: MONAI replaces `@id` also inside of strings
    ids = ReferenceResolver.match_refs_pattern(text)
    resolved = ReferenceResolver.update_refs_pattern(text, dict.fromkeys(ids))
    for version in {text, resolved}:
        if version == text and ids:
            continue  # `@` is no Python; MONAI looks for imports in it only when it parses
        try:
            statements = ast.parse(version[1:].strip()).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield f"is no expression ({type(error).__name__})"
            return
        if len(statements) != 1 or not isinstance(statements[0], ast.Import | ast.ImportFrom | ast.Expr):
            yield "is no single expression"
        elif isinstance(statements[0], ast.Expr):
            yield from _node_problems(statements[0].value, allowed)
        else:
            yield from _import_problems(statements[0])


def _import_problems(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) or len(node.names) != 1 or node.names[0].asname:
        yield "imports in another form than `import <module>`"
    elif node.names[0].name not in IMPORTS:
        yield f"imports {node.names[0].name}; only {', '.join(sorted(IMPORTS))} may be imported"


def _node_problems(node: ast.AST, allowed: AllowList, called: bool = False) -> Iterator[str]:
    """Judge a node and what is below it; `called` tells whether it is the function of a call."""
    if isinstance(node, ast.Call):
        yield from _node_problems(node.func, allowed, called=True)
        if ast.unparse(node.func) == ONCE and not (node.args and _is_dotted(node.args[0])):
            yield f"{ONCE} calls something without a name"
        if isinstance(node.func, ast.Name) and any(keyword.arg in ("key", None) for keyword in node.keywords):
            yield f"{node.func.id} calls its key"
        for child in (*node.args, *node.keywords):
            yield from _node_problems(child, allowed)
    elif isinstance(node, ast.Attribute):
        yield from _attribute_problems(node, allowed, called)
    elif isinstance(node, ast.Name):
        if node.id not in BUILTINS:
            yield f"uses the name {node.id}"
    elif _is_reference(node):
        if called:
            yield "calls what a reference stands for"
    elif called:
        yield f"calls the result of a {type(node).__name__}"
    elif isinstance(node, ast.Subscript):
        yield from _node_problems(node.value, allowed)
        yield from _node_problems(node.slice, allowed)
    elif isinstance(node, PLAIN):
        for child in ast.iter_child_nodes(node):
            yield from _node_problems(child, allowed)
    else:
        yield f"has a part that is not accepted ({type(node).__name__})"


def _attribute_problems(node: ast.Attribute, allowed: AllowList, called: bool) -> Iterator[str]:
    dotted = ast.unparse(node)
    if _is_dotted(node):
        if dotted not in allowed:
            yield f"uses {dotted}"
        return
    if node.attr not in (METHODS if called else ATTRIBUTES):
        yield f"{'calls' if called else 'reads'} .{node.attr} of something"
    if isinstance(node.value, ast.Constant):
        yield "takes an attribute of a plain value"
    yield from _node_problems(node.value, allowed)


def _is_dotted(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and all(part.isidentifier() for part in ast.unparse(node).split("."))


def _is_reference(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == REFERENCES
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
    )
