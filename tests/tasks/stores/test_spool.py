"""The spool: what was acknowledged is there whole, names come from nothing in the data, and what is wrong is kept."""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from models.errors import HeaderError, IntegrityError, NotFoundError, ServiceUnavailableError, is_transient
from models.pseudonyms import Pseudonymizer
from tasks.stores import peek
from tasks.stores import spool as spool_module
from tasks.stores.spool import STALE_SECONDS, Spool, Stored, digest_of
from tests.tasks.receive.samples import PATIENT_ID, encoded, instance

NAMES = Pseudonymizer(b"s" * 32)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", NAMES)


def send(
    spool: Spool, ds: Dataset, syntax: str = ExplicitVRLittleEndian, *, part: int = 1 << 16, **said: str
) -> Stored:
    data = encoded(ds, syntax) if syntax != JPEG2000Lossless else encoded(ds)
    command = {"sop_class": ds.SOPClassUID, "sop_instance": ds.SOPInstanceUID, **said}
    return spool.write((data[n : n + part] for n in range(0, len(data), part)), transfer_syntax=syntax, **command)


def files(spool: Spool) -> list[Path]:
    return sorted(path for path in spool.root.rglob("*") if path.is_file())


def resized(ds: Dataset, tag: int, value: bytes) -> bytes:
    """The data set in explicit VR with the value of one UID replaced as it is, padding and all."""
    data = encoded(ds)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"UI"
    at = data.index(head)
    (length,) = struct.unpack_from("<H", data, at + 6)
    return data[:at] + head + struct.pack("<H", len(value)) + value + data[at + 8 + length :]


@pytest.mark.parametrize("part", [7, 1 << 16])
@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        JPEG2000Lossless,
    ],
)
def test_an_instance_is_filed_by_pseudonym_and_digest_and_reads_back(spool: Spool, syntax: str, part: int) -> None:
    ds = instance()
    stored = send(spool, ds, syntax, part=part)
    assert stored.new
    assert (stored.study, stored.series_uid) == (NAMES.uid(ds.StudyInstanceUID), NAMES.uid(ds.SeriesInstanceUID))
    assert (stored.sop_uid, stored.modality) == (NAMES.uid(ds.SOPInstanceUID), "CT")
    assert stored.path == spool.path(stored.study, stored.instance) == files(spool)[0]
    data = encoded(ds, syntax) if syntax != JPEG2000Lossless else encoded(ds)
    assert stored.instance == digest_of(syntax, [data])
    assert stored.bytes == len(data)
    spool.verify(stored.path)
    read = pydicom.dcmread(stored.path)
    assert read.preamble == bytes(128)
    assert (read.file_meta.TransferSyntaxUID, read.PatientID) == (syntax, PATIENT_ID)
    assert read.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert ds.StudyInstanceUID not in str(stored.path)
    assert not (stored.path.stat().st_mode | spool.root.stat().st_mode) & 0o077
    described = spool.describe(stored.path)
    assert described == Stored(**{name: getattr(stored, name) for name in Stored.__slots__} | {"new": False})


def test_sequences_of_every_kind_before_the_uids_are_skipped(spool: Spool) -> None:
    ds = instance()
    ds.ReferencedStudySequence.is_undefined_length = True
    inner = Dataset()
    inner.ReferencedSOPInstanceUID, inner.StudyInstanceUID = "1.2.3", "9.9.9"
    inner.is_undefined_length_sequence_item = True
    deeper = Dataset()
    deeper.add_new(0x00081140, "SQ", [inner])
    deeper[0x00081140].is_undefined_length = True
    deeper.is_undefined_length_sequence_item = True
    ds.ReferencedStudySequence.append(deeper)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        stored = send(spool, ds, syntax, part=5)
        assert stored.study == NAMES.uid(ds.StudyInstanceUID)
    # UN of unknown length holds implicit VR, whatever the data set is encoded in (PS3.5 6.2.2).
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0x0020, 0x000D, 4) + b"1.2\0"
    item += struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = encoded(ds)
    at = data.index(struct.pack("<HH", 0x0010, 0x0010) + b"PN")
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1010, b"UN", 0, 0xFFFFFFFF) + item
    command = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    kept = spool.write([data[:at] + unknown + data[at:]], transfer_syntax=ExplicitVRLittleEndian, **command)
    assert kept.study == NAMES.uid(ds.StudyInstanceUID)


def test_the_same_bytes_are_kept_once_and_other_bytes_beside_them(spool: Spool, tmp_path: Path) -> None:
    ds = instance()
    first = send(spool, ds)
    again = send(spool, ds)
    assert (first.new, again.new, again.instance) == (True, False, first.instance)
    ds.file_meta.ImplementationVersionName = "ANOTHER"
    ds.preamble = b"MZ" + bytes(126)
    ds.save_as(tmp_path / "copy.dcm", enforce_file_format=True)
    assert spool.adopt(tmp_path / "copy.dcm").instance == first.instance
    assert (tmp_path / "copy.dcm").exists()
    ds.PatientComments = "changed"
    other = send(spool, ds)
    assert other.sop_uid == first.sop_uid
    assert other.instance != first.instance
    assert files(spool) == sorted([first.path, other.path])
    assert spool.paths(first.study, [first.instance, other.instance]) == [first.path, other.path]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SOPInstanceUID": None}, "no-uid"),
        ({"StudyInstanceUID": ""}, "no-uid"),
        ({"SeriesInstanceUID": None}, "no-uid"),
    ],
)
def test_a_missing_uid_sets_the_instance_aside(spool: Spool, change: dict[str, str | None], reason: str) -> None:
    ds = instance()
    said = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    for name, value in change.items():
        delattr(ds, name) if value is None else setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPInstanceUID = said["sop_instance"]
    with pytest.raises(HeaderError) as caught:
        spool.write([encoded(ds)], transfer_syntax=ExplicitVRLittleEndian, **said)
    assert caught.value.reason == reason
    (kept,) = files(spool)
    assert kept == spool.quarantined(caught.value.where or "")
    assert pydicom.dcmread(kept).PatientID == PATIENT_ID
    assert said["sop_instance"] not in str(caught.value)


@pytest.mark.parametrize(
    "value", [b"1.2.3\\1.2.4", b"../../../etc/x ", b"1.2." + b"9" * 62, b"1..2", b"1.2.x\0", b"1.2.\0\0", b"1" * 2048]
)
def test_a_uid_that_is_not_one_valid_uid_sets_the_instance_aside(spool: Spool, value: bytes) -> None:
    ds = instance()
    data = resized(ds, 0x0020000D, value)
    with pytest.raises(HeaderError) as caught:
        spool.write(
            [data], sop_class=ds.SOPClassUID, sop_instance=ds.SOPInstanceUID, transfer_syntax="1.2.840.10008.1.2.1"
        )
    assert caught.value.reason == "bad-uid"
    assert [path.parent.name for path in files(spool)] == ["quarantine"]


def test_what_was_sent_as_another_instance_is_set_aside(spool: Spool) -> None:
    ds = instance()
    for said in ({"sop_instance": "1.2.3"}, {"sop_class": "1.2.840.10008.5.1.4.1.1.4"}, {"sop_instance": "../x"}):
        with pytest.raises(HeaderError) as caught:
            send(spool, ds, **said)
        assert caught.value.reason == "sop-mismatch"
    assert len(files(spool)) == 1  # the same bytes each time
    send(spool, ds)


def test_a_repeated_uid_and_file_meta_within_the_data_set_are_refused(spool: Spool) -> None:
    ds = instance()
    data = encoded(ds)
    command = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    at = data.index(struct.pack("<HH", 0x0020, 0x000E) + b"UI")
    twice = data[:at] + struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", 4) + b"1.2\0" + data[at:]
    meta = struct.pack("<HH2sH", 2, 0x0010, b"UI", 18) + b"1.2.840.10008.1.2\0" + data
    for broken, reason in ((twice, "bad-uid"), (meta, "bad-group"), (data[:200], "truncated"), (b"", "no-uid")):
        with pytest.raises(HeaderError) as caught:
            spool.write([broken], transfer_syntax=ExplicitVRLittleEndian, **command)
        assert caught.value.reason == reason
    with pytest.raises(HeaderError) as caught:
        spool.write([data], transfer_syntax=ExplicitVRBigEndian, **command)
    assert caught.value.reason in {"bad-encoding", "bad-group", "bad-uid", "truncated", "no-uid"}


def test_bombs_and_endless_headers_are_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peek, "HEADER_BYTES", 1 << 20)
    command = {"sop_class": "1.2", "sop_instance": "1.2", "transfer_syntax": DeflatedExplicitVRLittleEndian}
    endless = b"".join(struct.pack("<HH2sHL", 0x0009, 0x1000 + n % 256, b"UN", 0, 4) + b"abcd" for n in range(1 << 17))
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(endless) + packer.flush()
    with pytest.raises(HeaderError, match="identifiers"):
        spool.write([bomb], **command)
    with pytest.raises(HeaderError, match="identifiers"):
        spool.write(
            (endless[n : n + 65536] for n in range(0, len(endless), 65536)),
            **command | {"transfer_syntax": "1.2.840.10008.1.2.1"},
        )
    packer = zlib.compressobj(9, wbits=-15)
    short = packer.compress(endless[:16]) + packer.flush()
    with pytest.raises(HeaderError, match="ends before"):
        spool.write([short, b"x" * 100, b"x" * 100], **command)
    deep = struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(HeaderError, match="nested"):
        spool.write([deep * 1000], **command | {"transfer_syntax": ExplicitVRLittleEndian})


def test_what_is_no_instance_is_not_adopted(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    for name in ("text", "pipe"):
        with pytest.raises(HeaderError) as caught:
            spool.adopt(tmp_path / name)
        assert caught.value.reason == "not-dicom"
    with pytest.raises(ServiceUnavailableError) as away:
        spool.adopt(tmp_path / "DOE^JOHN")
    assert "JOHN" not in str(away.value)
    assert files(spool) == []


def test_a_file_whose_meta_information_lies_is_filed_by_its_data_set(spool: Spool, tmp_path: Path) -> None:
    ds = instance()
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.preamble = bytes(128)
    ds.save_as(tmp_path / "a.dcm")
    stored = spool.adopt(tmp_path / "a.dcm")
    assert stored.sop_uid == NAMES.uid(ds.SOPInstanceUID)
    assert pydicom.dcmread(stored.path).file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


@pytest.mark.parametrize("failing", ["_write", "publish"])
def test_a_full_disk_is_transient_and_leaves_nothing_behind(
    spool: Spool, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = instance(side=256)
    send(spool, instance(ds.StudyInstanceUID))
    before = files(spool)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(spool.root))

    with monkeypatch.context() as patched:
        patched.setattr(spool_module, failing, full)
        with pytest.raises(ServiceUnavailableError) as caught:
            send(spool, ds)
    assert caught.value.reason == "disk-full"
    assert is_transient(caught.value)
    assert str(spool.root) not in str(caught.value)
    assert files(spool) == before
    assert send(spool, ds).new


def test_a_sender_that_breaks_off_leaves_nothing_behind(spool: Spool) -> None:
    def parts() -> Iterator[bytes]:
        yield encoded(ds)[:400]
        yield b"x" * 1000
        raise ConnectionResetError("gone")

    ds = instance()
    with pytest.raises(ConnectionResetError):
        spool.write(
            parts(), sop_class=ds.SOPClassUID, sop_instance=ds.SOPInstanceUID, transfer_syntax=ExplicitVRLittleEndian
        )
    assert files(spool) == []


def test_many_threads_with_the_same_and_with_different_instances(spool: Spool) -> None:
    shared, study = instance(), instance().StudyInstanceUID
    stored: list[Stored] = []

    def work(number: int) -> None:
        for n in range(5):
            stored.append(send(spool, shared))
            stored.append(send(spool, instance(study, seed=number * 10 + n)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored) == 60
    assert len({s.instance for s in stored}) == 31 == len(files(spool))
    for path in files(spool):
        spool.verify(path)


def test_keys_that_are_none_and_damage_are_told(spool: Spool) -> None:
    with pytest.raises(NotFoundError):
        spool.path("2.25.1", "../../etc/passwd")
    with pytest.raises(NotFoundError):
        spool.quarantined("x")
    stored = send(spool, instance())
    with stored.path.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\xff" if stored.path.read_bytes()[-1:] != b"\xff" else b"\0")
    with pytest.raises(IntegrityError):
        spool.verify(stored.path)


def test_folders_that_changed_and_what_killed_writers_left(spool: Spool) -> None:
    old = send(spool, instance())
    long_ago = spool.clock() - 2 * STALE_SECONDS
    os.utime(old.path.parent, (long_ago, long_ago))
    moment = spool.clock() - 1
    new = send(spool, instance())
    assert list(spool.folders_since(moment)) == [new.path.parent]
    assert set(spool.folders_since(0)) == {old.path.parent, new.path.parent}
    stale, fresh = new.path.parent / ".stale.part", new.path.parent / ".fresh.part"
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(stale, (long_ago, long_ago))
    assert spool.instances_in(new.path.parent) == [new.path]
    assert fresh.exists()
    assert not stale.exists()
    assert spool.free_bytes() > 0
