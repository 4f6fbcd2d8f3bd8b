"""One instance's header, read quickly: 16 KiB of the file and the elements that grouping, checking and decoding need.

pydicom is called only where frames have headers of their own (`tasks.ingest.frames`). Whatever a header claims is
held against the file before anybody allocates by it.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from models.errors import BadInputError, HeaderError
from models.series import (
    DEFLATED_LITTLE,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    InstanceHeader,
    Numbers,
    Plane,
    Source,
    SpacingKind,
)
from tasks.ingest.claims import FREE_EXPANSION_BYTES, check_pixels
from tasks.ingest.elements import PIXELS, Elements, FileStream, MemoryStream, Stream, Walker, looks_explicit
from tasks.ingest.sources import read_source

MAX_INFLATED_BYTES: Final = 4 << 30
_INFLATE_STEP: Final = 1 << 20

_UID = re.compile(r"[0-9.]{1,64}")
_MODALITY_FORM = re.compile(r"[A-Z0-9_]{0,16}")
_CHARSET, _IMAGE_TYPE, _SOP_CLASS, _SOP_UID = 0x00080005, 0x00080008, 0x00080016, 0x00080018
_MODALITY, _STUDY, _SERIES, _PATIENT = 0x00080060, 0x0020000D, 0x0020000E, 0x00100020
_SAMPLES, _PHOTOMETRIC, _PLANAR, _FRAMES, _ROWS, _COLUMNS = (
    0x00280002,
    0x00280004,
    0x00280006,
    0x00280008,
    0x00280010,
    0x00280011,
)
_SPACING, _IMAGER_SPACING, _ALLOCATED, _STORED, _HIGH, _SIGNED = (
    0x00280030,
    0x00181164,
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
)
_INTERCEPT, _SLOPE, _RESCALE_TYPE, _LUT = 0x00281052, 0x00281053, 0x00281054, 0x00283000
_BURNED_IN, _THICKNESS, _BETWEEN, _ECHO_TIME, _TRIGGER = 0x00280301, 0x00180050, 0x00180088, 0x00180081, 0x00181060
_INVERSION, _FLIP, _B_VALUE, _GRADIENT = 0x00180082, 0x00181314, 0x00189087, 0x00189089
_ACQUIRED_AT, _ACQUIRED_DATE, _ACQUIRED_TIME = 0x0008002A, 0x00080022, 0x00080032
_ACQUISITION, _INSTANCE, _POSITION, _ORIENTATION = 0x00200012, 0x00200013, 0x00200032, 0x00200037
_FRAME_OF_REFERENCE, _TEMPORAL, _CONTRAST = 0x00200052, 0x00200100, 0x00180010
_SIEMENS_B, _SIEMENS_DIRECTION, _SIEMENS_MOSAIC, _SIEMENS_19 = 0x0019100C, 0x0019100E, 0x0019100A, 0x00190010
_PER_FRAME = 0x52009230
_WANTED: Final = frozenset(
    {_CHARSET, _IMAGE_TYPE, _SOP_CLASS, _SOP_UID, _MODALITY, _STUDY, _SERIES, _PATIENT, _SAMPLES, _PHOTOMETRIC}
    | {_PLANAR, _FRAMES, _ROWS, _COLUMNS, _SPACING, _IMAGER_SPACING, _ALLOCATED, _STORED, _HIGH, _SIGNED, _INTERCEPT}
    | {_SLOPE, _RESCALE_TYPE, _LUT, _BURNED_IN, _THICKNESS, _BETWEEN, _ECHO_TIME, _TRIGGER, _INVERSION, _FLIP}
    | {_B_VALUE, _GRADIENT, _ACQUIRED_AT, _ACQUIRED_DATE, _ACQUIRED_TIME, _ACQUISITION, _INSTANCE, _POSITION}
    | {_ORIENTATION, _FRAME_OF_REFERENCE, _TEMPORAL, _CONTRAST, _SIEMENS_B, _SIEMENS_DIRECTION, _SIEMENS_MOSAIC}
    | {_SIEMENS_19, _PER_FRAME}
)
_TRANSFER_SYNTAX, _MEDIA_CLASS, _MEDIA_UID = 0x00020010, 0x00020002, 0x00020003
_META = frozenset({_TRANSFER_SYNTAX, _MEDIA_CLASS, _MEDIA_UID})
_DICOMDIR = "1.2.840.10008.1.3.10"


class NotDicomError(HeaderError):
    """Not a DICOM stream; `head` is its beginning."""

    default_reason = "not-dicom"


class DicomdirError(HeaderError):
    """A DICOMDIR: it names instances and is none."""

    default_reason = "dicomdir"


def read_header(source: Source) -> InstanceHeader:
    """The header of the instance at `source`.

    Raises NotDicomError for anything else, HeaderError where it cannot even be told what the instance belongs to.
    A header that is wrong further on comes back with its flaw.
    """
    if source.member is not None:
        data = read_source(source)
        return parse(MemoryStream(data), source, modified=Path(source.path).stat().st_mtime_ns)
    descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotDicomError("not a regular file")
        return parse(FileStream(descriptor, status.st_size), source, modified=status.st_mtime_ns)
    finally:
        os.close(descriptor)


def read_plain(header: InstanceHeader) -> bytes:
    """The whole stream that `header.pixel_offset` counts in: the file's bytes, inflated where they are deflated."""
    return plain(read_source(header.source), header.transfer_syntax)


def plain(data: bytes, transfer_syntax: str) -> bytes:
    """`data` with its data set inflated where the transfer syntax says so. Raises HeaderError for a bomb."""
    if transfer_syntax != DEFLATED_LITTLE:
        return data
    start = _read_meta(MemoryStream(data)).end
    return data[:start] + _inflate(data[start:])


def header_bytes(header: InstanceHeader) -> bytes:
    """The stream up to the pixels, for a reader of the whole header; of a deflated one the bare data set."""
    if header.transfer_syntax == DEFLATED_LITTLE or header.source.member is not None:
        return _readable(read_plain(header)[: header.pixel_offset], header)
    with Path(header.source.path).open("rb") as file:
        return file.read(header.pixel_offset)


def _readable(data: bytes, header: InstanceHeader) -> bytes:
    # The meta information still says "deflated": pydicom would inflate what is inflated.
    return data[_read_meta(MemoryStream(data)).end :] if header.transfer_syntax == DEFLATED_LITTLE else data


def parse(stream: Stream, source: Source, *, modified: int) -> InstanceHeader:
    """As `read_header`, from a stream."""
    meta, size = _read_meta(stream), stream.size
    syntax, start = _text(meta.values.get(_TRANSFER_SYNTAX, b"")), meta.end
    if _text(meta.values.get(_MEDIA_CLASS, b"")) == _DICOMDIR:
        raise DicomdirError("a DICOMDIR")
    if syntax == DEFLATED_LITTLE:
        packed = stream.at(start, stream.size - start)
        stream = MemoryStream(stream.at(0, start)[:start] + _inflate(packed))
    little, explicit, syntax = _encoding(stream.at(start, 8) if start else stream.at(0, 8), syntax)
    try:
        found = Walker(stream, explicit=explicit, little=little).walk(start, _WANTED)
    except struct.error:
        raise HeaderError("the file ends inside its header", reason="truncated-header") from None
    for tag, media in ((_SOP_CLASS, _MEDIA_CLASS), (_SOP_UID, _MEDIA_UID)):
        if not found.values.get(tag):
            found.values[tag] = meta.values.get(media, b"")
    return _Parser(found, little=little).header(stream, source, size, modified, syntax)


def _read_meta(stream: Stream) -> Elements:
    """The file meta information, empty where there is none; its end is where the data set begins.

    Raises NotDicomError.
    """
    head = stream.at(0, 144)
    if head[128:132] == b"DICM":
        start = 132
    elif _is_bare(head):
        start = 0
    else:
        raise NotDicomError("no DICOM file")
    if head[start : start + 2] != b"\x02\x00":
        return Elements(end=start)
    try:
        return Walker(stream, explicit=True, little=True).walk(start, _META, only_group=2)
    except struct.error:
        raise HeaderError("the file ends inside its header", reason="truncated-header") from None


def _is_bare(head: bytes) -> bool:
    """Whether a stream without preamble begins with a plausible first element of file meta or of group 8."""
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    if head[4:6].isalpha():
        return looks_explicit(head)
    (length,) = struct.unpack_from("<I", head, 4)
    return bool(head[:2] == b"\x08\x00" and head[3] == 0 and length <= 1024)


def _encoding(first: bytes, syntax: str) -> tuple[bool, bool, str]:
    """(little endian, explicit, transfer syntax), by the first element where the syntax is silent or lies."""
    if not syntax:
        if first[:2] == b"\x00\x08":
            return False, True, EXPLICIT_BIG
        explicit = looks_explicit(first)
        return True, explicit, EXPLICIT_LITTLE if explicit else IMPLICIT_LITTLE
    if syntax == EXPLICIT_BIG:
        return False, True, syntax
    return True, looks_explicit(first), syntax


def _inflate(packed: bytes) -> bytes:
    """A deflated data set, within limits. Raises HeaderError for a bomb or a broken stream."""
    limit = min(MAX_INFLATED_BYTES, max(FREE_EXPANSION_BYTES, 200 * len(packed)))
    size = used = 0
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while used < len(packed) and not engine.eof and size < limit:  # measured first: a bomb is never held
            part: bytes = packed[used : used + _INFLATE_STEP]
            used += len(part)
            while part and not engine.eof and size < limit:
                size += len(engine.decompress(part, _INFLATE_STEP))
                part = engine.unconsumed_tail
        if engine.eof and size <= limit:
            return zlib.decompress(packed[: used - len(engine.unused_data)], -zlib.MAX_WBITS, max(size, 1))
    except zlib.error:
        raise HeaderError("the deflated data set is broken", reason="bad-deflate") from None
    bomb = size >= limit
    raise HeaderError(
        "the deflated data set unfolds without bound" if bomb else "the deflated data set is cut off",
        reason="deflate-bomb" if bomb else "truncated-header",
    )


class _Parser:
    """Turns the elements of one walk into a header; the first thing that is wrong becomes the header's flaw."""

    def __init__(self, found: Elements, *, little: bool) -> None:
        self._found, self._values = found, found.values
        self._order = "<" if little else ">"
        self._flaw = self._reason = ""

    def header(self, stream: Stream, source: Source, size: int, modified: int, syntax: str) -> InstanceHeader:
        found = self._found
        spacing, spacing_kind = self._spacing()
        header = InstanceHeader(
            source=source,
            size=size,
            modified=modified,
            transfer_syntax=syntax,
            sop_class=self._uid(_SOP_CLASS, required=False),
            sop_uid=self._uid(_SOP_UID),
            study_uid=self._uid(_STUDY),
            series_uid=self._uid(_SERIES),
            patient_id=self._person(),
            modality=self._modality(),
            image_type=self._text(_IMAGE_TYPE),
            burned_in=self._one(_BURNED_IN).upper(),
            frame_of_reference=self._uid(_FRAME_OF_REFERENCE, required=False),
            instance_number=self._integer(_INSTANCE),
            acquired=self._text(_ACQUIRED_AT) or self._text(_ACQUIRED_DATE) + self._text(_ACQUIRED_TIME),
            rows=self._whole(_ROWS),
            columns=self._whole(_COLUMNS),
            frames=self._integer(_FRAMES) or 1,
            samples_per_pixel=self._whole(_SAMPLES) or 1,
            planar_configuration=self._whole(_PLANAR),
            photometric=self._one(_PHOTOMETRIC).upper(),
            bits_allocated=self._whole(_ALLOCATED),
            bits_stored=self._whole(_STORED) or self._whole(_ALLOCATED),
            high_bit=self._whole(_HIGH) if _HIGH in self._values else (self._whole(_STORED) or 1) - 1,
            pixel_representation=self._whole(_SIGNED),
            has_pixels=found.pixel_tag == PIXELS,
            pixel_offset=found.pixel_offset or found.end,
            pixel_length=found.pixel_length if found.pixel_tag else 0,
            pixel_vr=found.pixel_vr,
            spacing_kind=spacing_kind,
            rescale_type=self._one(_RESCALE_TYPE).upper(),
            modality_lut=_LUT in self._values,
            mosaic=self._mosaic(),
            planes=(self._plane(spacing),),
        )
        return self._checked(header, stream)

    def _checked(self, header: InstanceHeader, stream: Stream) -> InstanceHeader:
        planes = header.planes
        if header.rows and not self._found.pixel_tag:
            self._wrong("an image without pixels", "no-pixels")
        if header.has_pixels:
            try:
                check_pixels(header, stream.size)
                if _PER_FRAME in self._values or header.frames > 1 or header.mosaic:
                    from tasks.ingest.frames import planes_of

                    planes = planes_of(
                        header, _readable(stream.at(0, header.pixel_offset)[: header.pixel_offset], header)
                    )
            except BadInputError as error:
                self._wrong(error.what, error.reason)
        if planes is header.planes and not self._reason:
            return header
        return replace(header, planes=planes, flaw=self._flaw, flaw_reason=self._reason)

    # -- values -------------------------------------------------------------------------------------------------

    def _wrong(self, what: str, reason: str) -> None:
        if not self._reason:
            self._flaw, self._reason = what, reason

    def _text(self, tag: int) -> str:
        return _text(self._values.get(tag, b""))

    def _one(self, tag: int) -> str:
        return self._text(tag).partition("\\")[0].strip()

    def _uid(self, tag: int, *, required: bool = True) -> str:
        uid = self._text(tag)
        if not uid and not required:
            return ""
        if not _UID.fullmatch(uid):
            reason = "bad-uid" if uid else "no-uid"
            raise HeaderError(f"element {tag:08X} holds no single valid UID", reason=reason)
        return uid

    def _person(self) -> str:
        raw = self._values.get(_PATIENT, b"")
        if raw.isascii():
            return _text(raw)
        from pydicom.charset import convert_encodings, decode_bytes

        try:
            encodings = convert_encodings(self._text(_CHARSET).split("\\") or [""])
        except ValueError:
            raise HeaderError("SpecificCharacterSet names no character set", reason="bad-character-set") from None
        return str(decode_bytes(raw, encodings, set())).strip(" \0")

    def _whole(self, tag: int) -> int:
        """An unsigned short (US); 0 where there is none."""
        raw = self._values.get(tag, b"")
        return int(struct.unpack_from(self._order + "H", raw)[0]) if len(raw) >= 2 else 0

    def _integer(self, tag: int) -> int | None:
        text = self._one(tag)
        if not text:
            return None
        try:
            return int(float(text))
        except (ValueError, OverflowError):
            self._wrong(f"element {tag:08X} holds no integer", "bad-number")
            return None

    def _numbers(self, tag: int, count: int) -> Numbers:
        """`count` decimals; () where there are none, and a flaw where there are others."""
        text = self._text(tag)
        if not text.replace("\\", "").strip():
            return ()
        with suppress(ValueError):
            values = tuple(map(float, text.split("\\")))
            if len(values) == count and all(map(math.isfinite, values)):
                return values
            if len(values) == count:
                self._wrong(f"element {tag:08X} holds NaN or infinity", "non-finite-geometry")
                return ()
        self._wrong(f"element {tag:08X} does not hold {count} number(s)", "bad-number")
        return ()

    def _number(self, tag: int) -> float | None:
        values = self._numbers(tag, 1)
        return values[0] if values else None

    def _modality(self) -> str:
        """Modality leaves this room as it is: nothing but a code may stand there."""
        text = self._one(_MODALITY).upper()
        if _MODALITY_FORM.fullmatch(text):
            return text
        self._wrong("Modality is no code string", "bad-modality")
        return ""

    # -- groups of values ---------------------------------------------------------------------------------------

    def _spacing(self) -> tuple[Numbers, SpacingKind]:
        kinds: tuple[tuple[int, SpacingKind], ...] = (
            (_SPACING, "PixelSpacing"),
            (_IMAGER_SPACING, "ImagerPixelSpacing"),
        )
        for tag, kind in kinds:
            if (values := self._numbers(tag, 2)) != ():
                if min(values) <= 0:
                    self._wrong(f"{kind} is not positive", "non-finite-geometry")
                    return (), ""
                return values, kind
        return (), ""

    def _plane(self, spacing: Numbers) -> Plane:
        slope, intercept = self._number(_SLOPE), self._number(_INTERCEPT)
        if slope == 0:
            self._wrong("Rescale Slope is zero", "zero-slope")
        return Plane(
            frame=0,
            position=self._numbers(_POSITION, 3),
            orientation=self._numbers(_ORIENTATION, 6),
            spacing=spacing,
            thickness=self._optional(_THICKNESS),
            between=self._optional(_BETWEEN),
            slope=1.0 if slope is None else slope,
            intercept=intercept or 0.0,
            marks=self._marks(),
        )

    def _optional(self, tag: int) -> float | None:
        """A number that nothing depends on: a bad one is as good as none."""
        with suppress(ValueError):
            value = float(self._one(tag))
            return value if math.isfinite(value) else None
        return None

    def _marks(self) -> tuple[str, ...]:
        siemens = self._text(_SIEMENS_19).startswith("SIEMENS MR HEADER")
        b_value = self._double(_B_VALUE) or (self._text(_SIEMENS_B) if siemens else "")
        direction = self._double(_GRADIENT) or (self._double(_SIEMENS_DIRECTION) if siemens else "")
        return (
            self._text(_IMAGE_TYPE),
            "|".join((self._text(_ECHO_TIME), self._text(_INVERSION), self._text(_FLIP))),
            f"{b_value}|{direction}",
            self._text(_TEMPORAL),
            self._text(_CONTRAST),
            self._text(_TRIGGER),
            self._text(_ACQUISITION),
            "",
        )

    def _double(self, tag: int) -> str:
        raw = self._values.get(tag, b"")
        count = len(raw) // 8
        return "\\".join(f"{v:g}" for v in struct.unpack_from(f"{self._order}{count}d", raw)) if count else ""

    def _mosaic(self) -> int:
        """Tiles of a Siemens mosaic, 0 for any other image."""
        if "MOSAIC" not in self._text(_IMAGE_TYPE).split("\\"):
            return 0
        return self._whole(_SIEMENS_MOSAIC) or 1


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").strip(" \0")
