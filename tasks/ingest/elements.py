"""A walk over the data elements of a DICOM stream (PS3.5 chapter 7) that keeps a few values and skips the rest.

Nothing is allocated by what a length claims: values are bounded, nesting and the number of elements too, and every
length is held against the size of the stream.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Protocol

from models.errors import HeaderError

HEAD_BYTES = 16 * 1024
MAX_VALUE_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_ELEMENTS = 5_000_000
UNDEFINED = 0xFFFFFFFF
FLOAT_PIXELS, PIXELS = 0x7FE00008, 0x7FE00010

_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class Stream(Protocol):
    """Bytes that can be read anywhere."""

    size: int

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`."""
        ...


class FileStream:
    """An open file; its first 16 KiB are read at once."""

    __slots__ = ("_descriptor", "head", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.size = descriptor, size
        self.head = os.pread(descriptor, HEAD_BYTES, 0)

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`."""
        if offset == 0 and count <= len(self.head):
            return self.head
        return os.pread(self._descriptor, count, offset)


class MemoryStream:
    """Bytes in memory."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`."""
        return self.data[offset : offset + count]


@dataclass(slots=True)
class Elements:
    """What a walk found: the wanted top-level values by tag, and where the pixels begin.

    `pixel_tag` is 0 where there are none; `pixel_length` is None for an undefined length; `end` is where it stopped.
    """

    values: dict[int, bytes] = field(default_factory=dict)
    pixel_tag: int = 0
    pixel_vr: str = ""
    pixel_offset: int = 0
    pixel_length: int | None = None
    end: int = 0


class Walker:
    """Walks one stream in one encoding."""

    __slots__ = ("_base", "_buffer", "_counted", "_depth", "_order", "_stream", "explicit", "little")

    def __init__(self, stream: Stream, *, explicit: bool, little: bool) -> None:
        self._stream, self.explicit, self.little = stream, explicit, little
        self._order = "<" if little else ">"
        self._buffer, self._base = stream.at(0, HEAD_BYTES), 0
        self._counted = self._depth = 0

    def walk(self, start: int, wanted: Container[int], *, only_group: int | None = None) -> Elements:
        """The wanted top-level elements from `start` up to the pixels, or while in `only_group`."""
        found, position, size = Elements(), start, self._stream.size
        while position + 8 <= size:
            if only_group is not None and self._group(position) != only_group:
                break
            tag, vr, length, value = self._element(position, self.explicit)
            if FLOAT_PIXELS <= tag <= PIXELS:
                found.pixel_tag, found.pixel_vr, found.pixel_offset = tag, vr.decode("latin-1"), value
                found.pixel_length = None if length == UNDEFINED else length
                break
            position = self._skip(value, vr, length)
            if tag in wanted:
                if length == UNDEFINED or vr == b"SQ":
                    found.values[tag] = b""
                elif length > MAX_VALUE_BYTES:
                    raise HeaderError(f"element {tag:08X} claims {length} bytes", reason="oversized-element")
                else:
                    found.values[tag] = self._read(value, length)
        found.end = position
        return found

    def _read(self, offset: int, count: int) -> bytes:
        """`count` bytes, out of the buffer where it holds them. Raises HeaderError beyond the end."""
        i = offset - self._base
        if i < 0 or i + count > len(self._buffer):
            self._buffer, self._base, i = self._stream.at(offset, max(count, HEAD_BYTES)), offset, 0
            if len(self._buffer) < count:
                raise HeaderError("the file ends inside its header", reason="truncated-header")
        return self._buffer[i : i + count]

    def _group(self, position: int) -> int:
        return int(struct.unpack(self._order + "H", self._read(position, 2))[0])

    def _element(self, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
        """(tag, VR or b"", length, offset of the value) of the element at `position`."""
        i = position - self._base
        if i < 0 or i + 12 > len(self._buffer):
            at_least = min(12, self._stream.size - position)
            self._read(position, max(8, at_least))
            i = position - self._base
        self._counted += 1
        if self._counted > MAX_ELEMENTS:
            raise HeaderError(f"over {MAX_ELEMENTS} elements", reason="too-many-elements")
        group, number, vr, short = struct.unpack_from(self._order + "HH2sH", self._buffer, i)
        tag = group << 16 | number
        if not explicit or group == 0xFFFE:
            (length,) = struct.unpack_from(self._order + "I", self._buffer, i + 4)
            return tag, b"", length, position + 8
        if vr in _SHORT:
            return tag, vr, short, position + 8
        if vr not in _LONG:
            raise HeaderError(f"element {tag:08X} has no valid value representation", reason="bad-header")
        if i + 12 > len(self._buffer):
            raise HeaderError("the file ends inside its header", reason="truncated-header")
        (length,) = struct.unpack_from(self._order + "I", self._buffer, i + 8)
        return tag, vr, length, position + 12

    def _skip(self, value: int, vr: bytes, length: int) -> int:
        """Where the next element begins."""
        if length != UNDEFINED:
            end = value + length
            if end > self._stream.size:
                raise HeaderError("an element reaches beyond the end of the file", reason="truncated-header")
            return end
        # PS3.5 6.2.2: a UN of undefined length holds implicit little endian.
        return self._skip_sequence(value, self.explicit and vr != b"UN")

    def _skip_sequence(self, position: int, explicit: bool) -> int:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise HeaderError(f"sequences are nested deeper than {MAX_DEPTH}", reason="nesting-too-deep")
        while True:
            tag, _, length, position = self._element(position, explicit=False)
            if tag == _SEQUENCE_END:
                self._depth -= 1
                return position
            if tag != _ITEM:
                raise HeaderError("a sequence holds something that is no item", reason="bad-sequence")
            position = self._skip_item(position, explicit) if length == UNDEFINED else self._skip(position, b"", length)

    def _skip_item(self, position: int, explicit: bool) -> int:
        while True:
            tag, vr, length, value = self._element(position, explicit)
            if tag == _ITEM_END:
                return value
            if length == UNDEFINED:
                position = self._skip_sequence(value, explicit and vr != b"UN")
            else:
                position = self._skip(value, vr, length)


def looks_explicit(head: bytes) -> bool:
    """Whether an element's first bytes name a value representation."""
    return head[4:6] in _SHORT or head[4:6] in _LONG
