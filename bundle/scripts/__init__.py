"""Python side of the bundle: networks, losses, clinical tables, transforms, metrics and the command line."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

BUNDLE_ROOT = Path(__file__).resolve().parents[1]


def __getattr__(name: str) -> ModuleType:
    """Import a submodule on first use, so that configurations can write ``$scripts.datalists.part(...)``."""
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
