"""A place in an object store that fsspec reaches: S3 and what speaks its protocol, and others.

    <root>/<ab>/<key>/<upload>/…    the files, as one writer sent them: side by side, under a name of its own
    <root>/<ab>/<key>.json          the marker: which upload counts, and each of its files' size and CRC-32C

The marker is written last and only if there is none, so a reader sees all of one writer's files or nothing; it costs
one request to see, and one more per file, side by side, to have. What is fetched is compared with its checksums and
kept on this machine while its disk has room.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import google_crc32c

from models.errors import IntegrityError, NocturneError, NotFoundError, ServiceUnavailableError, SettingsError
from tasks.stores.places import STAGING, Place, age_of, sound_key, sync_tree

_CACHE: Final = ".cache"
_SUFFIX: Final = ".json"
_ROOM: Final = 0.1
_ENOUGH: Final = 32 << 30
"""What stays free of copies: a tenth of the disk, or so many bytes of a large one."""
_RESTING_SECONDS: Final = 3600.0
"""A copy that was asked for so lately may be being read: it stays, however full the disk."""
_FETCHING = tuple(threading.Lock() for _ in range(64))
_BUSY: Final = {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.EPIPE, errno.ENETUNREACH}
_NO_CONDITION: Final = {errno.ENOSYS, errno.EOPNOTSUPP}
_CLIENTS: Final = ("botocore", "aiobotocore", "aiohttp")
_AWAY: Final = {"HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead"}


@dataclass(frozen=True, slots=True)
class _Marker:
    """The upload that counts, and its files: size in bytes and CRC-32C."""

    upload: str
    files: Mapping[str, Sequence[int]]


class RemotePlace(Place):
    """Folders by content key in an object store. Credentials come from the environment, never from the URL."""

    def __init__(self, url: str, scratch: Path) -> None:
        import fsspec

        self.url = _plain(url).rstrip("/")
        self._scratch = scratch / uuid.uuid5(uuid.NAMESPACE_URL, self.url).hex
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._fs: Any
        try:
            # No listing is remembered: another machine may publish at any time.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            hint = "pip install 'nocturne[s3]'" if self.url.startswith("s3:") else None
            raise SettingsError(f"no such kind of object store: {error}", where="place", hint=hint) from None

    def _path(self, key: str) -> str:
        return f"{self._root}/{sound_key(key)[:2]}/{key}"

    def _cached(self, key: str) -> Path:
        return self._scratch / _CACHE / sound_key(key)

    # -- writing --------------------------------------------------------------------------------------------------

    def publish(self, staged: Path, key: str) -> None:
        if self.exists(key):
            return
        names = sorted(p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file())
        marker = _Marker(uuid.uuid4().hex, {name: _measured(staged / name) for name in names})
        with self._reaching():
            target = f"{self._path(key)}/{marker.upload}"
            self._fs.put([str(staged / name) for name in names], [f"{target}/{name}" for name in names])
            first = self._mark(key, marker)
            if not first:
                self._remove_tree(target)
        if first:
            with suppress(OSError):  # whoever wrote it is likely to read it next, and can do without
                self._keep(staged, key)

    def _mark(self, key: str, marker: _Marker) -> bool:
        """Write the marker, if there is none; whether this one counts."""
        path, content = self._path(key) + _SUFFIX, json.dumps(asdict(marker)).encode()
        try:
            self._fs.pipe_file(path, content, mode="create")
            return True
        except Exception as error:
            # That there is one is told in many ways; and where only the answer was lost, it may be this very one.
            found = self._marker(key)
            if found:
                return found.upload == marker.upload
            if not _unconditional(error):
                raise
        self._fs.pipe_file(path, content)
        return True

    def remove(self, key: str) -> None:
        path = self._path(key)
        shutil.rmtree(self._cached(key), ignore_errors=True)
        with self._reaching():
            if self._marker(key):
                self._fs.rm_file(path + _SUFFIX)  # first: half a thing must not be seen
            self._remove_tree(path)

    def forget(self, key: str) -> bool:
        cached = self._cached(key)
        there = cached.is_dir()
        shutil.rmtree(cached, ignore_errors=True)
        return there

    def _remove_tree(self, path: str) -> None:
        if found := self._fs.find(path):
            self._fs.rm(list(found))

    # -- reading --------------------------------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        with self._reaching():
            return self._marker(key) is not None

    def _marker(self, key: str) -> _Marker | None:
        try:
            # A range, if of everything: S3's client would otherwise ask for the size first.
            told = json.loads(self._fs.cat_file(self._path(key) + _SUFFIX, start=0))
            return _Marker(str(told["upload"]), {str(name): [int(n) for n in of] for name, of in told["files"].items()})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError("its marker is damaged", where=key) from error

    def _published(self, key: str) -> _Marker:
        with self._reaching():
            marker = self._marker(key)
        if marker is None:
            raise NotFoundError("is not in the store", where=key, hint="`nocturne doctor` compares catalog and stores")
        return marker

    def local(self, key: str) -> Path:
        cached = self._cached(key)
        if not _asked_for(cached):
            # Threads that want the same key fetch it once.
            with _FETCHING[uuid.uuid5(uuid.NAMESPACE_OID, key).int % len(_FETCHING)]:
                if not _asked_for(cached):
                    self._fetch(key)
        return cached

    def _fetch(self, key: str) -> None:
        marker = self._published(key)
        self._make_room()
        with self.staging() as folder:
            wanted = list(marker.files)
            for name in wanted:
                _inside(folder, name, key).parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):  # a file may have been damaged on its way
                self._get(key, marker.upload, wanted, folder)
                wanted = [name for name in wanted if _measured(folder / name) != list(marker.files[name])]
                if not wanted:
                    break
            else:
                raise IntegrityError(f"{len(wanted)} of its files in the object store are damaged", where=key)
            self._keep(folder, key)

    def _get(self, key: str, upload: str, names: list[str], folder: Path) -> None:
        source = f"{self._path(key)}/{upload}"
        with self._reaching():
            try:
                self._fs.get([f"{source}/{name}" for name in names], [str(folder / name) for name in names])
            except FileNotFoundError:
                now = self._marker(key)
                if now is None or now.upload != upload:  # it was removed meanwhile
                    raise ServiceUnavailableError("was removed or replaced while it was read", where=key) from None
                raise IntegrityError("some of its files are missing in the object store", where=key) from None

    def location(self, key: str) -> str:
        return f"{self.url}/{sound_key(key)[:2]}/{key}/{self._published(key).upload}"

    # -- the copies on this machine -------------------------------------------------------------------------------

    def _keep(self, folder: Path, key: str) -> None:
        cached = self._cached(key)
        cached.parent.mkdir(exist_ok=True)
        sync_tree(folder)  # a copy cut short by a power cut would be taken for damage in the store
        try:
            folder.rename(cached)
        except OSError:  # another was faster
            if not cached.is_dir():
                raise

    def _make_room(self) -> None:
        """Drop the copies that were not asked for the longest while the disk is almost full."""
        if not self._crowded():
            return
        copies = [(age_of(copy), copy) for copy in (self._scratch / _CACHE).glob("*")]
        for age, copy in sorted(copies, reverse=True):
            if age < _RESTING_SECONDS or not self._crowded():
                return
            self._drop(copy)

    def _crowded(self) -> bool:
        disk = shutil.disk_usage(self._scratch)
        return disk.free < min(_ROOM * disk.total, _ENOUGH)

    def _drop(self, copy: Path) -> None:
        doomed = self._scratch / STAGING / uuid.uuid4().hex
        doomed.parent.mkdir(exist_ok=True)
        try:
            copy.rename(doomed)  # first: half a copy must not be seen
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    # -- all of them ----------------------------------------------------------------------------------------------

    def keys(self) -> Iterator[str]:
        for fan in self._fans():
            with self._reaching():
                try:
                    found = self._fs.ls(fan, detail=False)
                except FileNotFoundError:  # the last of them was removed just now
                    continue
            yield from sorted(_name(path).removesuffix(_SUFFIX) for path in found if path.endswith(_SUFFIX))

    def _fans(self) -> list[str]:
        with self._reaching():
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/") for entry in found if entry["type"] == "directory")

    def _sweep(self, known: Container[str], older_than_seconds: float) -> Iterator[str]:
        """Also the uploads that broke off: those that no marker names."""
        for fan in self._fans():
            with self._reaching():
                ages = {path: _age(info) for path, info in self._fs.find(fan, detail=True).items()}
            marked = {_name(path).removesuffix(_SUFFIX) for path in ages if _is_marker(path, fan)}
            uploads: dict[tuple[str, str], float] = {}
            for path, age in ages.items():
                if not _is_marker(path, fan):
                    key, upload = path[len(fan) :].strip("/").split("/")[:2]
                    uploads[key, upload] = min(age, uploads.get((key, upload), age))
            for key in sorted(marked):
                if key not in known and ages[f"{fan}/{key}{_SUFFIX}"] > older_than_seconds:
                    self.remove(key)
                    yield key
            yield from self._sweep_uploads(fan, marked, uploads, older_than_seconds)

    def _sweep_uploads(
        self, fan: str, marked: set[str], uploads: Mapping[tuple[str, str], float], older_than_seconds: float
    ) -> Iterator[str]:
        several = {key for key, _ in uploads if sum(one == key for one, _ in uploads) > 1}
        for (key, upload), age in uploads.items():
            if age <= older_than_seconds or (key in marked and key not in several):
                continue
            with self._reaching():
                marker = self._marker(key)  # as it is by now
                if marker is None or marker.upload != upload:
                    self._remove_tree(f"{fan}/{key}/{upload}")
                    yield f"{key}/{upload}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """What the store's client raises, as an error of ours."""
        try:
            yield
        except NocturneError:
            raise
        except Exception as error:
            told = _told(error, self.url)
            if told is None:
                raise
            raise told from error


def _told(error: Exception, url: str) -> NocturneError | None:
    """What it means, or None for what has nothing to do with the store."""
    names = {kind.__name__ for kind in type(error).__mro__}
    foreign = type(error).__module__.partition(".")[0] in _CLIENTS
    if isinstance(error, ConnectionError | TimeoutError) or (foreign and names & _AWAY):
        return ServiceUnavailableError("the object store does not answer", where=url)
    if isinstance(error, PermissionError) or (foreign and any("Credential" in name for name in names)):
        hint = "give credentials that may read, write and list there in the environment (AWS_ACCESS_KEY_ID, …)"
        return SettingsError("the object store refuses access", where=url, hint=hint)
    if isinstance(error, FileNotFoundError):
        return SettingsError("the object store has no such bucket", where=url, hint="make the bucket, or name another")
    if isinstance(error, OSError) and error.errno in _BUSY:
        return ServiceUnavailableError("the object store is too busy, or failed", where=url)
    if foreign:
        return SettingsError(f"the object store cannot be used ({type(error).__name__})", where=url)
    return None


def _unconditional(error: Exception) -> bool:
    """Whether the store cannot write on a condition: two writers at one moment are then told apart by the marker."""
    return isinstance(error, NotImplementedError | TypeError) or getattr(error, "errno", None) in _NO_CONDITION


def _plain(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise SettingsError(
            "the URL of an object store carries no credentials or options",  # and is not repeated here
            where="place",
            hint="give them in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)",
        )
    return url


def _measured(path: Path) -> list[int]:
    """Size in bytes, and CRC-32C."""
    total, size = google_crc32c.Checksum(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
            size += len(block)
    return [size, int.from_bytes(total.digest(), "big")]


def _inside(folder: Path, name: str, key: str) -> Path:
    """Where the file goes. Raises IntegrityError for a marker that would write elsewhere."""
    path = folder / name
    if not name or os.path.isabs(name) or ".." in Path(name).parts:  # noqa: PTH117 - of a string, not of a path
        raise IntegrityError("its marker names a file outside it", where=key)
    return path


def _asked_for(copy: Path) -> bool:
    """Whether the copy is there; notes that it was asked for."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def _is_marker(path: str, fan: str) -> bool:
    return path.endswith(_SUFFIX) and "/" not in path[len(fan) :].strip("/")


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _age(info: Mapping[str, Any]) -> float:
    stamps = (info.get(name) for name in ("LastModified", "last_modified", "created", "mtime"))
    stamp: Any = next(filter(None, stamps), 0.0)
    return time.time() - (stamp.timestamp() if hasattr(stamp, "timestamp") else float(stamp))
