"""Comparison of networks on equal terms: runs, statistics, costs, and one page to read."""

from scripts.compare.command import compare

__all__ = ["compare"]
