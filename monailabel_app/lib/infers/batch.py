"""Masks of all images, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

LIMIT = "max_batch_size"


class BatchInfer(BatchInferTask):
    """MONAI Label's own deals images to GPUs, and fails where there is none; here the bundle chooses the device."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Segment and save.

        Args:
            request: ``model``; ``images``: all, labeled or unlabeled; ``label_tag``; ``max_batch_size``, 0: no limit.
            datastore: the studies.
            infer: the app's inference.

        Returns:
            What `infer` answered, by image.
        """
        one = {"multi_gpu": False, "gpus": "all", "device": "cpu", "max_workers": 1}  # the network decides itself
        return super().__call__({**request, **one, LIMIT: int(request.get(LIMIT) or 0)}, datastore, infer)
