from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from models.errors import HeaderError
from models.series import InstanceHeader, Source
from tasks.ingest.elements import MAX_DEPTH, MemoryStream
from tasks.ingest.headers import NotDicomError, header_bytes, parse, read_header, read_plain
from tests.tasks.ingest.synthetic import ROOT, image, write

PIXELS = np.arange(30, dtype=np.uint16).reshape(6, 5)


def encode(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def header_of(data: bytes) -> InstanceHeader:
    return parse(MemoryStream(data), Source("memory"), modified=0)


def refused(data: bytes) -> str:
    """The reason, whether it was raised or came back as a flaw."""
    try:
        return header_of(data).flaw_reason
    except HeaderError as error:
        return error.reason


def real_files(folder: Path) -> list[Path]:
    places = ["series", "odd", "segmentations", "sarcoma/STS_002"]
    files = [p for place in places for p in sorted((folder / place).rglob("*")) if p.is_file() and ".nii" not in p.name]
    return [p for n, p in enumerate(files) if "sarcoma" not in p.parts or n % 7 == 0]


def test_says_what_pydicom_says_of_every_real_file(shared_data: Path) -> None:
    seen, hopeless = 0, []
    for path in real_files(shared_data):
        ds = pydicom.dcmread(path, stop_before_pixels="too_short" in path.name)
        try:
            header = read_header(Source(str(path)))
        except HeaderError as error:
            hopeless.append((path.parent.name, error.reason))
            continue
        seen += 1
        assert header.study_uid == ds.StudyInstanceUID
        assert header.sop_uid == ds.SOPInstanceUID
        assert header.transfer_syntax == ds.file_meta.TransferSyntaxUID
        assert (header.rows, header.columns) == (ds.get("Rows", 0), ds.get("Columns", 0))
        assert header.frames == int(ds.get("NumberOfFrames") or 1)
        assert header.patient_id == str(ds.PatientID).strip()
        plane = header.planes[0]
        if "ImagePositionPatient" in ds and not header.mosaic:
            assert plane.position == tuple(map(float, ds.ImagePositionPatient))
            assert plane.orientation == tuple(map(float, ds.ImageOrientationPatient))
            assert plane.spacing == tuple(map(float, ds.PixelSpacing))
        if "RescaleSlope" in ds:
            assert (plane.slope, plane.intercept) == (float(ds.RescaleSlope), float(ds.RescaleIntercept))
        if "PixelData" in ds and not header.encapsulated:
            data = read_plain(header)
            assert header.pixel_length == len(ds.PixelData)
            assert data[header.pixel_offset : header.pixel_offset + len(ds.PixelData)] == ds.PixelData
        assert InstanceHeader.from_json(header.to_json()) == header
    assert seen > 90
    assert set(hopeless) == {("ct_siemens_jpeg2000", "no-uid"), ("odd", "bad-uid")}


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_reads_every_native_encoding_alike(tmp_path: Path, syntax: str) -> None:
    pixels = PIXELS.astype(">u2") if syntax == ExplicitVRBigEndian else PIXELS
    folder = write(tmp_path, [image(pixels, syntax=syntax, SOPInstanceUID=ROOT + "9")])
    header = read_header(Source(str(folder / "0000.dcm")))
    assert header.sop_uid == ROOT + "9"
    assert header.planes[0].spacing == (0.5, 0.75)
    assert header.flaw == ""
    data = read_plain(header)
    assert data[header.pixel_offset : header.pixel_offset + 60] == pixels.tobytes()
    assert pydicom.dcmread(io.BytesIO(header_bytes(header)), force=True).PatientID == "MRN-4711"


@pytest.mark.parametrize("implicit", [True, False])
def test_a_bare_data_set_is_recognised_by_its_content(implicit: bool) -> None:
    data = encode(image(PIXELS, syntax=ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian))
    bare = data[data.index(b"\x08\x00\x08\x00") :]
    header = header_of(bare)
    assert header.transfer_syntax == (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    assert (header.rows, header.columns) == (6, 5)


@pytest.mark.parametrize("content", [b"", b"DICM", b"{}", bytes(4096), b"\x08\x00" * 40, b"\x7fELF" + bytes(500)])
def test_other_files_are_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.dcm").write_bytes(content)
    with pytest.raises(NotDicomError):
        read_header(Source(str(tmp_path / "image.dcm")))


def test_elements_beyond_the_first_read_are_found(tmp_path: Path) -> None:
    ds = image(PIXELS)
    ds.add_new(0x00090010, "LO", "MAKER")
    ds.add_new(0x00091001, "OB", bytes(300_000))
    ds.ReferencedImageSequence = Sequence([Dataset() for _ in range(2000)])
    ds["ReferencedImageSequence"].is_undefined_length = True
    write(tmp_path, [ds])
    header = read_header(Source(str(tmp_path / "0000.dcm")))
    assert (header.rows, header.columns, header.flaw) == (6, 5, "")


# -- hostile headers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Rows": 65535, "Columns": 65535}, "truncated-pixels"),
        ({"NumberOfFrames": 2_000_000}, "bad-dimensions"),
        ({"NumberOfFrames": -3}, "bad-dimensions"),
        ({"NumberOfFrames": 3}, "truncated-pixels"),
        ({"Rows": 0}, "bad-dimensions"),
        ({"Rows": 5}, "pixel-length-mismatch"),
        ({"BitsAllocated": 12}, "unsupported-pixels"),
        ({"BitsStored": 20}, "bad-bits"),
        ({"HighBit": 3}, "bad-bits"),
        ({"SamplesPerPixel": 4}, "unsupported-pixels"),
        ({"RescaleSlope": 0}, "zero-slope"),
    ],
)
def test_implausible_claims_become_a_flaw(changes: dict[str, int], reason: str) -> None:
    assert refused(encode(image(PIXELS, **changes))) == reason


@pytest.mark.parametrize(
    ("keyword", "text", "reason"),
    [
        ("ImagePositionPatient", b"nan\\0\\0", "non-finite-geometry"),
        ("PixelSpacing", b"inf\\1", "non-finite-geometry"),
        ("PixelSpacing", b"-1\\1", "non-finite-geometry"),
        ("PixelSpacing", b"0.5\\x", "bad-number"),
        ("ImageOrientationPatient", b"1\\0\\0", "bad-number"),
        ("RescaleIntercept", b"NaN", "non-finite-geometry"),
    ],
)
def test_numbers_that_are_none_become_a_flaw(keyword: str, text: bytes, reason: str) -> None:
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    data = encode(image(PIXELS))
    start = data.index(struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, b"DS"))
    end = start + 8 + struct.unpack_from("<H", data, start + 6)[0]
    text += b" " * (len(text) % 2)
    assert refused(data[: start + 6] + struct.pack("<H", len(text)) + text + data[end:]) == reason


@pytest.mark.parametrize("uid", ["1.2\\1.3", "1." * 40 + "1", "not-a-uid", ""])
@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID"])
def test_uids_must_be_single_and_valid(uid: str, keyword: str) -> None:
    ds = image(PIXELS)
    ds[keyword]._value = uid.split("\\") if "\\" in uid else uid
    assert refused(encode(ds)) in ("bad-uid", "no-uid")


def test_compressed_pixels_that_claim_gigabytes_are_refused() -> None:
    ds = image(PIXELS, syntax=JPEG2000Lossless, encoded=b"\xff\x4f" + bytes(50), Rows=65535, Columns=65535)
    assert refused(encode(ds)) == "implausible-size"
    assert refused(encode(image(PIXELS, syntax=RLELossless, encoded=b"x" * 64, NumberOfFrames=99_999))) == ""


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        return (b"\x08\x00\x40\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * depth

    data = encode(image(PIXELS))
    start = data.index(b"\x08\x00\x60\x00CS")
    assert refused(data[:start] + nested(MAX_DEPTH + 1) + data[start:]) == "nesting-too-deep"
    assert refused(data[:start] + nested(100_000) + data[start:]) == "nesting-too-deep"


def test_a_deflate_bomb_is_refused_early() -> None:
    data = encode(image(PIXELS, syntax=DeflatedExplicitVRLittleEndian))
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(200 << 20)) + packer.flush()
    assert refused(data[:start] + bomb) == "deflate-bomb"


def test_a_length_beyond_the_end_is_refused() -> None:
    data = encode(image(PIXELS))
    place = data.index(b"\x10\x00\x20\x00LO")
    assert refused(data[:place] + b"\x10\x00\x20\x00UN\0\0\xf0\xff\xff\x7f" + data[place + 8 :]) == "truncated-header"


def test_a_file_cut_anywhere_never_passes_as_whole() -> None:
    data = encode(image(PIXELS))
    for end in range(0, len(data) - 1, 7):
        with contextlib.suppress(HeaderError):
            header = header_of(data[:end])
            assert header.flaw_reason or not header.has_pixels


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4))
def test_damage_raises_header_errors_alone(changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(encode(image(PIXELS)))
    for where, content in changes:
        place = 128 + int(where * (len(data) - 135))
        data[place : place + len(content)] = content
    with contextlib.suppress(HeaderError):
        header_of(bytes(data))
