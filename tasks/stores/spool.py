"""The spool: original instances as they were received, each a Part 10 file that is named by what it holds.

Besides the vault this is the only place with identities. No name comes from the data: a study's folder is a hash of
its pseudonym, a file's name the digest of its transfer syntax and data set. A file under its final name is whole and
synced, and so is its folder's entry.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Final

from pydicom.uid import MediaStorageDirectoryStorage

from models.errors import HeaderError, IntegrityError, NotFoundError, ServiceUnavailableError
from models.pseudonyms import Pseudonymizer
from tasks.stores.durable import publish, sync_folder
from tasks.stores.peek import Identifiers, Peeker, is_uid

IMPLEMENTATION_CLASS_UID: Final = "2.25.27208286816217553086646884980031475819"
IMPLEMENTATION_VERSION: Final = "NOCTURNE"
QUARANTINE: Final = "quarantine"
STALE_SECONDS: Final = 3600.0  # no wait within one instance is nearly as long
_CHUNK, _META_LIMIT = 1 << 20, 64 << 10
_NAMES_KEPT = 1024
_INSTANCE = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


Names = Callable[[str], str]
"""Gives the pseudonym of a UID."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance in the spool. All UIDs are pseudonyms but the SOP class; `new` is False for a resend."""

    instance: str
    study: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str
    bytes: int
    path: Path
    new: bool


def digest_of(transfer_syntax: str, parts: Iterable[bytes | memoryview]) -> str:
    """The name of an instance: SHA-256 over its transfer syntax and its data set as encoded."""
    digest = hashlib.sha256(transfer_syntax.encode() + b"\0")
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class Spool:
    """One folder. Safe to share between threads and processes."""

    def __init__(self, root: Path, pseudonymizer: Pseudonymizer) -> None:
        self.root = root
        # Nearly every instance is of the same few studies and series.
        self._names = lru_cache(_NAMES_KEPT)(pseudonymizer.uid)

    def write(
        self, parts: Iterable[bytes | memoryview], *, sop_class: str, sop_instance: str, transfer_syntax: str
    ) -> Stored:
        """Keep a data set that was sent as this SOP instance. The parts may be reused once the next one is asked for.

        Raises HeaderError where it cannot be filed or is not what it was sent as: it lies in quarantine then, under
        the digest in `where`. Raises ServiceUnavailableError (`disk-full`, `spool-away`) where trying again may help.
        """
        said = (sop_class.strip(" \0"), sop_instance.strip(" \0"))
        return self._keep(_Draft(self.root, self._names, transfer_syntax, said), parts)

    def adopt(self, path: Path) -> Stored:
        """Keep a copy of a Part 10 file. Its name, its preamble and its file meta information count for nothing."""
        with _source(path) as handle:
            transfer_syntax = _read_meta(handle)
            draft = _Draft(self.root, self._names, transfer_syntax, None)
            return self._keep(draft, _chunks(handle))

    def path(self, study: str, instance: str) -> Path:
        """Where an instance of a study (both as in the catalog) lies."""
        if not _INSTANCE.fullmatch(instance):
            raise NotFoundError("not the key of an instance", where="spool")
        return _folder(self.root, study) / f"{instance}.dcm"

    def paths(self, study: str, instances: Sequence[str]) -> list[Path]:
        """Where instances of a study lie, in the order given."""
        return [self.path(study, instance) for instance in instances]

    def quarantined(self, digest: str) -> Path:
        """Where an instance that could not be filed lies."""
        if not _INSTANCE.fullmatch(digest):
            raise NotFoundError("not the key of an instance", where="spool")
        return self.root / QUARANTINE / f"{digest}.dcm"

    def free_bytes(self) -> int:
        """How much more fits."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        with _disk():
            found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def describe(self, path: Path) -> Stored:
        """What `write` said of a file that lies here."""
        with _source(path) as handle:
            peeker = Peeker(_read_meta(handle))
            start = handle.tell()
            for part in _chunks(handle):
                if peeker.feed(part):
                    break
            size = os.fstat(handle.fileno()).st_size - start
        return _stored(self._names, peeker.end(), path, path.stem, size, new=False)

    def verify(self, path: Path) -> None:
        """Raises IntegrityError where the file is not what its name says."""
        with _source(path) as handle:
            transfer_syntax = _read_meta(handle)
            found = digest_of(transfer_syntax, _chunks(handle))
        if found != path.stem:
            raise IntegrityError("a spooled instance differs from its digest", where=path.stem)

    def folders_since(self, moment: float) -> Iterator[Path]:
        """The folders of studies to which something was added after `moment`, by the spool's own clock."""
        for outer in _entries(self.root):
            if re.fullmatch("[0-9a-f]{2}", outer.name) and outer.is_dir(follow_symlinks=False):
                for inner in _entries(Path(outer.path)):
                    if inner.is_dir(follow_symlinks=False) and inner.stat(follow_symlinks=False).st_mtime >= moment:
                        yield Path(inner.path)

    def instances_in(self, folder: Path) -> list[Path]:
        """The instances in a study's folder. What killed writers left there long ago is removed."""
        found = []
        for entry in _entries(folder):
            if entry.name.endswith(".part"):
                _sweep(Path(entry.path))
            elif _INSTANCE.fullmatch(entry.name.removesuffix(".dcm")):
                found.append(Path(entry.path))
        return sorted(found)

    def sweep(self) -> None:
        """Remove what killed writers left outside the studies' folders long ago."""
        for folder in (self.root, self.root / QUARANTINE):
            self.instances_in(folder)

    def clock(self) -> float:
        """The present, as the storage under the spool tells it: on a share that is another machine's."""
        with _disk():
            _make(self.root)
            mark = self.root / f".{secrets.token_hex(8)}.part"
            mark.touch(0o600)
            try:
                return mark.stat().st_mtime
            finally:
                mark.unlink()

    def _keep(self, draft: _Draft, parts: Iterable[bytes | memoryview]) -> Stored:
        try:
            for part in parts:
                with _disk():
                    draft.add(part)
            with _disk():
                return draft.finish()
        finally:
            draft.discard()


class _Draft:
    """One instance on its way in: held back until its folder is known, then written as it comes."""

    def __init__(self, root: Path, names: Names, transfer_syntax: str, said: tuple[str, str] | None) -> None:
        self._root, self._names, self._said = root, names, said
        self._transfer_syntax = transfer_syntax
        self._digest = hashlib.sha256(transfer_syntax.encode() + b"\0")
        self._peeker = Peeker(transfer_syntax)
        self._held: list[bytes] = []
        self._size = 0
        self._known = Identifiers("", "", "", "", "")
        self._refused: HeaderError | None = None
        self._descriptor = -1
        self._folder = self._part = root
        self._placed = False

    def add(self, part: bytes | memoryview) -> None:
        """The next bytes of the data set."""
        self._digest.update(part)
        self._size += len(part)
        if self._descriptor >= 0:
            _write(self._descriptor, part)
        elif self._decided(part):
            self._open(part)
        else:
            self._held.append(bytes(part))

    def finish(self) -> Stored:
        """Sync it under its final name."""
        if self._descriptor < 0:
            self._identify()
            self._open(b"")
        name = self._digest.hexdigest()
        target = self._folder / f"{name}.dcm"
        new = not target.exists()
        if new:
            publish(self._descriptor, self._part, target)
        else:
            self._part.unlink()
            sync_folder(self._folder)  # whoever wrote the first copy may not have come to this yet
        self._placed = True
        if self._refused:
            raise HeaderError(self._refused.what, where=name, hint=self._refused.hint, reason=self._refused.reason)
        return _stored(self._names, self._known, target, name, self._size, new=new)

    def discard(self) -> None:
        """Close it, and remove what has no final name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._placed:
                self._part.unlink(missing_ok=True)

    def _decided(self, part: bytes | memoryview) -> bool:
        try:
            if not self._peeker.feed(part):
                return False
        except HeaderError as error:
            self._refused = error
            return True
        self._identify()
        return True

    def _identify(self) -> None:
        try:
            self._known = self._peeker.end()
            if self._said and self._said != (self._known.sop_class, self._known.sop):
                raise HeaderError("not the SOP instance that it was sent as", reason="sop-mismatch")
        except HeaderError as error:
            self._refused = error

    def _open(self, part: bytes | memoryview) -> None:
        if self._refused:
            self._folder = self._root / QUARANTINE
            sop_class, sop = (uid if is_uid(uid) else "" for uid in self._said or ("", ""))
        else:
            self._folder = _folder(self._root, self._names(self._known.study))
            sop_class, sop = self._known.sop_class, self._known.sop
        self._part = self._folder / f".{secrets.token_hex(8)}.part"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._part, flags, 0o600)
        except FileNotFoundError:
            _make(self._folder)
            self._descriptor = os.open(self._part, flags, 0o600)
        _write(self._descriptor, _meta(sop_class, sop, self._transfer_syntax), *self._held, part)
        self._held.clear()


def _stored(names: Names, known: Identifiers, path: Path, name: str, size: int, *, new: bool) -> Stored:
    return Stored(
        instance=name,
        study=names(known.study),
        series_uid=names(known.series),
        sop_uid=names(known.sop),
        sop_class=known.sop_class,
        modality=known.modality,
        bytes=size,
        path=path,
        new=new,
    )


# -- files --------------------------------------------------------------------------------------------------------


def _folder(root: Path, study: str) -> Path:
    name = hashlib.sha256(study.encode()).hexdigest()[:40]
    return root / name[:2] / name


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ServiceUnavailableError):
            raise
        # Not the system's own words: they name the path.
        told = os.strerror(error.errno or 0).lower()
        reason = "disk-full" if error.errno in _FULL else "spool-away"
        raise ServiceUnavailableError(f"the spool cannot be written: {told}", where="spool", reason=reason) from None


def _write(descriptor: int, *buffers: bytes | memoryview) -> None:
    left = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while left:
        written = os.writev(descriptor, left[:64])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def _make(folder: Path) -> None:
    """The folder and its parents, each synced into the one above."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(0o700, exist_ok=True)
        sync_folder(part.parent)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []


def _sweep(part: Path) -> None:
    try:
        if time.time() - part.stat().st_mtime > STALE_SECONDS:
            part.unlink()
    except FileNotFoundError:
        return  # its writer has just finished


@contextmanager
def _source(path: Path) -> Iterator[IO[bytes]]:
    """An ordinary file, opened; a pipe or a device is refused before anything waits for it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        told = os.strerror(error.errno or 0).lower()  # the system's own words name the path
        raise ServiceUnavailableError(f"a file cannot be read: {told}", reason="file-away") from None
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HeaderError("not an ordinary file", reason="not-dicom")
        yield handle


def _chunks(handle: IO[bytes]) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    while count := handle.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:count]


# -- file meta information ----------------------------------------------------------------------------------------


def _meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1), all our own."""
    body = b"".join(
        [
            struct.pack("<HH2sHL", 2, 0x0001, b"OB", 0, 2) + b"\0\1",
            _uid_element(0x0002, sop_class),
            _uid_element(0x0003, sop_instance),
            _uid_element(0x0010, transfer_syntax),
            _uid_element(0x0012, IMPLEMENTATION_CLASS_UID),
            struct.pack("<HH2sH", 2, 0x0013, b"SH", len(IMPLEMENTATION_VERSION)) + IMPLEMENTATION_VERSION.encode(),
        ]
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body


def _uid_element(element: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value


def _read_meta(handle: IO[bytes]) -> str:
    """The transfer syntax; the handle stands at the data set then. The group's own length is not believed."""
    head = handle.read(_META_LIMIT)
    if head[128:132] != b"DICM":
        raise HeaderError("not a DICOM file", reason="not-dicom")
    values, at = {}, 132
    while head[at : at + 2] == b"\2\0":
        long = head[at + 4 : at + 6] in (b"OB", b"UN")
        start = at + (12 if long else 8)
        if start > len(head):
            break
        (length,) = struct.unpack_from("<L" if long else "<H", head, start - (4 if long else 2))
        values[head[at + 2 : at + 4]] = head[start : start + length]
        at = start + length
        if at > len(head):
            raise HeaderError("the file meta information is broken", reason="not-dicom")
    transfer_syntax = values.get(b"\x10\0", b"").decode("ascii", "replace").strip(" \0")
    if not is_uid(transfer_syntax):
        raise HeaderError("the file meta information names no transfer syntax", reason="no-transfer-syntax")
    if values.get(b"\2\0", b"").decode("ascii", "replace").strip(" \0") == MediaStorageDirectoryStorage:
        raise HeaderError("a DICOMDIR is no instance", reason="dicomdir")
    handle.seek(at)
    return transfer_syntax
