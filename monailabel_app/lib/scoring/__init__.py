"""Scores of every case by every version of a network, computed in the background."""
