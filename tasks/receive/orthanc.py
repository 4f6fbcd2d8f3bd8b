"""Orthanc's changes feed: what is new there is fetched, and what it holds to be stable is told to be whole.

How far the feed was read is kept only once everything up to there is in the spool and in the catalog, so that a kill
at any moment reads some of it again and misses nothing. Orthanc's own identifiers are hashes of the patients' (without
a key: they can be guessed), so that they are no more written down than those.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Final, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import HeaderError, NotFoundError, ServiceUnavailableError, SettingsError
from models.hashing import content_key
from models.hospital import OrthancFeed
from models.pseudonyms import Pseudonymizer
from tasks.receive.answers import AS_IT_IS, refusal, unreachable
from tasks.receive.reception import Reception
from tasks.receive.results import RESULT_CLASSES
from tasks.receive.streams import CHUNK, Incoming, open_file
from tasks.stores.catalog import Catalog
from tasks.stores.results import delivered
from tasks.stores.tables import CursorRow, QuarantineRow

FETCHERS: Final = 4
PAGE: Final = 100
MOST_PAGES: Final = 10
"""A look is over after so many, so that whoever wants to stop need not wait for all of a large archive."""
PATIENCE: Final = 5
"""So often is an instance asked for that Orthanc itself cannot read."""
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_NEW, _STABLE = "NewInstance", "StableStudy"

Answer = TypeVar("Answer", bound=BaseModel)

_log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every address that it asks


class _Change(BaseModel):
    model_config = ConfigDict(frozen=True)
    seq: int = Field(alias="Seq")
    kind: str = Field(alias="ChangeType")
    resource: str = Field(alias="ID", pattern=r"^[0-9a-f-]{1,64}$")
    date: str = Field("", alias="Date")


class _Study(BaseModel):
    model_config = ConfigDict(frozen=True)
    tags: Mapping[str, str] = Field(alias="MainDicomTags")


class _Page(BaseModel):
    model_config = ConfigDict(frozen=True)
    changes: tuple[_Change, ...] = Field(alias="Changes")
    done: bool = Field(alias="Done")
    last: int = Field(alias="Last")


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The last change that was dealt with. Its date tells a database from another that counts from 1 again."""

    seq: int
    date: str = ""

    def __str__(self) -> str:
        return f"{self.seq} {self.date}".strip()

    @classmethod
    def read(cls, text: str) -> _Cursor:
        seq, _, date = text.partition(" ")
        return cls(int(seq), date)


class OrthancWatcher:
    """One Orthanc. With a `pseudonymizer` our own results are told apart before they are fetched back.

    Without one they are fetched too: completion passes over them then.
    """

    def __init__(
        self,
        settings: OrthancFeed,
        reception: Reception,
        catalog: Catalog,
        pseudonymizer: Pseudonymizer | None = None,
    ) -> None:
        self._settings, self._reception, self._catalog = settings, reception, catalog
        self._pseudonymizer = pseudonymizer
        self._cursor_name = f"orthanc:{settings.name}"
        self._unreadable: Counter[int] = Counter()
        self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix=f"orthanc-{settings.name}")
        with self._asking():
            self._client = httpx.Client(
                base_url=f"{settings.url.rstrip('/')}/",
                auth=(settings.user, settings.password.get_secret_value()) if settings.user else None,
                timeout=_TIMEOUT,
                headers=AS_IT_IS,
            )

    def look(self) -> int:
        """Take in what is new; returns how many instances. Raises ServiceUnavailableError or SettingsError."""
        cursor = self._cursor()
        taken = 0
        for _ in range(MOST_PAGES):
            page = self._page(cursor.seq)
            if self._is_another(cursor, page):
                _log.warning("%s: its database is a new one; reading it from the start", self._settings.name)
                cursor, page = _Cursor(0), self._page(0)
            changes = [change for change in page.changes if change.seq > cursor.seq]
            if not changes:
                break
            taken += self._follow(changes)
            cursor = self._keep(_Cursor(changes[-1].seq, changes[-1].date))
            if page.done:
                break
        return taken

    def close(self) -> None:
        """Give the connections back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    # -- the feed -----------------------------------------------------------------------------------------------

    def _cursor(self) -> _Cursor:
        if row := self._catalog.get(CursorRow, self._cursor_name):
            return _Cursor.read(row.value)
        if self._settings.from_start:
            return _Cursor(0)
        return self._keep(self._end())

    def _end(self) -> _Cursor:
        page = self._changes(last="")
        return _Cursor(page.changes[-1].seq, page.changes[-1].date) if page.changes else _Cursor(page.last)

    def _keep(self, cursor: _Cursor) -> _Cursor:
        self._reception.flush()
        with self._catalog.transaction() as session:
            session.merge(CursorRow(name=self._cursor_name, value=str(cursor)))
        return cursor

    def _page(self, since: int) -> _Page:
        # The last change that we know is asked for again: it shows whether this is still the same database.
        return self._changes(since=max(0, since - 1), limit=PAGE)

    def _is_another(self, cursor: _Cursor, page: _Page) -> bool:
        """Whether Orthanc has lost the database in which `cursor` was set."""
        if page.changes and page.changes[0].seq == cursor.seq:
            return bool(cursor.date) and page.changes[0].date != cursor.date
        if page.changes or page.last >= cursor.seq:
            return False
        # Changes go with what is deleted, the last ones too: what is left is older than the cursor then.
        end = self._end()
        return end.seq < cursor.seq and not ("" < end.date <= cursor.date)

    def _changes(self, **query: int | str) -> _Page:
        with self._asking():
            response = self._client.get("changes", params=query)
        if response.is_error:
            raise self._refusal(response)
        return self._read(_Page, response)

    # -- what it tells ------------------------------------------------------------------------------------------

    def _follow(self, changes: Sequence[_Change]) -> int:
        """In Orthanc's order: a study is told to be whole after its instances, and before those that came late."""
        taken = 0
        told = [change for change in changes if change.kind in (_NEW, _STABLE)]
        for kind, run in groupby(told, key=lambda change: change.kind):
            if kind == _NEW:
                taken += self._fetch_all(list(run))
            else:
                for change in run:
                    self._tell_whole(change)
        return taken

    def _fetch_all(self, changes: Sequence[_Change]) -> int:
        futures = [self._pool.submit(self._fetch, change) for change in changes]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()  # nothing to cancel, unless one failed
        wait(futures)
        failed = next((e for f in futures if not f.cancelled() and (e := f.exception())), None)
        if failed:
            raise failed
        return sum(future.result() for future in futures)

    def _fetch(self, change: _Change) -> int:
        with self._asking(), self._client.stream("GET", f"instances/{change.resource}/file") as response:
            if response.status_code == httpx.codes.NOT_FOUND:
                _log.warning("%s: change %d: deleted before it was fetched", self._settings.name, change.seq)
                return 0
            if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                return self._cannot_read(change)
            if response.is_error:
                raise self._refusal(response)
            try:
                incoming = open_file(response.iter_bytes(CHUNK))
                if self._is_ours(incoming):
                    return 0
                incoming.into(self._reception)
            except HeaderError as error:
                _log.warning("%s: change %d: set aside: %s", self._settings.name, change.seq, error.what)
                if error.where is None:  # not yet in quarantine
                    self._set_aside(change, error)
                return 0
        self._unreadable.pop(change.seq, None)
        return 1

    def _is_ours(self, incoming: Incoming) -> bool:
        known, pseudonymizer = incoming.known, self._pseudonymizer
        if known is None or pseudonymizer is None or known.sop_class not in RESULT_CLASSES:
            return False
        return pseudonymizer.uid(known.sop) in delivered(self._catalog, pseudonymizer.uid(known.study))

    def _cannot_read(self, change: _Change) -> int:
        """An internal error, for this instance: it may pass, but must not hold up all others for ever."""
        self._unreadable[change.seq] += 1
        if self._unreadable[change.seq] < PATIENCE:
            raise ServiceUnavailableError(
                "has an instance that it cannot read", where=self._settings.name, hint="see its log"
            )
        error = HeaderError("Orthanc cannot read its own copy", reason="unreadable-at-source")
        _log.error("%s: change %d: set aside: %s", self._settings.name, change.seq, error.what)
        self._set_aside(change, error)
        return 0

    def _set_aside(self, change: _Change, error: HeaderError) -> None:
        subject = content_key("orthanc change", self._settings.name, change.seq, change.date)
        self._catalog.add(
            QuarantineRow(
                entry=content_key(subject, error.reason),
                stage="receive",
                subject=subject,
                reason=error.reason,
                what=error.what,
                hint=f"change {change.seq} of {self._settings.name}",
                instances=1,
            )
        )

    def _tell_whole(self, change: _Change) -> None:
        with self._asking():
            response = self._client.get(f"studies/{change.resource}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return  # deleted: its quiet time decides
        if response.is_error:
            raise self._refusal(response)
        if uid := self._read(_Study, response).tags.get("StudyInstanceUID"):
            self._reception.told_whole(uid)

    def _read(self, kind: type[Answer], response: httpx.Response) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            raise SettingsError(
                "does not answer as Orthanc does", where=self._settings.name, hint="check its url in the settings"
            ) from None

    def _refusal(self, response: httpx.Response) -> Exception:
        error = refusal(response.status_code, self._settings.name)
        if isinstance(error, NotFoundError):  # only ever the interface itself
            return SettingsError(error.what, where=error.where, hint=error.hint)
        return error

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise SettingsError(
                "has no usable URL", where=self._settings.name, hint="give http://host:port in the settings"
            ) from None
        except httpx.RequestError as error:
            raise unreachable(error, self._settings.name) from None
