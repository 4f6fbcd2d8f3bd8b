"""DICOM streams written by hand: what pydicom would refuse to write is what has to be tried."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

LONG: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
UNDEFINED: Final = 0xFFFFFFFF
SYNTAXES: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    "1.2.840.10008.1.2.4.70",
    "1.2.3.4",
    "",
)
NUMBERS: Final = (
    *(b"NaN", b"-inf", b"1e309", b"-1e308", b"1e308", b"1e-320", b"-0", b"0", b"1_0", b"0x10", b"1e400000", b"."),
    *(
        b"1\\2\\3",
        b"1\\2\\3\\4\\5\\6",
        b"1e155\\-1e155\\1e155",
        b"1\\NaN\\3",
        b"\\\\",
        b"9" * 400,
        b"2147483648",
        b"-1",
    ),
    *(b"1\0", b" 1 ", b"1,5", b"\xb2", b"1e-200\\1e-200"),
)
TEXTS: Final = (
    *(b"", b" ", b"\0", b"\\", b"../../../../etc/passwd", b"1.2.3", b"1.2\\1.3", b"\xff\xfe\xfd", b"\x1b$B\x1b(J\x1b"),
    *(b"ISO_IR 192", b"ISO 2022 IR 87\\ISO 2022 IR 149", b"\\ISO 2022 IR 58", b"GB18030", b"GBK", b"ISO_IR 999"),
    *(b"\xe3\x81\x82", b"A" * 300, b"%s{0}", b"20240229", b"240229", b"00000000", b"99999999", b"126060.999999"),
    *(b"ORIGINAL\\PRIMARY\\MOSAIC", b"SIEMENS MR HEADER", b"999Y", b"YES", b"CT", b"PT", b"\xed\xa0\x80"),
)
VRS: Final = (
    *sorted(LONG),
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "PN", "SH", "SS", "US"),
    "??",
)


@dataclass(frozen=True)
class Element:
    """One data element as it is to be written; `length`: what it claims, where that is not so."""

    tag: int
    vr: str
    value: bytes | tuple[tuple[Element, ...], ...] = b""
    length: int | None = None


def element(keyword: str, value: bytes | Sequence[Sequence[Element]], vr: str = "") -> Element:
    """By its keyword; text is padded to an even length."""
    tag, usual = _known(keyword)
    if not isinstance(value, bytes):
        return Element(tag, "SQ", tuple(tuple(item) for item in value))
    vr = vr or usual
    pad = b"\0" if vr in ("UI", "OB", "OW") else b" "
    return Element(tag, vr, value + pad * (len(value) % 2))


@cache
def _known(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag, dictionary_VR(tag)[:2]


def encode(elements: Sequence[Element], *, explicit: bool = True, little: bool = True) -> bytes:
    """A data set; sequences have undefined lengths unless they claim another."""
    order, written = "<" if little else ">", b""
    for one in elements:
        if isinstance(one.value, bytes):
            value, length = one.value, len(one.value) if one.length is None else one.length
        else:
            items = [encode(item, explicit=explicit, little=little) for item in one.value]
            value = b"".join(struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
            value += struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
            length = UNDEFINED if one.length is None else one.length
        head = struct.pack(f"{order}HH", one.tag >> 16, one.tag & 0xFFFF)
        if not explicit:
            written += head + struct.pack(f"{order}I", length) + value
        elif one.vr in LONG:
            written += head + one.vr.encode() + struct.pack(f"{order}HI", 0, length) + value
        else:
            written += head + one.vr.encode() + struct.pack(f"{order}H", length & 0xFFFF) + value
    return written


def part10(elements: Sequence[Element], syntax: str = ExplicitVRLittleEndian, *, media: bytes = b"") -> bytes:
    """A file with preamble and meta information in the encoding that its transfer syntax says."""
    body = encode(elements, explicit=syntax != ImplicitVRLittleEndian, little=syntax != ExplicitVRBigEndian)
    if syntax == DeflatedExplicitVRLittleEndian:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    meta = [element("TransferSyntaxUID", syntax.encode())]
    if media:
        meta.insert(0, element("MediaStorageSOPClassUID", media))
    group = encode(meta)
    return bytes(128) + b"DICM" + encode([Element(0x00020000, "UL", struct.pack("<I", len(group)))]) + group + body


# -- what can be wrong with them ---------------------------------------------------------------------------------


def spoilt(elements: Sequence[Element]) -> st.SearchStrategy[list[Element]]:
    """The data set with one to four things wrong in it."""
    return st.lists(st.tuples(_CHANGES, st.integers(0, 10_000)), min_size=1, max_size=4).map(
        lambda changes: _apply(list(elements), changes)
    )


def bytes_of(elements: Sequence[Element]) -> st.SearchStrategy[bytes]:
    """Such data sets as files, now and then cut off or in an encoding that is not the one they name."""
    return st.builds(
        _written, spoilt(elements), st.sampled_from(SYNTAXES), st.one_of(st.none(), st.none(), st.integers(1, 400))
    )


def _written(elements: list[Element], syntax: str, short: int | None) -> bytes:
    return part10(elements, syntax)[: -short if short else None]


_VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.binary(max_size=40))
_LENGTHS = st.sampled_from((0, 1, 7, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, UNDEFINED))
_STRANGERS = st.builds(
    Element,
    st.one_of(
        st.integers(0, 0xFFFFFFFF), st.sampled_from((0x00091001, 0x00090010, 0x50003000, 0x60003000, 0x7FE00008))
    ),
    st.sampled_from(VRS),
    st.one_of(_VALUES, st.just(((),)), st.just(((Element(0x00100010, "PN", b"Doe^Jane"),), ()))),
)
_CHANGES = st.one_of(
    st.tuples(st.just("value"), _VALUES),
    st.tuples(st.just("value"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("vr"), st.sampled_from(VRS)),
    st.tuples(st.just("length"), _LENGTHS),
    st.tuples(st.just("drop"), st.none()),
    st.tuples(st.just("twice"), st.none()),
    st.tuples(st.just("insert"), _STRANGERS),
    st.tuples(st.just("wrap"), st.integers(1, 70)),
)


def _apply(elements: list[Element], changes: list[tuple[tuple[str, object], int]]) -> list[Element]:
    for (kind, what), where in changes:
        if elements:
            _change(elements, where % len(elements), kind, what)
    return elements


def _change(elements: list[Element], place: int, kind: str, what: object) -> None:
    one = elements[place]
    if not isinstance(one.value, bytes) and one.value and place % 3:
        # Into the sequence: what lies within is wrong more often than that it is there.
        items = [list(item) for item in one.value]
        inner = items[place % len(items)]
        if inner:
            _change(inner, (place * 7 + len(str(what))) % len(inner), kind, what)
        elements[place] = replace(one, value=tuple(map(tuple, items)))
    elif kind == "drop":
        del elements[place]
    elif kind == "twice":
        elements.insert(place, one)
    elif kind == "insert":
        assert isinstance(what, Element)
        elements.insert(place, what)
    elif kind == "wrap":
        assert isinstance(what, int)
        for _ in range(what):
            one = Element(0x00081140, "SQ", ((one,),))
        elements[place] = one
    else:
        elements[place] = replace(one, **{kind: what})  # type: ignore[arg-type]
