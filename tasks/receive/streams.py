"""Bytes as they come over the wire, cut without holding them: DICOM files (PS3.10) and multipart answers (RFC 2046)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from itertools import chain
from typing import Final

from pydicom.uid import MediaStorageDirectoryStorage

from models.errors import HeaderError
from tasks.receive.asking import LostError
from tasks.receive.reception import Reception
from tasks.stores.peek import Identifiers, Peeker
from tasks.stores.spool import Stored

CHUNK: Final = 1 << 18
_META_LIMIT: Final = 64 << 10
_SOP_CLASS, _TRANSFER_SYNTAX = 0x0002, 0x0010


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file as it comes in. `known` is None where its data set cannot be read: the spool says why."""

    transfer_syntax: str
    known: Identifiers | None
    parts: Iterable[bytes]

    def into(self, reception: Reception) -> Stored:
        """Take it in, by what its data set says that it is. Raises as `Reception.take`."""
        sop_class, sop = (self.known.sop_class, self.known.sop) if self.known else ("", "")
        return reception.take(self.parts, sop_class=sop_class, sop_instance=sop, transfer_syntax=self.transfer_syntax)


def open_file(chunks: Iterable[bytes]) -> Incoming:
    """The beginning of a DICOM file, as far as its identifiers, and the rest as it comes.

    Raises HeaderError: not-dicom, no-transfer-syntax, or dicomdir for a file that only lists others.
    """
    stream = _Stream(chunks)
    start = stream.take(132)
    if start[128:] != b"DICM":
        raise HeaderError("not a DICOM file", reason="not-dicom")
    meta = _read_meta(stream)
    if meta.get(_SOP_CLASS) == MediaStorageDirectoryStorage:
        raise HeaderError("a DICOMDIR is no instance", reason="dicomdir")
    syntax = meta.get(_TRANSFER_SYNTAX, "")
    if not syntax:
        raise HeaderError("the file meta information names no transfer syntax", reason="no-transfer-syntax")
    known, held = _identify(syntax, stream)
    return Incoming(syntax, known, chain(held, stream.rest()))


def _read_meta(stream: _Stream) -> dict[int, str]:
    """Group 2, whose own length is not believed."""
    found: dict[int, str] = {}
    left = _META_LIMIT
    while (head := stream.take(8))[:2] == b"\2\0" and len(head) == 8:
        if head[4:6] in (b"OB", b"UN"):
            (length,) = struct.unpack("<L", stream.take(4).ljust(4, b"\0"))
        else:
            (length,) = struct.unpack_from("<H", head, 6)
        left -= length
        if left < 0:
            raise HeaderError("the file meta information is broken", reason="not-dicom")
        found[struct.unpack_from("<H", head, 2)[0]] = stream.take(length).decode("ascii", "replace").strip(" \0")
    stream.put_back(head)
    return found


def _identify(syntax: str, stream: _Stream) -> tuple[Identifiers | None, list[bytes]]:
    peeker, held = Peeker(syntax), []
    try:
        while part := stream.take_some():
            held.append(part)
            if peeker.feed(part):
                break
        return peeker.end(), held
    except HeaderError:
        # Not for us to judge: whatever it is has to reach the spool's quarantine.
        return None, held


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart answer, or None where it is none."""
    message = Message()
    message["content-type"] = content_type
    try:
        found = message.get_boundary()
    except ValueError:  # a parameter in parts (RFC 2231), numbered beyond all numbers
        return None
    return found.encode("ascii", "replace") if message.get_content_maintype() == "multipart" and found else None


def split_multipart(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """The body of each part, in chunks; what is left unread of one is passed over before the next.

    Raises LostError where the closing boundary never comes.
    """
    stream = _Stream(chunks)
    stream.put_back(b"\r\n")  # the first boundary need not follow a line
    mark = b"\r\n--" + boundary
    _drain(stream.before(mark))
    while (following := stream.take(2)) != b"--":
        stream.put_back(following)
        _drain(stream.before(b"\r\n\r\n"))
        body = stream.before(mark)
        yield body
        _drain(body)


def _drain(chunks: Iterator[bytes]) -> None:
    deque(chunks, maxlen=0)


class _Stream:
    """Chunks, read up to a length or a mark. Holds little more than one chunk."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""

    def take(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end."""
        while len(self._held) < count and (chunk := next(self._chunks, None)) is not None:
            self._held += chunk
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def take_some(self) -> bytes:
        """Whatever comes next; empty only at the end."""
        taken, self._held = self._held, b""
        return taken or next((chunk for chunk in self._chunks if chunk), b"")

    def put_back(self, data: bytes) -> None:
        """Read `data` again."""
        self._held = data + self._held

    def rest(self) -> Iterator[bytes]:
        """Everything that is left."""
        if self._held:
            yield self._held
            self._held = b""
        yield from self._chunks

    def before(self, mark: bytes) -> Iterator[bytes]:
        """Everything before `mark`, which is passed over."""
        tail = len(mark) - 1
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > tail:
                piece, self._held = self._held[:-tail], self._held[-tail:]
                yield piece
            chunk = next(self._chunks, None)
            if chunk is None:
                raise LostError("the answer was cut off")
            self._held += chunk
        piece, self._held = self._held[:at], self._held[at + len(mark) :]
        if piece:
            yield piece
