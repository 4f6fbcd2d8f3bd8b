"""A place holds named folders of files: a local folder, or an object store (`remote.py`).

Things are written under `.staging`, synced, and published whole under their key; a reader never sees half a thing,
and a killed writer leaves only what `sweep` removes. Publishing a key that is there already keeps the first: keys
are content, so both are the same.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from models.errors import NotFoundError, SettingsError

STAGING = ".staging"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PART = re.compile(r"\..+\.[0-9a-f]{32}")
_SYNCING = 8


class Place(ABC):
    """Folders by content key. Use `open_place(url)`."""

    url: str
    _scratch: Path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A new local folder to write into; whatever was not published is removed at the end."""
        folder = self._scratch / STAGING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @abstractmethod
    def publish(self, staged: Path, key: str) -> None:
        """Make the staged folder visible under `key`, durably and at once."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether `key` is published."""

    @abstractmethod
    def local(self, key: str) -> Path:
        """A local folder with the content of `key` (fetched where the place is remote). Raises NotFoundError."""

    @abstractmethod
    def location(self, key: str) -> str:
        """Where `key` lies: a path or a URL, for people and for libraries that open URLs."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Delete `key` if it is there."""

    def forget(self, key: str) -> bool:
        """Drop this machine's copy of `key`, so that it is fetched anew; False where the place keeps none."""
        return False

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """All published keys."""

    def sweep(self, known: Container[str], *, older_than_seconds: float = 24 * 3600) -> list[str]:
        """Remove what no catalog row knows and staging that was left behind; returns what went.

        Only what is older than `older_than_seconds`: a writer may just be about to insert its row.
        """
        gone = []
        for folder in (self._scratch / STAGING).glob("*"):
            if age_of(folder) > older_than_seconds:
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(f"{STAGING}/{folder.name}")
        return [*gone, *self._sweep(known, older_than_seconds)]

    @abstractmethod
    def _sweep(self, known: Container[str], older_than_seconds: float) -> Iterator[str]: ...


def open_place(url: str, *, scratch: Path | None = None) -> Place:
    """The place at `url`: a path, or an fsspec URL (`s3://bucket/prefix`). `scratch` stages for remote places."""
    if "::" in url:
        raise SettingsError("chained URLs are refused", where="place", hint="name one folder or one fsspec URL")
    if "://" in url and not url.startswith("file://"):
        from tasks.stores.remote import RemotePlace  # which is a Place itself

        return RemotePlace(url, scratch or Path.home() / ".cache" / "nocturne")
    return LocalPlace(Path(url.removeprefix("file://")))


class LocalPlace(Place):
    """A folder. Keys are spread over 256 subfolders so that none grows too wide."""

    def __init__(self, root: Path) -> None:
        self._scratch = self._root = root.absolute()
        self.url = str(self._root)
        self._root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / sound_key(key)[:2] / key

    def publish(self, staged: Path, key: str) -> None:
        target = self._path(key)
        sync_tree(staged)
        target.parent.mkdir(exist_ok=True)
        try:
            staged.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            return
        sync_folder(target.parent)

    def exists(self, key: str) -> bool:
        return self._path(key).is_dir()

    def local(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_dir():
            raise NotFoundError("is not in the store", where=key, hint="`nocturne doctor` compares catalog and stores")
        return path

    def location(self, key: str) -> str:
        return str(self._path(key))

    def remove(self, key: str) -> None:
        path = self._path(key)
        if path.is_dir():
            doomed = self._root / STAGING / uuid.uuid4().hex
            doomed.parent.mkdir(exist_ok=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def keys(self) -> Iterator[str]:
        for fan in sorted(self._root.iterdir()):
            if fan.is_dir() and not fan.name.startswith("."):
                yield from sorted(entry.name for entry in fan.iterdir() if entry.is_dir())

    def _sweep(self, known: Container[str], older_than_seconds: float) -> Iterator[str]:
        for key in list(self.keys()):
            if key not in known and age_of(self._path(key)) > older_than_seconds:
                self.remove(key)
                yield key


def sound_key(key: str) -> str:
    """`key`, if it is one: nothing that climbs out of the place, nothing that an object store expands."""
    if not _KEY.fullmatch(key):
        raise NotFoundError(f"{key!r} is no key")
    return key


def age_of(path: Path) -> float:
    """Seconds since the file or folder was changed; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below, so that a rename afterwards publishes whole content."""
    paths = [Path(parent, name) for parent, _, files in os.walk(folder) for name in (*files, "")]
    # At once: the file system then commits its journal once for all of them, not once for each.
    with ThreadPoolExecutor(_SYNCING) as pool:
        list(pool.map(_fsync, paths))


def sync_folder(folder: Path) -> None:
    """fsync a folder's entries."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, content: bytes) -> None:
    """Write one file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def parts_of(path: Path) -> list[Path]:
    """What writers of this one file have begun and not finished: those at work, and those that were killed."""
    return [part for part in path.parent.glob(f".{glob.escape(path.name)}.*") if _PART.fullmatch(part.name)]


def sweep_parts(folder: Path, *, older_than_seconds: float = 24 * 3600) -> list[str]:
    """Remove what killed writers of single files left in a folder and below it; returns the names that went."""
    gone = []
    for part in folder.rglob(".*"):
        if _PART.fullmatch(part.name) and part.is_file() and age_of(part) > older_than_seconds:
            part.unlink(missing_ok=True)
            gone.append(part.name)
    return gone
