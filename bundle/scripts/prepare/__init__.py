"""From raw downloads to one layout: NIfTI images and labels, ``dataset.json``, ``clinical.csv`` and a report."""

from __future__ import annotations

from scripts.prepare.hcc_tace import prepare_hcc_tace
from scripts.prepare.phantom import write_phantom_cohort

__all__ = ["prepare_hcc_tace", "write_phantom_cohort"]
