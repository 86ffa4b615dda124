"""Scoring as MONAI Label lists it: clients can ask for it and see how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from monailabel_app.lib.scoring.background import Background


class Uncertainty(ScoringMethod):
    """Scores every image by the served version; what has been scored is not scored again.

    Args:
        background: does the work.
    """

    def __init__(self, background: Background) -> None:
        super().__init__("Entropy, MC dropout and mirrored images of every case, by the version that is served")
        self._background = background

    def info(self) -> dict[str, Any]:
        """What clients are told: how far it is."""
        return super().info() | self._background.status()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score what has not been scored, and return how far it is; MONAI Label calls this in a process of its own."""
        return self._background.run()
