"""Where instances come from: files, trees, a DICOMDIR, and zip and tar archives.

What a file is, its content says, never its name. Members of archives are read in memory or through an unlinked
temporary file: nothing is ever written to a path that an archive names.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from models.errors import ArchiveError, HeaderError, NotFoundError, ServiceUnavailableError
from models.series import Source

MAX_MEMBERS: Final = 1_000_000
MAX_MEMBER_BYTES: Final = 16 << 30
MAX_ARCHIVE_BYTES: Final = 256 << 30
MAX_RATIO: Final = 200
FREE_BYTES: Final = 64 << 20
"""Below this an archive may unfold by any ratio: a small tree of empty images is no attack."""
_OPEN_ARCHIVES: Final = 4
_BLOCK: Final = 1 << 20
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)

ArchiveKind = Literal["zip", "tar"]


def walk(paths: Sequence[str]) -> Iterator[Source]:
    """Every regular file at or below `paths`, in a stable order.

    Links, pipes, devices and hidden names (a receiver's half-written files) are passed over. A path that does not
    exist raises NotFoundError (without naming it: it may name a patient).
    """
    for number, path in enumerate(paths):
        try:
            mode = Path(path).stat().st_mode
        except FileNotFoundError:
            raise NotFoundError("does not exist", where=f"path {number + 1}", hint="check the path") from None
        if stat.S_ISDIR(mode):
            yield from _walk_tree(path)
        elif stat.S_ISREG(mode):
            yield Source(str(Path(path).absolute()))


def _walk_tree(root: str) -> Iterator[Source]:
    pending = [str(Path(root).absolute())]
    while pending:
        folders, place = [], pending.pop()
        try:
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield Source(entry.path)
        except FileNotFoundError:
            continue
        except PermissionError:
            # Told by whoever tries to read it: a folder that is closed is not the same as an empty one.
            yield Source(place)
        pending.extend(reversed(folders))


def read_source(source: Source) -> bytes:
    """All bytes of a file or member. Raises NotFoundError, ServiceUnavailableError, ArchiveError."""
    with reaching():
        if source.member is not None:
            return _archives.open(source.path).read(source.member)
        with Path(source.path).open("rb") as file:
            return file.read()


class reaching:  # noqa: N801 - used as a statement, like contextlib's
    """Translate the system's errors: a file that went, and a share that is away."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFoundError("an instance is no longer where the scan found it", hint="scan again") from None
        if isinstance(error, PermissionError):
            raise NotFoundError("an instance may not be read", hint="give Nocturne's user read access") from None
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            raise ServiceUnavailableError(f"an instance cannot be read: {error.strerror}", where="spool") from None


# -- archives -----------------------------------------------------------------------------------------------------


def archive_kind(path: str) -> ArchiveKind | None:
    """Whether a file is a zip, a tar or a gzip, bzip2 or xz that may hold a tar; by its first bytes."""
    with Path(path).open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b" or head[:6] == b"\xfd7zXZ\0" or head[:3] == b"BZh":
        return "tar"
    return None


def members(path: str) -> list[Source]:
    """The regular members of the archive at `path`. Raises ArchiveError for one that is broken, a bomb or climbs out.

    A compressed file without a tar inside holds none.
    """
    return [Source(path, name) for name in _archives.open(path).names()]


@dataclass(frozen=True, slots=True)
class _Extent:
    offset: int
    size: int


class _Zip:
    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        self._infos = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        size = Path(path).stat().st_size
        total = sum(info.file_size for info in self._infos.values())
        _check_count(len(self._infos))
        _check_total(total, size)
        for info in self._infos.values():
            if info.flag_bits & 0x1:
                raise ArchiveError("the archive is encrypted", reason="archive-encrypted", hint="unpack it yourself")
            _check_name(info.filename)
            _check_total(info.file_size, info.compress_size, MAX_MEMBER_BYTES)

    def names(self) -> list[str]:
        # A link is stored as a small file with its mode: its content is a path, never an instance.
        return [name for name, info in self._infos.items() if not stat.S_ISLNK(info.external_attr >> 16)]

    def read(self, name: str) -> bytes:
        with self._zip.open(self._infos[name]) as file:
            return file.read()

    def close(self) -> None:
        self._zip.close()


class _Tar:
    """Members by their place in the unpacked tar, which lies in the file itself or in an unlinked temporary file."""

    def __init__(self, path: str) -> None:
        self._file = _unpacked(path)
        self._extents: dict[str, _Extent] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for info in tar:
                    _check_count(len(self._extents))
                    _check_name(info.name)
                    if info.isreg() and info.sparse is None:
                        self._extents[info.name] = _Extent(info.offset_data, info.size)
        except tarfile.ReadError:
            if self._extents:
                raise
        size = os.fstat(self._file.fileno()).st_size
        if any(extent.offset + extent.size > size for extent in self._extents.values()):
            raise ArchiveError("the archive is cut off", reason="archive-broken")

    def names(self) -> list[str]:
        return list(self._extents)

    def read(self, name: str) -> bytes:
        extent = self._extents[name]
        return os.pread(self._file.fileno(), extent.size, extent.offset)

    def close(self) -> None:
        self._file.close()


def _unpacked(path: str) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    file = Path(path).open("rb")  # noqa: SIM115 - the caller keeps it
    magic = file.read(6)
    file.seek(0)
    opener: Any = {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open, b"BZ": bz2.open}.get(magic[:2])
    if opener is None:
        return file
    packed_size = os.fstat(file.fileno()).st_size
    # Unlinked from the start: a killed process leaves nothing of the patients behind.
    target = tempfile.TemporaryFile(prefix="nocturne-")  # noqa: SIM115
    try:
        with file, opener(file) as packed:
            first = packed.read(_BLOCK)
            if first[257:262] != b"ustar":
                return target
            total = 0
            while first:
                total += len(first)
                _check_total(total, packed_size)
                target.write(first)
                first = packed.read(_BLOCK)
        target.flush()
        target.seek(0)
    except (OSError, lzma.LZMAError, EOFError, zlib.error) as error:
        target.close()
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ArchiveError("the archive is broken", reason="archive-broken") from None
    except ArchiveError:
        target.close()
        raise
    return target


class _OpenArchives:
    """The last few archives, kept open: a central directory or a decompression is paid for once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, int, int], _Zip | _Tar] = OrderedDict()

    def open(self, path: str) -> _Reader:
        status = Path(path).stat()
        key = (path, status.st_size, status.st_mtime_ns)
        with self._lock:
            archive = self._open.pop(key, None)
            if archive is None:
                archive = _opened(path)
            self._open[key] = archive
            while len(self._open) > _OPEN_ARCHIVES:
                # Not closed here: another thread may be reading it. The last reference closes it.
                self._open.popitem(last=False)
        return _Reader(archive)


@dataclass(frozen=True, slots=True)
class _Reader:
    archive: _Zip | _Tar

    def names(self) -> list[str]:
        return self.archive.names()

    def read(self, name: str) -> bytes:
        try:
            with _sound():
                return self.archive.read(name)
        except KeyError:
            raise NotFoundError("a member is no longer in its archive", hint="scan again") from None


def _opened(path: str) -> _Zip | _Tar:
    with _sound():
        return _Zip(path) if archive_kind(path) == "zip" else _Tar(path)


@contextmanager
def _sound() -> Iterator[None]:
    """Broken archives come up as many types; the system's own errors (a share that is away) stay what they are."""
    try:
        yield
    except (ArchiveError, KeyError):
        raise
    except (*_BROKEN, OSError) as error:
        # A damaged offset is an invalid argument to the system.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError("the archive is broken", reason="archive-broken", hint="fetch it again") from None


def _check_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise ArchiveError(f"over {MAX_MEMBERS} members", reason="archive-too-large")


def _check_name(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ArchiveError("a member's path climbs out of the archive", reason="archive-climbs-out")


def _check_total(total: int, packed: int, limit: int = MAX_ARCHIVE_BYTES) -> None:
    if total > limit:
        raise ArchiveError(f"unfolds to over {limit >> 30} GiB", reason="archive-too-large", hint="split it")
    if total > FREE_BYTES and total > MAX_RATIO * max(1, packed):
        raise ArchiveError(f"unfolds more than {MAX_RATIO} times", reason="archive-bomb")


_archives = _OpenArchives()


# -- DICOMDIR -----------------------------------------------------------------------------------------------------


def resolve_dicomdir(path: str) -> tuple[list[Source], int]:
    """The files that a DICOMDIR names, and how many of them are missing (PS3.3 F.3, Referenced File ID).

    Raises HeaderError where it cannot be read or names a place outside its own folder.
    """
    import pydicom

    try:
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or ()
        named = [record.get("ReferencedFileID") for record in records]
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise HeaderError(f"unreadable DICOMDIR ({type(error).__name__})", reason="unreadable-header") from None
    root = Path(path).parent.absolute()
    found, missing = [], 0
    for parts in named:
        if not parts:
            continue
        target = _inside(root, [parts] if isinstance(parts, str) else [str(part) for part in parts])
        if target is None:
            missing += 1
        else:
            found.append(Source(str(target)))
    return found, missing


def _inside(root: Path, parts: list[str]) -> Path | None:
    place = root
    for part in parts:
        if part in ("", ".", "..") or re.search(r"[/\\\0]", part):
            raise HeaderError("the DICOMDIR names a place outside its folder", reason="dicomdir-climbs-out")
        place = next((p for p in (place / part, place / part.lower()) if p.exists()), place / part)
        if place.is_symlink():
            return None
    return place if place.is_file() else None
