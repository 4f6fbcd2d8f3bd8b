"""A watched folder: what something else writes there is copied, once it rests.

A name under which a file was taken is passed over without a further question; now and then all are asked whether they
were written anew. Nothing is followed: neither links, nor pipes, nor a folder that was put in another's place.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select

from models.errors import HeaderError, NocturneError, ServiceUnavailableError, SettingsError
from models.hashing import content_key
from models.hospital import WatchedFolder
from models.pseudonyms import Pseudonymizer
from tasks.receive.reception import Reception
from tasks.receive.streams import CHUNK, open_file
from tasks.stores.catalog import Catalog
from tasks.stores.tables import QuarantineRow, SeenRow, now

LOOK_AGAIN_SECONDS: Final = 60.0
"""So often are files that were taken asked whether they have changed."""
BATCH: Final = 200
MOST_AT_ONCE: Final = 2000
"""A look is over after so many files, so that whoever wants to stop need not wait for a whole archive."""
TEMPORARY: Final = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", "~")
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _State:
    """What changes when a file is written."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _State:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Found:
    """A file by its path below the watched folder."""

    path: str
    state: _State
    token: str


class _ChangedError(Exception):
    """A file that was written to, or went, while it was looked at."""


class FolderWatcher:
    """One folder and all below it."""

    def __init__(
        self, settings: WatchedFolder, reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer
    ) -> None:
        self._settings, self._reception, self._catalog = settings, reception, catalog
        self._pseudonymizer = pseudonymizer
        self._root = str(settings.path.expanduser().absolute())
        self._source = f"folder:{settings.name}"
        self._dealt: dict[str, _State] = {}
        self._resting: dict[str, tuple[_State, float]] = {}
        self._closed: set[str] = set()
        self._asked_all = time.monotonic()

    def look(self) -> int:
        """Take in what rests; returns how many instances. Raises ServiceUnavailableError where the folder is away."""
        taken = handled = 0
        for batch in self._batches():
            fresh = self._fresh(batch)
            taken += self._take_all(fresh)
            handled += len(fresh)
            if handled >= MOST_AT_ONCE:
                break
        return taken

    # -- finding ------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[list[_Found]]:
        """The files that have rested long enough, some at a time."""
        whole = self._whole()
        for start in range(0, len(whole), BATCH):
            yield [self._found(path, state) for path, state in whole[start : start + BATCH]]

    def _whole(self) -> list[tuple[str, _State]]:
        moment = time.monotonic()
        if ask_all := moment - self._asked_all >= LOOK_AGAIN_SECONDS:
            self._asked_all = moment
        dealt, resting, whole = {}, {}, []
        for path, entry in self._walk():
            before = self._dealt.get(path)
            if before is not None and not ask_all:
                dealt[path] = before
                continue
            try:
                state = _State.of(entry.stat(follow_symlinks=False))
            except OSError:
                continue  # gone since
            if before is not None and _content(before) == _content(state):
                dealt[path] = before
                continue
            known, since = self._resting.get(path, (state, moment))
            since = since if known == state else moment
            resting[path] = state, since
            if moment - since >= self._settings.stable_seconds:
                whole.append((path, state))
        self._dealt, self._resting = dealt, resting
        return whole

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every ordinary file whose name is not that of one in the making, by its path below the folder."""
        pending = [""]
        while pending:
            place = pending.pop()
            prefix = f"{place}/" if place else ""
            for entry in self._entries(place):
                name = entry.name
                if name[0] == "." or name.lower().endswith(TEMPORARY):
                    continue
                kind = _kind(entry)
                if kind == "file":
                    yield prefix + name, entry
                elif kind == "folder":
                    pending.append(prefix + name)

    def _entries(self, place: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(f"{self._root}/{place}") as entries:
                return list(entries)
        except OSError as error:
            if not place:
                raise self._away(error) from None
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and place not in self._closed:
                self._closed.add(place)
                told = os.strerror(error.errno or 0).lower()
                _log.warning("%s: a folder below it cannot be read: %s", self._settings.name, told)
            return []

    def _away(self, error: OSError) -> Exception:
        told = os.strerror(error.errno or 0).lower()  # the system's own words name the path
        if error.errno in (errno.EACCES, errno.EPERM):
            return SettingsError(
                "the watched folder may not be read", where=self._settings.name, hint="give Nocturne's user access"
            )
        return ServiceUnavailableError(
            f"the watched folder is away: {told}", where=self._settings.name, hint="is its share mounted?"
        )

    def _found(self, path: str, state: _State) -> _Found:
        # Neither its inode nor the time of its last chmod: a restored or moved share holds the same files.
        told = self._pseudonymizer.uid(f"{self._source}\0{path}\0{state.size}\0{state.mtime_ns}\0end")
        return _Found(path, state, content_key("seen", told))

    def _fresh(self, batch: Sequence[_Found]) -> list[_Found]:
        """Those that no earlier run has dealt with."""
        with self._catalog.reading() as session:
            tokens = [found.token for found in batch]
            seen = set(session.scalars(select(SeenRow.token).where(SeenRow.token.in_(tokens))))
        for found in batch:
            if found.token in seen:
                self._deal(found)
        return [found for found in batch if found.token not in seen]

    # -- taking -------------------------------------------------------------------------------------------------

    def _take_all(self, batch: Sequence[_Found]) -> int:
        """The files' rows are committed first; only then are files removed, or noted as seen."""
        taken: list[_Found] = []
        aside: list[_Found] = []
        for found in batch:
            try:
                (taken if self._take(found) else aside).append(found)
            except _ChangedError:
                self._resting.pop(found.path, None)  # it has to rest anew
        self._reception.flush()
        stuck = [found for found in taken if self._settings.remove and not self._remove(found)]
        remember = [*(stuck if self._settings.remove else taken), *aside]
        self._catalog.add(*(SeenRow(token=found.token, source=self._source) for found in remember))
        for found in (*taken, *aside):
            self._deal(found)
        if stuck:
            raise SettingsError(
                f"{len(stuck)} files were taken but cannot be removed",
                where=self._settings.name,
                hint="give Nocturne's user write access, or set remove = false",
            )
        return len(taken)

    def _deal(self, found: _Found) -> None:
        self._dealt[found.path] = found.state
        self._resting.pop(found.path, None)

    def _take(self, found: _Found) -> bool:
        """Whether it is in the spool now; False where it was set aside."""
        with self._opened(found) as descriptor:
            try:
                open_file(_read(descriptor, found.state)).into(self._reception)
            except HeaderError as error:
                self._set_aside(found, error)
                return False
        self._reopened(found)
        return True

    @contextmanager
    def _opened(self, found: _Found) -> Iterator[int]:
        """The file that was looked at, and no other. Raises _ChangedError."""
        with self._parent(found.path) as (parent, name):
            try:
                descriptor = os.open(name, _FILE_FLAGS, dir_fd=parent)
            except OSError as error:
                self._cannot_read(found, error)
                raise _ChangedError from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or _State.of(status) != found.state:
                raise _ChangedError
            yield descriptor
        except NocturneError:
            raise  # some are OSErrors too, but none of the file's
        except OSError as error:
            # Of this file alone, as far as we know: where the folder is away, the next one tells.
            self._cannot_read(found, error)
            raise _ChangedError from None
        finally:
            os.close(descriptor)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The folder that holds it, reached without following a link below the watched one."""
        *folders, name = path.split("/")
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._away(error) from None
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        except (FileNotFoundError, NotADirectoryError):
            raise _ChangedError from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _ChangedError from None
            raise
        finally:
            os.close(descriptor)

    def _remove(self, found: _Found) -> bool:
        """Delete it, unless it has changed since; False where the system does not let us."""
        try:
            with self._parent(found.path) as (parent, name):
                if _State.of(os.stat(name, dir_fd=parent, follow_symlinks=False)) == found.state:
                    os.unlink(name, dir_fd=parent)
        except _ChangedError:
            return True  # gone, or no longer the one that was taken
        except NocturneError:
            raise
        except OSError:
            return False
        return True

    # -- what cannot be taken -----------------------------------------------------------------------------------

    def _set_aside(self, found: _Found, error: HeaderError) -> None:
        if error.where is not None or error.reason == "dicomdir":
            return  # the spool's quarantine holds it, or it only lists others
        self._quarantine(found, error.reason, error.what, "remove it, or unpack it where it is an archive")

    def _cannot_read(self, found: _Found, error: OSError) -> None:
        """Told once; tried again whenever it has rested anew."""
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ESTALE) and found.path not in self._closed:
            self._closed.add(found.path)
            told = os.strerror(error.errno or 0).lower()
            self._quarantine(found, "unreadable", f"a file cannot be read ({told})", "give Nocturne's user read access")

    def _reopened(self, found: _Found) -> None:
        if found.path in self._closed:
            self._closed.discard(found.path)
            self._catalog.change(QuarantineRow, QuarantineRow.subject == found.token, resolved_at=now())

    def _quarantine(self, found: _Found, reason: str, what: str, hint: str) -> None:
        self._catalog.add(
            QuarantineRow(
                entry=content_key(found.token, reason),
                stage="receive",
                subject=found.token,
                reason=reason,
                what=f"{what}, in the watched folder {self._settings.name}",
                hint=hint,
                instances=1,
            )
        )


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder"] | None:
    try:
        if entry.is_file(follow_symlinks=False):
            return "file"
        return "folder" if entry.is_dir(follow_symlinks=False) else None
    except OSError:  # some shares only say so when they are asked
        return None


def _content(state: _State) -> tuple[int, int]:
    return state.size, state.mtime_ns


def _read(descriptor: int, state: _State) -> Iterator[bytes]:
    """All of it. Raises _ChangedError once it turns out to be written to: the spool forgets it then."""
    left = state.size
    while chunk := os.read(descriptor, CHUNK):
        left -= len(chunk)
        if left < 0:
            raise _ChangedError
        yield chunk
    if _State.of(os.fstat(descriptor)) != state:
        raise _ChangedError
