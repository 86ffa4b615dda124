"""Cross-validation: a run for each fold, every patient scored once by a network that never saw him, one page."""

from scripts.crossval.command import crossval
from scripts.crossval.scoring import score

__all__ = ["crossval", "score"]
