"""Hostile and broken files through the whole of ingest, in a process whose memory is its own."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from tests.matrix import Figure, Times
from tests.tasks.ingest.synthetic import image, stack

PEAK_MB = 512
PIXELS = np.arange(30, dtype=np.uint16).reshape(6, 5)


@dataclass(frozen=True)
class Taken:
    """What came of one folder."""

    volumes: int
    reasons: tuple[str, ...]
    peak_mb: float


def take(home: Path, files: Mapping[str, Mapping[str, bytes]]) -> dict[str, Taken]:
    """Write the files of each case into a folder of its name, and ingest them all in one other process."""
    folders = []
    for case, contents in files.items():
        folders.append(folder := home / "in" / case.replace(" ", "-"))
        folder.mkdir(parents=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
    command = [sys.executable, "-m", "tests.faults.taking", str(home / "out"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {case: Taken(n, tuple(reasons), peak) for case, (_, n, reasons, peak) in zip(files, told, strict=True)}


def part10(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def series(count: int = 4, **more: Any) -> dict[str, bytes]:
    return {f"{n}.dcm": part10(ds) for n, ds in enumerate(stack(count, **more))}


def each(files: Mapping[str, bytes], change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    return {name: change(data) for name, data in files.items()}


def one(change: Callable[[Dataset], None], number: int = 1) -> dict[str, bytes]:
    """A series of which one slice is changed."""
    slices = stack(4)
    change(slices[number])
    return {f"{n}.dcm": part10(ds) for n, ds in enumerate(slices)}


def claiming(**values: Any) -> dict[str, bytes]:
    """One image that claims to be what it is not."""
    ds = image(PIXELS)
    for name, value in values.items():
        setattr(ds, name, value)
    return {"0.dcm": part10(ds)}


def deflate_bomb(megabytes: int) -> dict[str, bytes]:
    data = part10(image(PIXELS, syntax=DeflatedExplicitVRLittleEndian))
    start = 132 + 12 + struct.unpack_from("<I", data, 140)[0]
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS), bytes(1 << 20)
    return {"0.dcm": data[:start] + b"".join(packer.compress(zeros) for _ in range(megabytes)) + packer.flush()}


def lying_stream(rows: int) -> dict[str, bytes]:
    """A JPEG 2000 code stream that claims 60,000 × 60,000, in an image of `rows` rows and columns."""
    pixels = np.zeros((64, 64), np.uint16)
    stream = bytearray(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True))
    stream[8:16] = (60000).to_bytes(4, "big") * 2
    ds = image(pixels, syntax=JPEG2000Lossless, encoded=bytes(stream))
    ds.Rows = ds.Columns = rows
    return {"0.dcm": part10(ds)}


def nested(depth: int) -> dict[str, bytes]:
    """Every slice with sequences within sequences, before its Modality."""
    begin = b"\x08\x00\x40\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    end = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)

    def insert(data: bytes) -> bytes:
        place = data.index(b"\x08\x00\x60\x00CS")
        return data[:place] + begin * depth + end * depth + data[place:]

    return each(series(), insert)


def endless_pixels(data: bytes) -> bytes:
    place = data.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    return data[:place] + struct.pack("<I", 0xFFFFFFF0) + data[place + 4 :]


@pytest.mark.fault("files/deflate-bomb")
def test_a_deflate_bomb(tmp_path: Path, times: Times, figure: Figure) -> None:
    megabytes = times(300, full=2048)
    taken = take(tmp_path, {"bomb": deflate_bomb(megabytes)})["bomb"]
    assert (taken.volumes, taken.reasons) == (0, ("deflate-bomb",))
    assert taken.peak_mb < PEAK_MB
    figure(f"{megabytes} MB: peak of the whole process {taken.peak_mb:.0f} MB")


@pytest.mark.fault("files/huge", "files/lying-codec")
def test_claims_that_no_memory_could_hold(tmp_path: Path, figure: Figure) -> None:
    found = take(
        tmp_path,
        {
            "65535 rows and columns": claiming(Rows=65535, Columns=65535),
            "2 to the 31 frames": claiming(NumberOfFrames=2**31 - 1),
            "endless pixels": each(series(), endless_pixels),
            "a code stream beyond its image": lying_stream(64),
            "a code stream as large as its image says": lying_stream(60000),
        },
    )
    for case, taken in found.items():
        assert taken.volumes == 0, case
        assert taken.reasons, case
        assert taken.peak_mb < PEAK_MB, case
    figure(f"{len(found)} claims: peak of the whole process {max(t.peak_mb for t in found.values()):.0f} MB")


@pytest.mark.fault("files/nesting")
def test_sequences_within_sequences(tmp_path: Path) -> None:
    found = take(tmp_path, {f"{depth} deep": nested(depth) for depth in (20, 200, 20_000)})
    assert [(taken.volumes, taken.reasons) for taken in found.values()] == [
        (1, ()),
        (0, ("nesting-too-deep",)),
        (0, ("nesting-too-deep",)),
    ]


def broken() -> dict[str, dict[str, bytes]]:
    whole = part10(image(PIXELS))
    meta = 132 + 12 + struct.unpack_from("<I", whole, 140)[0]
    noise = np.random.default_rng(0).bytes(5000)
    return {
        "truncated pixels": {"0.dcm": whole[:-20]},
        "truncated header": {"0.dcm": whole[: whole.index(b"\x10\x00\x20\x00LO") + 6]},
        "empty": {"0.dcm": b""},
        "random bytes": {"0.dcm": noise},
        "random bytes after DICM": {"0.dcm": bytes(128) + b"DICM" + noise},
        "a length beyond the end": {
            "0.dcm": whole.replace(b"\x10\x00\x20\x00LO\x08\x00", b"\x10\x00\x20\x00LO\xff\xff")
        },
        "no file meta information": {"0.dcm": whole[meta:]},
        "no DICM": {"0.dcm": bytes(128) + b"DICN" + whole[132:]},
    }


NO_DICOM = {"empty", "random bytes", "no DICM", "no file meta information"}
"""Told by the scan as files that are no DICOM, or read without their meta information."""


@pytest.mark.fault("files/broken")
def test_broken_files_are_set_aside_and_a_series_beside_them_is_taken(tmp_path: Path, figure: Figure) -> None:
    cases = broken()
    good = {f"good-{name}": data for name, data in series(series="9").items()}
    found = take(tmp_path, {case: files | good for case, files in cases.items()})
    for case, taken in found.items():
        assert taken.volumes >= 1, case
        assert taken.reasons or case in NO_DICOM, case
    figure(f"{len(found)} kinds of damage, each beside a good series, which was taken")


@pytest.mark.fault("files/charset")
@pytest.mark.parametrize("named", ["ISO_IR 999", "ISO 2022 IR 87\\nonsense", "\\"])
def test_a_character_set_that_is_none(tmp_path: Path, named: str) -> None:
    def change(ds: Dataset) -> None:
        ds.SpecificCharacterSet = named.split("\\")

    (taken,) = take(tmp_path, {"charset": one(change)}).values()
    assert taken.volumes == 1 or taken.reasons


def bad_uids() -> dict[str, dict[str, bytes]]:
    def with_uid(old: str, new: str) -> dict[str, bytes]:
        def change(data: bytes) -> bytes:
            return data.replace(old.encode(), new.encode()[: len(old)].ljust(len(old), b"\0"))

        return each(series(), change)

    there = stack(1)[0]
    long = "1." + "2" * 124

    def longer(ds: Dataset) -> None:
        ds.StudyInstanceUID = long

    return {
        "a path as study": with_uid(there.StudyInstanceUID, "../../../tmp/escape"),
        "a path as series": with_uid(there.SeriesInstanceUID, "/etc/cron.d/escape"),
        "a path as patient": each(series(PatientID="../../../../escape"), bytes),
        "several": with_uid(there.StudyInstanceUID, "1.2\\1.3"),
        "none": with_uid(there.StudyInstanceUID, ""),
        "126 characters": one(longer, 0) | {"1.dcm": b"", "2.dcm": b"", "3.dcm": b""},
    }


@pytest.mark.fault("files/paths", "files/uids")
def test_uids_that_are_paths_several_none_or_too_long(tmp_path: Path, figure: Figure) -> None:
    home = tmp_path / "a" / "b" / "c"
    found = take(home, bad_uids())
    for case, taken in found.items():
        if case == "a path as patient":
            assert taken.volumes == 1, "a patient's identifier is hashed: whatever it says"
        else:
            assert (taken.volumes, bool(taken.reasons)) == (0, True), case
    assert not list(tmp_path.rglob("*escape*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    figure(f"{len(found)} kinds")


def bad_geometry() -> dict[str, dict[str, bytes]]:
    def set_in_one(**values: Any) -> dict[str, bytes]:
        def change(ds: Dataset) -> None:
            for name, value in values.items():
                setattr(ds, name, value)

        return one(change)

    def missing(files: dict[str, bytes]) -> dict[str, bytes]:
        return {name: data for name, data in files.items() if name != "2.dcm"}

    def not_a_number(data: bytes) -> bytes:
        return data.replace(b"0.5\\0.75", b"NaN\\NaN ")

    return {
        "NaN spacing": each(series(), not_a_number),
        "a gap": missing(series(6)),
        "mixed orientation": set_in_one(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "duplicate slices": set_in_one(ImagePositionPatient=[-10, -20, 30]),
        "a rescale that overflows": set_in_one(RescaleSlope="1e308"),
        "spacing of zero": set_in_one(PixelSpacing=[0, 0.75]),
    }


@pytest.mark.fault("files/geometry")
def test_geometry_that_is_none(tmp_path: Path, figure: Figure) -> None:
    found = take(tmp_path, bad_geometry())
    for case, taken in found.items():
        assert taken.volumes == 0, case
        assert taken.reasons, case
    figure("; ".join(f"{case}: {', '.join(taken.reasons)}" for case, taken in found.items()))


@pytest.mark.fault("files/preamble")
@pytest.mark.parametrize("kind", [b"MZ", b"\x7fELF"], ids=["PE", "ELF"])
def test_a_program_in_the_preamble_is_written_nowhere(tmp_path: Path, kind: bytes) -> None:
    program = kind + b"NOTAPROGRAM" * 11

    def begin(data: bytes) -> bytes:
        return program[:128].ljust(128, b"\0") + data[128:]

    (taken,) = take(tmp_path, {"polyglot": each(series(), begin)}).values()
    assert (taken.volumes, taken.reasons) == (1, ())
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"NOTAPROGRAM" in path.read_bytes()]
