"""Which case to annotate next: scores from a network's probabilities, diversity, and strategies that choose."""

from .distances import Distances
from .pool import SCORES, CaseScores, Pool
from .scorer import CaseScorer
from .strategies import DEFAULT, STRATEGIES, select

__all__ = [
    "DEFAULT",
    "SCORES",
    "STRATEGIES",
    "CaseScorer",
    "CaseScores",
    "Distances",
    "Pool",
    "select",
]
