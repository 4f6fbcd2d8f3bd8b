"""Reception: instances go to the spool at once, and their catalog rows follow in batches.

What `take` has returned is safe: it is synced in the spool. Its row follows within a fraction of a second, and after a
kill or a long outage of the catalog `recover` finds what has none.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, Self

from sqlalchemy.exc import SQLAlchemyError

from models.errors import HeaderError, NocturneError, StoreBusyError
from models.pseudonyms import Pseudonymizer
from tasks.receive.indexing import Arrived, Index, News, Refused, Told
from tasks.stores.catalog import Catalog
from tasks.stores.spool import STALE_SECONDS, Spool, Stored
from tasks.stores.tables import CursorRow, now

BATCH_SECONDS: Final = 0.1
PENDING_LIMIT: Final = 20_000
"""More than that is not kept in memory while the catalog is away: the spool is searched for it afterwards."""
CLOSE_SECONDS: Final = 20.0
CURSOR: Final = "spool"
_BATCH, _SLACK_SECONDS = 500, 2.0
_FIRST_PAUSE, _LONGEST_PAUSE, _REMIND_SECONDS = 0.2, 10.0, 60.0

log = logging.getLogger(__name__)


class Reception:
    """One way in, named `source`. Safe to share between threads; one thread of its own writes the rows."""

    def __init__(self, catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer, *, source: str) -> None:
        self.spool = spool
        self._pseudonymizer = pseudonymizer
        self._source = source
        self._catalog = catalog
        self._index = Index(catalog, source)
        self._pending: deque[News] = deque()
        self._state = threading.Condition()
        self._taken = self._done = 0
        self._dropped = self._searched = 0  # arrivals that were not kept in memory, and how many of them were found
        self._hurry = self._closing = False
        self._complained = 0.0
        self._thread = threading.Thread(target=self._run, name=f"index-{source}", daemon=True)
        self._thread.start()

    def take(
        self, parts: Iterable[bytes | memoryview], *, sop_class: str, sop_instance: str, transfer_syntax: str
    ) -> Stored:
        """Keep a data set that was sent. Raises as `Spool.write` does; what is refused is told in quarantine."""
        try:
            stored = self.spool.write(
                parts, sop_class=sop_class, sop_instance=sop_instance, transfer_syntax=transfer_syntax
            )
        except HeaderError as error:
            self._tell_refused(error)
            raise
        self._add(Arrived(stored, now()))
        return stored

    def take_file(self, path: Path) -> Stored:
        """Keep a copy of a file. Raises HeaderError where it is not DICOM or cannot be filed."""
        try:
            stored = self.spool.adopt(path)
        except HeaderError as error:
            self._tell_refused(error)
            raise
        self._add(Arrived(stored, now()))
        return stored

    def told_whole(self, study_uid: str) -> None:
        """The sender says that the study with this original UID is whole: what has come so far is."""
        self.told_whole_study(self._pseudonymizer.uid(study_uid))

    def told_whole_study(self, study: str) -> None:
        """The same, by the study's pseudonym."""
        self._add(Told(study, now()))

    def recover(self) -> int:
        """Give rows to instances that have none: their process was killed, or the catalog was away for long.

        Looks only into folders that changed since the last search. Returns how many rows were missing.
        """
        started = self.spool.clock()
        cursor = self._catalog.get(CursorRow, CURSOR)
        # Further back than the cursor, so that what a killed writer left is seen again when it is old enough to go.
        since = float(cursor.value) - 2 * STALE_SECONDS if cursor else 0.0
        missing = 0
        for folder in self.spool.folders_since(since):
            missing += self._recover_folder(folder)
        self.spool.sweep()
        # In the catalog, not in the spool: a catalog that was restored from its backup then looks further back.
        self._index.mark(CURSOR, repr(started - _SLACK_SECONDS))
        return missing

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until everything that was taken before has its row. Raises StoreBusyError after `timeout` seconds."""
        with self._state:
            wanted, dropped = self._taken, self._dropped
            self._hurry = True
            self._state.notify_all()
            if not self._state.wait_for(lambda: self._done >= wanted and self._searched >= dropped, timeout):
                raise StoreBusyError("the catalog does not take the rows of received instances", where=self._source)

    def close(self) -> None:
        """Write what is pending; what the catalog does not take in time is found by the next `recover`."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell_refused(self, error: HeaderError) -> None:
        if error.where:
            self._add(Refused(error.where, error.reason, error.what))

    def _add(self, news: News) -> None:
        with self._state:
            if isinstance(news, Arrived) and len(self._pending) >= PENDING_LIMIT:
                self._dropped += 1
                return
            self._pending.append(news)
            self._taken += 1
            if len(self._pending) == 1:
                self._state.notify_all()

    def _recover_folder(self, folder: Path) -> int:
        files = {path.stem: path for path in self.spool.instances_in(folder)}
        missing = sorted(files.keys() - self._index.known(list(files)))
        news: list[News] = []
        for name in missing:
            try:
                news.append(Arrived(self.spool.describe(files[name]), now()))
            except NocturneError as error:
                log.error("a spooled instance cannot be read again: %s", error.at(name))
        for start in range(0, len(news), _BATCH):
            self._index.write(news[start : start + _BATCH])
        return len(news)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while (found := self._next()) is not None:
            batch, dropped = found
            try:
                if dropped > self._searched:
                    self.recover()
                self._write(batch)
            except Exception as error:  # noqa: BLE001 whatever it was, the rows must come in the end
                self._complain(error)
                if not self._rest(pause):
                    return
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE
                self._finished(len(batch), dropped)

    def _next(self) -> tuple[list[News], int] | None:
        """What is pending, after a moment in which more may come; None once all is written and nothing will come."""
        with self._state:
            self._state.wait_for(lambda: self._pending or self._dropped > self._searched or self._closing)
            if self._closing and not self._pending:
                return None
            self._state.wait_for(lambda: self._closing or self._hurry, BATCH_SECONDS)
            return list(islice(self._pending, _BATCH)), self._dropped

    def _write(self, batch: list[News]) -> None:
        try:
            self._index.write(batch)
        except SQLAlchemyError:
            # Neither locked nor away: one of them is at fault, and the others must not wait for it.
            for news in batch:
                try:
                    self._index.write([news])
                except SQLAlchemyError as error:
                    log.error("the catalog refuses the row of an instance (%s)", type(error).__name__)

    def _finished(self, written: int, dropped: int) -> None:
        if self._complained:
            self._complained = 0.0
            log.warning("%s: the catalog takes rows again", self._source)
        with self._state:
            for _ in range(written):
                self._pending.popleft()
            self._done += written
            self._searched = dropped
            self._hurry = self._hurry and bool(self._pending)
            self._state.notify_all()

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt; False where there will be none."""
        with self._state:
            return not self._state.wait_for(lambda: self._closing, seconds)

    def _complain(self, error: Exception) -> None:
        if self._complained and monotonic() - self._complained < _REMIND_SECONDS:
            return
        self._complained = monotonic()
        # Foreign errors may quote what they were given; ours never name an identity.
        told = str(error) if isinstance(error, NocturneError) else type(error).__name__
        log.warning("%s: %d rows wait for the catalog: %s", self._source, len(self._pending), told)
