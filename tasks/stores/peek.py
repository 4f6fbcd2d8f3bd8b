"""The few identifiers by which an instance is filed, read from the beginning of a DICOM stream as it comes in.

The walk stops at the Series Instance UID, so that neither pixels nor the rest of the header are looked at, and it goes
on where it stopped when more bytes arrive. Nothing is allocated by what a length claims.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from models.errors import HeaderError

HEADER_BYTES: Final = 16 << 20
"""The identifiers have to come within so many bytes; that leaves room for large private groups before them."""

_SOP_CLASS, _SOP, _MODALITY, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E
_NAMES: Final = {
    _SOP_CLASS: "SOP Class UID",
    _SOP: "SOP Instance UID",
    _MODALITY: "Modality",
    _STUDY: "Study Instance UID",
    _SERIES: "Series Instance UID",
}
# JPIP's referenced forms are deflated too.
_DEFLATED: Final = {DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_UNDEFINED, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFFFFFF, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_FIRST_TAG: Final = 0x00080000
_MAX_VALUE, _MAX_DEPTH, _INFLATE_STEP = 1024, 64, 64 << 10
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")  # leading zeros are wrong, yet scanners send them
_CODE: Final = re.compile(r"[A-Z0-9_ ]{1,16}")


@dataclass(frozen=True, slots=True)
class Identifiers:
    """Original identifiers of one instance: they stay in the spool."""

    sop_class: str
    sop: str
    study: str
    series: str
    modality: str


def is_uid(text: str) -> bool:
    """Whether `text` is one UID of at most 64 characters."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


class Peeker:
    """Fed with a data set's bytes until the identifiers are known; raises HeaderError where they are not usable."""

    def __init__(self, transfer_syntax: str) -> None:
        implicit = transfer_syntax == ImplicitVRLittleEndian
        self._order = ">" if transfer_syntax == ExplicitVRBigEndian else "<"
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if transfer_syntax in _DEFLATED else None
        self._implicit = [implicit]  # of the data set and of each sequence or item that is open
        self._rest = b""
        self._drop = 0
        self._fed = self._seen = 0  # as sent, and inflated
        self._values: dict[int, bytes] = {}
        self._done = False

    def feed(self, part: bytes | memoryview) -> bool:
        """Take the next bytes; True once nothing more is needed."""
        if self._done:
            return True
        self._fed += len(part)
        if self._inflater is None:
            self._take(part)
        else:
            self._inflate(self._inflater, part)
        if max(self._fed, self._seen) > HEADER_BYTES and not self._done:
            raise HeaderError(f"no identifiers within the first {HEADER_BYTES >> 20} MiB", reason="long-header")
        return self._done

    def end(self) -> Identifiers:
        """The identifiers, after `feed` said True or when the data set is over."""
        if not self._done and (self._rest or self._drop or len(self._implicit) > 1):
            raise HeaderError("the data set ends within an element", reason="truncated")
        return Identifiers(
            sop_class=self._uid(_SOP_CLASS),
            sop=self._uid(_SOP),
            study=self._uid(_STUDY),
            series=self._uid(_SERIES),
            modality=self._modality(),
        )

    def _inflate(self, inflater: zlib._Decompress, part: bytes | memoryview) -> None:
        packed: bytes | memoryview = part
        while packed and not self._done and self._seen <= HEADER_BYTES:
            if inflater.eof:
                raise HeaderError("the deflated data set ends before its identifiers", reason="truncated")
            try:
                plain = inflater.decompress(packed, _INFLATE_STEP)
            except zlib.error:
                raise HeaderError("the deflated data set is broken", reason="bad-deflate") from None
            packed = inflater.unconsumed_tail
            self._take(plain)

    def _take(self, part: bytes | memoryview) -> None:
        self._seen += len(part)
        if self._drop >= len(part):
            self._drop -= len(part)
        else:
            data = self._rest + bytes(part[self._drop :])
            self._drop = 0
            self._rest = data[self._walk(data) :]

    def _walk(self, data: bytes) -> int:
        """Go over whole elements; the offset of what was not used."""
        at = 0
        while not self._done:
            found = self._element(data, at)
            if found is None:
                return at
            tag, vr, length, start = found
            if self._at_top(tag) and self._last(tag):
                return at
            if length == _UNDEFINED or tag in (_ITEM_END, _SEQUENCE_END):
                self._nest(tag, vr)
                at = start
                continue
            if self._at_top(tag) and tag in _NAMES:
                if len(data) < start + self._value_length(tag, length):
                    return at
                self._values[tag] = data[start : start + length]
            at = start + length
            if at > len(data):
                self._drop = at - len(data)
                return len(data)
        return at

    def _element(self, data: bytes, at: int) -> tuple[int, bytes, int, int] | None:
        """Tag, VR, length and where the value starts, or None where bytes are missing."""
        if len(data) < at + 8:
            return None
        group, element = struct.unpack_from(self._order + "HH", data, at)
        tag, vr = group << 16 | element, b""
        if group == 0xFFFE or self._implicit[-1]:
            return tag, vr, struct.unpack_from(self._order + "L", data, at + 4)[0], at + 8
        vr = data[at + 4 : at + 6]
        if vr not in _LONG:
            if not (vr.isalpha() and vr.isupper()):
                raise HeaderError("not encoded as its transfer syntax says", reason="bad-encoding")
            return tag, vr, struct.unpack_from(self._order + "H", data, at + 6)[0], at + 8
        if len(data) < at + 12:
            return None
        return tag, vr, struct.unpack_from(self._order + "L", data, at + 8)[0], at + 12

    def _at_top(self, tag: int) -> bool:
        return len(self._implicit) == 1 and tag >> 16 != 0xFFFE

    def _last(self, tag: int) -> bool:
        if tag < _FIRST_TAG:
            # Group 2 here would pass for our own file meta information when the file is read back.
            raise HeaderError("the data set begins with elements of another kind", reason="bad-group")
        self._done = tag > _SERIES
        return self._done

    def _nest(self, tag: int, vr: bytes) -> None:
        if tag in (_ITEM_END, _SEQUENCE_END):
            if len(self._implicit) == 1:
                raise HeaderError("a sequence ends that never began", reason="bad-sequence")
            self._implicit.pop()
            return
        if len(self._implicit) > _MAX_DEPTH:
            raise HeaderError(f"sequences nested over {_MAX_DEPTH} deep", reason="bad-sequence")
        self._implicit.append(vr == b"UN" or self._implicit[-1])  # PS3.5 6.2.2: UN of unknown length is implicit

    def _value_length(self, tag: int, length: int) -> int:
        if length > _MAX_VALUE:
            raise HeaderError(f"{_NAMES[tag]} is {length} bytes long", reason="bad-uid")
        if tag in self._values:
            raise HeaderError(f"{_NAMES[tag]} is there more than once", reason="bad-uid")
        return length

    def _uid(self, tag: int) -> str:
        text = self._values.get(tag, b"").decode("ascii", "replace").strip(" \0")
        if not text:
            raise HeaderError(f"{_NAMES[tag]} is missing", reason="no-uid")
        if not is_uid(text):
            raise HeaderError(f"{_NAMES[tag]} is not one valid UID", reason="bad-uid")
        return text

    def _modality(self) -> str:
        text = self._values.get(_MODALITY, b"").decode("ascii", "replace").strip(" \0")
        return text if _CODE.fullmatch(text) else ""
