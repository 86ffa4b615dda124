"""The README's table of MONAI Label's traps: each has a row, and each row a test that checks something."""

import ast
import re
import string

import pytest
from support import ROOT

README = (ROOT / "monailabel_app" / "README.md").read_text()
ROWS = re.findall(r"^\| ([A-V]): .* \| `([\w/.]+)::(\w+)` \|$", README, re.MULTILINE)


def test_every_trap_has_a_row():
    assert [name for name, _, _ in ROWS] == list(string.ascii_uppercase[:22])


@pytest.mark.parametrize(("trap", "file", "test"), ROWS)
def test_its_test_is_run_and_checks_something(trap, file, test):
    """One that pytest collects, that nothing skips, and that can fail."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == test]
    assert test.startswith("test_")
    assert "skip" not in "".join(map(ast.unparse, found.decorator_list))
    called = {ast.unparse(node.func).rsplit(".", 1)[-1] for node in ast.walk(found) if isinstance(node, ast.Call)}
    checks = [name for name in called if name in ("raises", "refused") or name.startswith("assert_")]
    assert checks or any(isinstance(node, ast.Assert) for node in ast.walk(found))
