"""Only the modules that a bundle needs, found without running them."""

import ast

import pytest
from scripts.release.modules import needed_modules, third_party
from support import ROOT

RUNS = """
from scripts import files
from scripts.networks import load

def f():
    from .hidden import x
"""
NETWORKS = """'''Networks.'''

from .a import A, B
from .b import C
from .load import load
from .tune import tune

__all__ = ["A", "B", "C", "load"]

tune()
"""


@pytest.fixture
def package(tmp_path):
    """A package like ours: lazy names, a package of networks, an import inside of a function."""
    files = {
        "__init__.py": "BUNDLE_ROOT = 1\n",
        "lone.py": "import torch\n",
        "runs.py": RUNS,
        "files.py": "import os, numpy.linalg\n",
        "hidden.py": "x = 1\n",
        "networks/__init__.py": NETWORKS,
        "networks/a.py": "from . import deep\nA = B = 1\n",
        "networks/b.py": "C = 1\n",
        "networks/load.py": "from ..files import x\nload = 1\n",
        "networks/tune.py": "def tune(): pass\n",
        "networks/deep/__init__.py": "from ..b import C\n",
    }
    for name, text in files.items():
        path = tmp_path / "scripts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def found(package, *texts, extra=()):
    return {path.removeprefix("scripts/"): text for path, text in needed_modules(texts, package, extra).items()}


def test_target_brings_its_module_and_what_it_imports(package):
    modules = found(package, "_target_: scripts.networks.A")
    assert set(modules) == {
        "__init__.py", "networks/__init__.py", "networks/a.py", "networks/b.py", "networks/deep/__init__.py",
        "networks/tune.py",
    }  # fmt: skip


def test_package_of_networks_names_only_those_in_use(package):
    text = found(package, "_target_: scripts.networks.A")["networks/__init__.py"]
    names = {alias.name for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == {"A", "tune"}  # tune() is called by the package itself
    assert "tune()" in text
    assert '__all__ = [\n    "A",\n]' in text


def test_names_in_expressions_and_imports_in_functions_count(package):
    modules = found(package, "x: $scripts.runs.f(scripts.BUNDLE_ROOT, @y)")
    assert {"runs.py", "files.py", "hidden.py", "networks/load.py"} <= set(modules)
    assert not {"lone.py", "networks/a.py", "networks/b.py"} & set(modules)


def test_extra_names(package):
    assert "lone.py" in found(package, extra=["scripts.lone"])


def test_unknown_module_is_refused(package):
    with pytest.raises(ValueError, match=r"names scripts\.missing\.x, but there is no module scripts\.missing"):
        found(package, "$scripts.missing.x()")


def test_third_party_packages():
    source = "import os, numpy.linalg\nfrom sklearn import tree\nfrom scripts import x\nfrom . import y"
    assert third_party([source]) == {"numpy", "sklearn"}


def test_packages_that_may_be_missing_are_not_needed():
    source = (
        "def f():\n    try:\n        import onnxruntime\n    except ModuleNotFoundError as error:\n        raise error"
    )
    assert third_party([source]) == set()
    assert third_party([source.replace("ModuleNotFoundError", "KeyError")]) == {"onnxruntime"}


def test_bundle_holds_its_network_and_not_the_others(bundle):
    names = {path.name for path in (bundle / "scripts").rglob("*.py")}
    assert {"swin.py", "mednext.py", "fusion.py", "inferers.py", "fine_tuning.py", "segment.py"} <= names
    assert not {"nnformer.py", "transunet.py", "swin_unet.py", "catalogue.py", "workflows.py", "report.py"} & names
    assert not (bundle / "scripts" / "prepare").exists()
    assert not (bundle / "scripts" / "release").exists()
    for path in (bundle / "scripts").rglob("*.py"):
        own = ROOT / "bundle" / path.relative_to(bundle)
        assert path.read_bytes() == own.read_bytes() or path.parts[-2:] == ("networks", "__init__.py")
