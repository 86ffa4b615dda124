"""Puts active learning together for the app: strategies that clients name, and the scores behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from scripts.acquisition import DEFAULT, STRATEGIES
from scripts.clinical_schema import suggestion

from monailabel_app.lib.activelearning.chooser import Chooser
from monailabel_app.lib.activelearning.leases import Leases
from monailabel_app.lib.scoring.background import Background
from monailabel_app.lib.scoring.task import Uncertainty


class ActiveLearning:
    """What `main.py` wires: strategies, scoring, and the background work.

    The scores are those of the app's first model.

    Args:
        app: the app, with `options`, its tasks and its datastore.

    Raises:
        ValueError: ``--conf strategy`` names none that there is.
    """

    def __init__(self, app: Any) -> None:
        self.first = app.options.strategy or DEFAULT
        if self.first not in STRATEGIES:
            raise ValueError(
                f"--conf strategy is {self.first!r}{suggestion(self.first, STRATEGIES)}; there are "
                f"{', '.join(STRATEGIES)}."
            )
        self._app = app
        task = next(iter(app._infers.values()))
        folder = app.options.output / "active_learning"
        self.background = Background(
            versions=task.versions,
            clinical=task.clinical if task.schema else None,
            datastore=app.datastore,
            folder=folder / task.versions.base.name,
            published=self._published,
        )
        self.chooser = Chooser(
            table=self.background.table,
            leases=Leases(folder / "leases.json"),
            rounds=lambda: len(task.versions.known()) - 1,
        )
        self._versions = task.versions
        self._scored: tuple[Any, ...] = ()  # images and served version when scoring was last started

    def strategies(self) -> dict[str, Strategy]:
        """The strategies by name, the one that clients should use first."""
        names = [self.first, *(name for name in STRATEGIES if name != self.first)]
        return {name: NextImage(name, self) for name in names}

    def scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods by name."""
        return {"uncertainty": Uncertainty(self.background)}

    def start(self) -> None:
        """Score in the background; to be called when the server starts and when another version is served."""
        self._scored = self._state(self._app.datastore().list_images())
        self.background.start()

    def next(self, strategy: str, images: list[str], unlabelled: list[str], client: str) -> dict[str, Any]:
        """Choose an image for a client; new images, and a version that another process made served, are scored."""
        if self._state(images) != self._scored:
            self.start()
        return self.chooser.next(strategy, images, unlabelled, client)

    def _state(self, images: list[str]) -> tuple[Any, ...]:
        return len(images), self._versions.stamp

    def _published(self) -> None:
        store = self._app.datastore()
        self.chooser.prepare(store.list_images(), store.get_labeled_images())


class NextImage(Strategy):
    """One strategy as MONAI Label lists it.

    Args:
        name: one of `scripts.acquisition.STRATEGIES`.
        active: what chooses.
    """

    def __init__(self, name: str, active: ActiveLearning) -> None:
        super().__init__((STRATEGIES[name].__doc__ or name).splitlines()[0])
        self._name, self._active = name, active

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Choose the next image.

        Args:
            request: ``client_id``, so that no other client is offered the same.
            datastore: the images.

        Returns:
            ``id``, with the scores that were known; empty when none is left.
        """
        images = datastore.list_images()
        client = str(request.get("client_id") or "")
        return self._active.next(self._name, images, datastore.get_unlabeled_images(), client)
