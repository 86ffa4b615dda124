"""Who is labelling what: an image that was offered to a client is its own for a while."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.files import replacing

logger = logging.getLogger(__name__)
SECONDS = 2 * 3600.0


class Leases:
    """Images that were offered and are not labelled yet, by client; they survive a restart.

    A client is a name and an address; clients that have both in common count as one.

    Args:
        file: where they are kept.
        seconds: how long an image stays with its client.
        clock: gives the time in seconds since 1970.
    """

    def __init__(self, file: Path, *, seconds: float = SECONDS, clock: Callable[[], float] = time.time) -> None:
        self._file, self._seconds, self._clock = file, seconds, clock
        self._held: dict[str, tuple[str, float]] = self._read()

    def held(self) -> dict[str, str]:
        """Image to client, the oldest first; what has expired is gone."""
        now = self._clock()
        held = sorted(self._held.items(), key=lambda item: item[1][1])
        return {image: client for image, (client, since) in held if now - since < self._seconds}

    def take(self, image: str, client: str) -> None:
        """Give an image to a client from now on."""
        live = self.held()
        kept = {name: entry for name, entry in self._held.items() if name in live}
        self._held = kept | {image: (client, self._clock())}
        self._write()

    def drop(self, images: Iterable[str]) -> None:
        """Forget images, because they are labelled."""
        done = self._held.keys() & set(images)
        if done:
            self._held = {name: entry for name, entry in self._held.items() if name not in done}
            self._write()

    def _read(self) -> dict[str, tuple[str, float]]:
        try:
            content = json.loads(self._file.read_text()) if self._file.is_file() else {}
            return {str(image): (str(client), float(since)) for image, (client, since) in content.items()}
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be read (%s); nobody is labelling anything", self._file, error)
            return {}

    def _write(self) -> None:
        with replacing(self._file) as part:
            part.write_text(json.dumps(self._held))
