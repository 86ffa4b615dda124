"""Which case to annotate next: scores from a network's probabilities, diversity, and strategies that choose."""

from .distances import Distances
from .pool import SCORES, CaseScores, Pool
from .scorer import CaseScorer
from .strategies import DEFAULT, STRATEGIES, select
from .uncertainty import class_means, entropy_map, foreground_mean, mutual_information

__all__ = [
    "DEFAULT",
    "SCORES",
    "STRATEGIES",
    "CaseScorer",
    "CaseScores",
    "Distances",
    "Pool",
    "class_means",
    "entropy_map",
    "foreground_mean",
    "mutual_information",
    "select",
]
