"""Scores every case by the served version in the background, and goes on where a stopped server left off."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from monailabel.interfaces.datastore import Datastore
from scripts.acquisition import CaseScores

from monailabel_app.lib.children import child_environment
from monailabel_app.lib.datastore.archive import ArchiveError
from monailabel_app.lib.models import Source
from monailabel_app.lib.scoring.table import Table
from monailabel_app.lib.scoring.worker import from_json
from monailabel_app.lib.versions import Versions

logger = logging.getLogger(__name__)
NOTHING = Table()
SAVE_EVERY = 20.0  # seconds between two writes of the file, and so what a kill may cost
AGAIN = 120.0  # seconds until an archive that was gone is asked again


class Background:
    """Keeps a table of scores for each version of one model, in ``<folder>/<version>-<digest>.npz``.

    The digest is of the weights and the clinical table, so that neither a restart nor a way back to an older version
    computes anything twice, and another table computes everything anew. One process at a time writes a version.

    Args:
        versions: the model's versions.
        clinical: the clinical table, or None.
        datastore: gives the images.
        folder: for the files.
        published: called, in the background, whenever `table` may have become another one.
    """

    def __init__(
        self,
        *,
        versions: Versions,
        clinical: Path | None,
        datastore: Callable[[], Datastore],
        folder: Path,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        self.versions, self._clinical, self._datastore = versions, clinical, datastore
        self._folder, self.published = folder, published
        self._tables: dict[str, Table] = {}  # by version; at most the served one and the one before
        self._served = versions.served  # when it was last looked at
        self._done: Path | None = None  # file of the version that has been gone through
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.failed: dict[str, str] = {}  # images that the served version could not score, and why
        self.error = ""  # why scoring as a whole stopped

    def table(self) -> tuple[str, Table]:
        """The version whose scores are used, and its scores.

        Until all images have been gone through for the served version, that is the one with most scores. Never waits,
        and reads no file.
        """
        tables, served = self._tables, self._served
        version = max(tables, key=lambda name: (len(tables[name]), name == served), default=served)
        return version, tables.get(version, NOTHING)

    def status(self) -> dict[str, Any]:
        """How far the served version is."""
        served = self.versions.served
        return {
            "version": served,
            "scored": len(self._tables.get(served, ())),
            "images": len(self._datastore().list_images()),
            "running": bool(self._thread and self._thread.is_alive()),
            "failed": dict(self.failed),
            "error": self.error,
        }

    def start(self) -> None:
        """Score what has not been scored, in a thread; called again while it runs, it looks again when it is done."""
        with self._starting:
            self._wanted.set()
            if self._thread is None or not self._thread.is_alive():
                self._stopped.clear()
                self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
                self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """Stop after the case at hand; what has been scored is kept."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> dict[str, Any]:
        """Score what has not been scored, and return when it is done."""
        self._wanted.set()
        self._stopped.clear()
        self._work()
        return self.status()

    def file(self, version: str) -> Path:
        """Where the scores of a version are kept."""
        weights = self.versions.source(version).weights
        digest = hashlib.sha256()
        for path in filter(None, (weights, self._clinical)):
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return self._folder / f"{version}-{digest.hexdigest()[:12]}.npz"

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._starting:  # start() finds either a thread that will look again, or none
                if not self._wanted.is_set():
                    self._thread = None
                    return
                self._wanted.clear()
            try:
                self.error = ""
                self._score_served()
            except ArchiveError as error:
                self.error = f"{error} Scoring goes on in {AGAIN:.0f} s."
                logger.warning(self.error)
                self._later()
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
                logger.exception("scoring stopped; it goes on with the next start")

    def _later(self) -> None:
        """Start again after a while, unless stopped by then."""

        def again() -> None:
            if not self._stopped.is_set():
                self.start()

        timer = threading.Timer(AGAIN, again)
        timer.daemon = True
        timer.start()

    def _score_served(self) -> None:
        version = self.versions.served
        if version not in self.versions.known():  # no weights yet
            return
        file = self.file(version)
        self._load(version, file)
        try:
            with FileLock(f"{file}.lock", timeout=0):
                self._score(version, file)
        except Timeout:
            logger.info("version %s is being scored by another process", version)

    def _load(self, served: str, file: Path) -> None:
        """Read the served version's scores and, until it has been gone through, those of the one before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tables = {served: self._tables.get(served) or Table.load(file)}
        others = [] if file == self._done else [name for name in self.versions.known() if name != served]
        for name in reversed(others):
            if any(self._folder.glob(f"{name}-*.npz")):
                tables[name] = self._tables.get(name) or Table.load(self.file(name))
                break
        self._tables, self._served, self.failed = tables, served, {}
        self.published()

    def _score(self, version: str, file: Path) -> None:
        store = self._datastore()
        table = Table.load(file)  # again, as another process may have gone on with it
        labelled = set(store.get_labeled_images())
        todo = [name for name in store.list_images() if name not in table]
        todo.sort(key=lambda name: name not in labelled)  # stable: labelled ones first, the others differ from them
        fresh: dict[str, CaseScores] = {}
        saved = time.monotonic()
        if todo:
            logger.info("version %s: scoring %d of %d images", version, len(todo), len(todo) + len(table))
        try:
            with closing(self._answers(version, store, todo)) as answers:
                for name, found in answers:
                    if isinstance(found, str):
                        logger.warning("%s cannot be scored: %s", name, found)
                        self.failed[name] = found
                        continue
                    fresh[name] = found
                    if time.monotonic() - saved > SAVE_EVERY:
                        table, fresh, saved = self._keep(version, file, table, fresh), {}, time.monotonic()
        finally:
            table = self._keep(version, file, table, fresh)
        if all(name in table or name in self.failed for name in todo):
            self._done, self._tables = file, {version: table}
            self.published()
        if self.versions.served != version:
            self._wanted.set()

    def _answers(self, version: str, store: Datastore, names: list[str]) -> Iterator[tuple[str, CaseScores | str]]:
        """Score cases one by one, or say why not; a process that ends at one is started anew for the next."""
        waiting = names[::-1]
        while waiting and self._goes_on(version):
            with _worker(self.versions.source(version), self._clinical) as (ask, answers):
                while waiting and self._goes_on(version):
                    name = waiting.pop()
                    try:
                        info = {key: value for key, value in store.get_image_info(name).items() if key == "PatientID"}
                        case = {"id": name, "path": store.get_image_uri(name), "info": info}
                    except Exception as error:  # no volume, or the archive does not give it: the next may be fine
                        if isinstance(error, ArchiveError):
                            store.refresh()  # raises where the archive as a whole is gone
                        yield name, f"{type(error).__name__}: {error}"
                        continue
                    found = _answer(ask, answers, case)
                    yield name, "the scoring process ended at it; its messages say why" if found is None else found
                    if found is None:
                        break

    def _goes_on(self, version: str) -> bool:
        return not self._stopped.is_set() and self.versions.served == version

    def _keep(self, version: str, file: Path, table: Table, fresh: dict[str, CaseScores]) -> Table:
        table = table.extended(fresh)
        if fresh:
            table.save(file)
        self._tables = self._tables | {version: table}
        self.published()
        return table


def _answer(ask: IO[str], answers: IO[str], case: dict[str, Any]) -> CaseScores | str | None:
    """What the scoring process says of a case: its scores, or an error; None where the process ended."""
    try:
        print(json.dumps(case), file=ask, flush=True)
        line = answers.readline()
    except BrokenPipeError:
        return None
    return from_json(line)[1] if line.endswith("\n") else None


@contextmanager
def _worker(source: Source, clinical: Path | None) -> Iterator[tuple[IO[str], IO[str]]]:
    """Start the scoring process; its input ends, and so does it, with the block or with this process."""
    environment = child_environment(OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "monailabel_app.lib.scoring.worker"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C at the terminal is for the server, which ends the process in its own way
    )
    try:
        plain = {key: str(value) for key, value in vars(source).items() if key in ("name", "weights", "statistics")}
        plain |= {"root": None if source.root is None else str(source.root)}
        plain |= {"inference": [str(path) for path in source.inference]}
        plain |= {"clinical": None if clinical is None else str(clinical)}
        print(json.dumps(plain), file=process.stdin, flush=True)
        if not process.stdout.readline():
            raise RuntimeError("The scoring process did not start; its messages say why.")
        yield process.stdin, process.stdout
    finally:
        with suppress(BrokenPipeError):  # it has ended, and a case waits for it
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
