"""The README's table of MONAI Label's traps: each has a row, and each row a test that exists."""

import re
import string

import pytest
from support import ROOT

README = (ROOT / "monailabel_app" / "README.md").read_text()
ROWS = re.findall(r"^\| ([A-V]): .* \| `([\w/.]+)::(\w+)` \|$", README, re.MULTILINE)


def test_every_trap_has_a_row():
    assert [name for name, _, _ in ROWS] == list(string.ascii_uppercase[:22])


@pytest.mark.parametrize(("trap", "file", "test"), ROWS)
def test_its_test_exists(trap, file, test):
    assert re.search(rf"def {test}\(", (ROOT / "tests" / file).read_text()), trap
