"""DICOMweb against a real Orthanc, and against servers that do as some others do."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydicom.dataset import Dataset

from models.errors import HeaderError, ServiceUnavailableError, SettingsError
from models.hospital import Peer
from tasks.receive import dicomweb as module
from tasks.receive.asking import LostError, Order, Wanted
from tasks.receive.dicomweb import DicomwebArchive
from tasks.receive.reception import Reception
from tasks.receive.streams import boundary_of, open_file, split_multipart
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool, digest_of
from tasks.stores.tables import InstanceRow
from tests.components import Orthanc, _orthanc, free_port, orthanc, part10, phantom_study  # noqa: F401
from tests.tasks.receive.samples import instance

FIRST, SECOND = datetime(2026, 3, 1, 8), datetime(2026, 3, 2, 16, 30)


@pytest.fixture
def archive(orthanc: Orthanc) -> Iterator[DicomwebArchive]:  # noqa: F811
    peer = Peer(name="pacs", url=orthanc.dicomweb, user=orthanc.user, password=orthanc.password)  # type: ignore[arg-type]
    opened = DicomwebArchive(peer)
    yield opened
    opened.close()


@pytest.fixture
def studies(orthanc: Orthanc) -> list[list[Dataset]]:  # noqa: F811
    found = [phantom_study(1, slices=3, examined=FIRST), phantom_study(2, slices=3, examined=SECOND)]
    orthanc.upload_all(part10(ds) for study in found for ds in study)
    return found


def _orders(archive: DicomwebArchive, study: str) -> list[Order]:
    return [Order(one.uid, one.instances, whole=True) for one in archive.series(study)]


def test_studies_are_found_page_by_page(
    archive: DicomwebArchive, studies: list[list[Dataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    found = list(archive.studies(Wanted(earliest=FIRST)))
    assert {study.uid for study in found} == {study[0].StudyInstanceUID for study in studies}
    assert {study.begun for study in found} == {FIRST, SECOND}
    assert {study.modalities for study in found} == {("CT",)}


def test_studies_are_found_by_date_modality_and_uid(archive: DicomwebArchive, studies: list[list[Dataset]]) -> None:
    assert [study.begun for study in archive.studies(Wanted(earliest=SECOND))] == [SECOND]
    assert list(archive.studies(Wanted(earliest=FIRST, modality="MR"))) == []
    uid = studies[0][0].StudyInstanceUID
    assert [study.uid for study in archive.studies(Wanted(study_uids=("1.2.3", uid)))] == [uid]


def test_a_series_comes_byte_for_byte(
    archive: DicomwebArchive, studies: list[list[Dataset]], reception: Reception, catalog: Catalog, spool: Spool
) -> None:
    uid = studies[1][0].StudyInstanceUID
    fetched = archive.fetch(uid, _orders(archive, uid), reception)
    reception.flush()
    assert (fetched.instances, fetched.new, fetched.failed) == (3, 3, [])
    rows = catalog.find(InstanceRow)
    assert {row.instance for row in rows} == {_digest(ds) for ds in studies[1]}
    for row in rows:
        spool.verify(spool.path(row.study, row.instance))


def test_single_instances_come_too(
    archive: DicomwebArchive, studies: list[list[Dataset]], reception: Reception, catalog: Catalog
) -> None:
    uid = studies[0][0].StudyInstanceUID
    (order,) = _orders(archive, uid)
    fetched = archive.fetch(uid, [Order(order.series, order.instances[1:], whole=False)], reception)
    reception.flush()
    assert (fetched.instances, fetched.failed) == (2, [])
    assert catalog.count(InstanceRow) == 2


def test_what_was_deleted_meanwhile_is_told(
    archive: DicomwebArchive,
    studies: list[list[Dataset]],
    reception: Reception,
    orthanc: Orthanc,  # noqa: F811
) -> None:
    uid = studies[0][0].StudyInstanceUID
    orders = _orders(archive, uid)
    orthanc.clear()
    fetched = archive.fetch(uid, orders, reception)
    assert fetched.instances == 0
    ((reason, what, instances),) = fetched.failed
    assert (reason, instances) == ("retrieve-incomplete", 3)
    assert uid not in what


def test_a_wrong_password_says_what_to_do(orthanc: Orthanc) -> None:  # noqa: F811
    peer = Peer(name="pacs", url=orthanc.dicomweb, user="nocturne", password="wrong")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"pacs: .*password"):
        list(DicomwebArchive(peer).studies(Wanted(earliest=FIRST)))


def test_a_server_that_is_away_is_named_and_the_data_are_not() -> None:
    archive = DicomwebArchive(Peer(name="pacs", url=f"http://127.0.0.1:{free_port()}/dicom-web"))
    with pytest.raises(ServiceUnavailableError, match="pacs: does not answer") as caught:
        archive.series("1.2.3.4711")
    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(SettingsError, match="URL"):
        DicomwebArchive(Peer(name="pacs", url="pacs.example")).series("1.2")


# -- servers of other kinds ---------------------------------------------------------------------------------------


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[DicomwebArchive]:
    """A server whose every answer `answer` writes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *arguments: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    archive = DicomwebArchive(Peer(name="pacs", url=f"http://127.0.0.1:{server.server_port}"))
    try:
        yield archive
    finally:
        archive.close()
        server.shutdown()
        server.server_close()


def reply(
    handler: BaseHTTPRequestHandler, body: bytes, kind: str, status: int = 200, length: int | None = None
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_server_that_gives_the_same_page_for_ever_is_not_asked_for_ever() -> None:
    page = json.dumps([{"0020000D": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(3)]).encode()
    with serving(lambda handler: reply(handler, page, "application/dicom+json")) as archive:
        assert [study.uid for study in archive.studies(Wanted(earliest=FIRST))] == ["1.2.0", "1.2.1", "1.2.2"]


def test_something_else_at_the_address_says_so() -> None:
    with (
        serving(lambda handler: reply(handler, b"<html>hello</html>", "text/html")) as archive,
        pytest.raises(SettingsError, match="url"),
    ):
        archive.series("1.2.3")


def test_a_single_instance_sent_as_it_is_and_in_a_fixed_encoding_is_taken(reception: Reception) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Accept"])
        if "transfer-syntax" in asked[-1]:
            reply(handler, b"", "text/plain", status=406)
        else:
            reply(handler, part10(instance()), "application/dicom")

    with serving(answer) as archive:
        fetched = archive.fetch("1.2", [Order("1.3", (), whole=True)], reception)
    assert (fetched.instances, fetched.failed) == (1, [])
    assert len(asked) == 2


def test_an_answer_that_breaks_off_keeps_what_was_whole_and_is_told(
    reception: Reception, catalog: Catalog, spool: Spool
) -> None:
    files = [part10(instance(side=500)) for _ in range(3)]
    body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files) + b"--x--"
    cut = body[: len(body) - len(files[2]) // 2]

    for length in (len(cut), len(body)):  # with and without the server's own word for it
        with serving(lambda h, n=length: reply(h, cut, "multipart/related; boundary=x", length=n)) as archive:
            fetched = archive.fetch("1.2", [Order("1.3", (), whole=True)], reception)
        assert fetched.instances == 2
        ((reason, _, _),) = fetched.failed
        assert reason == "retrieve-incomplete"
    reception.flush()
    assert catalog.count(InstanceRow) == 2
    assert len(list(spool.root.rglob("*.dcm"))) == 2
    assert list(spool.root.rglob("*.part")) == []


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10**6])
def test_multipart_is_cut_wherever_the_chunks_end(size: int) -> None:
    bodies = [b"first\r\n--nearly", b"", b"\r\n\r\nthird" * 50]
    message = (
        b"preamble\r\n"
        + b"".join(b"--b=1\r\nA: b\r\nC: d\r\n\r\n" + body + b"\r\n" for body in bodies)
        + b"--b=1--\r\n"
    )
    chunks = [message[start : start + size] for start in range(0, len(message), size)]
    assert [b"".join(part) for part in split_multipart(chunks, b"b=1")] == bodies
    assert sum(1 for _ in split_multipart(chunks, b"b=1")) == 3, "parts may be left unread"
    with pytest.raises(LostError):
        deque(split_multipart(chunks[: len(chunks) // 2], b"b=1"))


def test_boundaries_are_read_as_servers_write_them() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b"') == b"a b"
    assert boundary_of("Multipart/Related;boundary=x;type=application/dicom") == b"x"
    assert boundary_of("application/dicom") is None
    assert boundary_of("") is None


@pytest.mark.parametrize("size", [1, 13, 10**6])
def test_a_file_is_known_as_soon_as_its_identifiers_are(size: int) -> None:
    ds = instance()
    file = part10(ds)
    chunks = (file[start : start + size] for start in range(0, len(file), size))
    incoming = open_file(chunks)
    assert incoming.known
    assert (incoming.known.sop, incoming.known.study) == (ds.SOPInstanceUID, ds.StudyInstanceUID)
    assert b"".join(incoming.parts) == file[144 + int.from_bytes(file[140:144], "little") :]


@pytest.mark.parametrize("file", [b"", b"DICM", bytes(128) + b"DICM", bytes(128) + b"DICM\2\0\0\0UL\4\0", b"x" * 999])
def test_what_is_no_file_is_refused(file: bytes) -> None:
    with pytest.raises(HeaderError):
        open_file([file])


def _digest(ds: Dataset) -> str:
    file = part10(ds)
    return digest_of(str(ds.file_meta.TransferSyntaxUID), [file[144 + int.from_bytes(file[140:144], "little") :]])
