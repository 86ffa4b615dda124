"""Chooses the next image from what is in memory: no network, no file of an image, no request to another server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scripts.acquisition import Pool, select

from monailabel_app.lib.activelearning.leases import Leases
from monailabel_app.lib.scoring.table import Table

Known = tuple[Table, tuple[str, ...], Pool, str]  # scores, images, both put together, version of the scores
ROUNDS = 8  # versions after which the noise of ClaSP PE has faded


class Chooser:
    """Offers each client the image from which the network would learn most, and no image to two clients.

    Args:
        table: gives the version whose scores are used, and the scores.
        leases: who is labelling what.
        rounds: gives how many versions were trained here.
        seed: of strategies that draw; None: another one each time.
    """

    def __init__(
        self,
        *,
        table: Callable[[], tuple[str, Table]],
        leases: Leases,
        rounds: Callable[[], int] = lambda: 0,
        seed: int | None = None,
    ) -> None:
        self._table, self._leases, self._rounds = table, leases, rounds
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._pool: Known | None = None
        self._picked: dict[tuple[str, str], int] = {}  # by strategy and version

    def prepare(self, images: Sequence[str], labelled: Sequence[str]) -> None:
        """Do ahead of the next request what its answer would have to wait for; requests go on meanwhile."""
        known = self._current(images)
        known[2].distances.nearest(np.flatnonzero(_among(known[1], labelled)).tolist())
        self._pool = known

    def next(self, strategy: str, images: Sequence[str], unlabelled: Sequence[str], client: str) -> dict[str, Any]:
        """Choose an image and give it to the client.

        An image that the client was offered before and did not label comes again only when no other is left.

        Args:
            strategy: one of `scripts.acquisition.STRATEGIES`.
            images: all images.
            unlabelled: those without a label.
            client: the client's id; empty for one that sends none.

        Returns:
            ``id`` and why it was chosen; empty when every image is labelled or with another client.
        """
        with self._lock:
            waiting = set(unlabelled)
            self._leases.drop(name for name in self._leases.held() if name not in waiting)
            held = self._leases.held()
            self._pool = self._current(images)
            table, names, pool, version = self._pool
            open_ = _among(names, unlabelled)
            taken = _among(names, held)
            if not (open_ & ~taken).any():
                own = next((name for name, owner in held.items() if owner == client), None)
                return {} if own is None else self._given(own, client, {"note": "No other image is left."})
            position = self._picked.get((strategy, version), 0)
            chosen = select(
                strategy,
                replace(pool, available=open_ & ~taken, labelled=~open_, taken=taken),
                rng=self._rng,
                position=position,
                progress=self._rounds() / ROUNDS,
            )[0]
            self._picked[strategy, version] = position + 1
            told = {"scores": table.scores_of(names[chosen]), "scores_version": version, "scored_images": len(table)}
            return self._given(names[chosen], client, told)

    def _given(self, image: str, client: str, told: dict[str, Any]) -> dict[str, Any]:
        self._leases.take(image, client)
        return {"id": image, **told}

    def _current(self, images: Sequence[str]) -> Known:
        """The pool of these images; the kept one, whose distances are known, unless images or scores changed."""
        version, table = self._table()
        names = tuple(images)
        known = self._pool
        if known is not None and known[0] is table and known[1] == names:
            return known
        return table, names, table.pool(names), version


def _among(names: Sequence[str], some: Iterable[str]) -> np.ndarray:
    """Which of the names are among some, ``(N,)`` bool."""
    wanted = set(some)
    return np.fromiter((name in wanted for name in names), bool, len(names))
