"""The listener, with real senders: what each gets for an answer, and what is there afterwards."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from models.errors import ServiceUnavailableError
from models.hospital import Caller
from models.hospital import Listener as Settings
from models.pseudonyms import Pseudonymizer
from tasks.receive import listener as listener_module
from tasks.receive.listener import Listener, supported_contexts
from tasks.receive.reception import Reception
from tasks.receive.relay import EventRelay
from tasks.stores import spool as spool_module
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tasks.stores.tables import ArrivalRow, InstanceRow, QuarantineRow
from tests.components import dcmtk, needs, until
from tests.tasks.receive.peer import PATIENCE, associate, sender
from tests.tasks.receive.samples import encoded, instance, write
from tests.tasks.receive.test_relay import Server

ENVIRONMENT = os.environ | {"TCP_NODELAY": "1"}
Listen = Callable[..., Listener]


@pytest.fixture
def listen(reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer) -> Iterator[Listen]:
    """Starts listeners on free ports."""
    started: list[Listener] = []

    def start(**values: object) -> Listener:
        settings = Settings.model_validate({"port": 0, "free_bytes": 0} | values)
        started.append(Listener(settings, reception, catalog, pseudonymizer))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


@contextmanager
def associated(
    listener: Listener, *, title: str = "SCU", syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,)
) -> Iterator[Association]:
    ae = sender(title)
    ae.add_requested_context(Verification)
    for syntax in syntaxes:
        ae.add_requested_context(CTImageStorage, syntax)
    assoc = associate(ae, listener.port)
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def status(assoc: Association, ds: Dataset) -> int:
    answer = assoc.send_c_store(ds)
    return int(answer.Status) if "Status" in answer else -1


def sent(program: str, listener: Listener, *arguments: str) -> subprocess.CompletedProcess[str]:
    needs(program)
    command = [
        dcmtk(program),
        "-v",
        "-ta",
        f"{PATIENCE:.0f}",
        *arguments[:-1],
        "127.0.0.1",
        str(listener.port),
        *arguments[-1:],
    ]
    return subprocess.run(
        [part for part in command if part], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE
    )


def test_dcmtk_echoes_and_stores(
    listen: Listen, reception: Reception, catalog: Catalog, spool: Spool, tmp_path: Path
) -> None:
    listener = listen()
    assert sent("echoscu", listener, "").returncode == 0
    datasets = [instance(seed=n) for n in range(3)]
    write(tmp_path / "in", *datasets)
    done = sent("storescu", listener, "+sd", str(tmp_path / "in"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Received Store Response (Success)") == 3
    reception.flush()
    rows = catalog.find(InstanceRow)
    assert {row.sop_uid for row in rows} == {reception._pseudonymizer.uid(ds.SOPInstanceUID) for ds in datasets}
    for row in rows:
        spool.verify(spool.path(row.study, row.instance))
    again = sent("storescu", listener, "+sd", str(tmp_path / "in"))
    assert again.returncode == 0
    figures = listener.figures()
    assert (figures["received"], figures["kept"], figures["resent"], figures["refused"]) == (6, 3, 3, 0)
    assert (figures["accepted"], figures["rejected"]) == (3, 0)
    until(lambda: listener.figures()["connections"] == 0, "connections to end")


def test_every_encoding_arrives_as_it_was_sent(listen: Listen, spool: Spool, reception: Reception) -> None:
    listener = listen()
    syntaxes = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless)
    for syntax in (ExplicitVRLittleEndian, *syntaxes):
        ds = instance(side=300, PatientComments=str(syntax))
        if syntax == JPEG2000Lossless:
            ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(50_000)])
            ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            encoded(ds, syntax)  # settles the order of bytes
        with associated(listener, syntaxes=(syntax,)) as assoc:
            assert status(assoc, ds) == 0
    reception.flush()
    kept = {str(pydicom.dcmread(path).file_meta.TransferSyntaxUID) for path in spool.root.rglob("*.dcm")}
    assert kept == {str(ExplicitVRLittleEndian), *map(str, syntaxes)}
    for path in spool.root.rglob("*.dcm"):
        spool.verify(path)
        assert pydicom.dcmread(path).PatientComments == pydicom.dcmread(path).file_meta.TransferSyntaxUID


def test_every_storage_class_is_offered() -> None:
    contexts = {str(context.abstract_syntax): context for context in supported_contexts()}
    assert len(contexts) > 170
    retired_nuclear_medicine, segmentation = "1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.66.4"
    for uid in (retired_nuclear_medicine, segmentation):
        assert {ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless} <= set(
            contexts[uid].transfer_syntax
        )
        assert contexts[uid].transfer_syntax[0] == ExplicitVRLittleEndian


@pytest.mark.fault("receive/other-pixels")
def test_one_uid_with_other_bytes_is_kept_twice_and_flagged(
    listen: Listen, reception: Reception, catalog: Catalog
) -> None:
    ds = instance()
    with associated(listen()) as assoc:
        assert status(assoc, ds) == 0
        assert status(assoc, ds) == 0
        ds.PatientComments = "another"
        assert status(assoc, ds) == 0
    reception.flush()
    assert catalog.count(InstanceRow) == 2
    (found,) = catalog.find(ArrivalRow)
    assert (found.waiting, found.conflicts) == (2, 1)


@pytest.mark.fault("receive/uid-mismatch")
def test_what_cannot_be_filed_is_set_aside_and_the_association_goes_on(
    listen: Listen, reception: Reception, catalog: Catalog, spool: Spool
) -> None:
    listener = listen()
    with associated(listener) as assoc:
        lacking = instance()
        del lacking.StudyInstanceUID
        answer = assoc.send_c_store(lacking)
        assert answer.Status == 0xC000
        assert "Study Instance UID" in answer.ErrorComment
        lying = instance()
        request = lying.SOPInstanceUID
        lying.file_meta.MediaStorageSOPInstanceUID = request
        answer = send_as(assoc, lying, "1.2.3.4")
        assert answer.Status == 0xA900
        assert status(assoc, instance()) == 0
    reception.flush()
    assert {row.reason for row in catalog.find(QuarantineRow)} == {"no-uid", "sop-mismatch"}
    assert all(spool.quarantined(row.subject).is_file() for row in catalog.find(QuarantineRow))
    assert listener.figures()["quarantined"] == 2


def send_as(assoc: Association, ds: Dataset, sop_instance: str) -> Dataset:
    """C-STORE whose command names another instance than its data set."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    request = C_STORE()
    request.MessageID, request.Priority = 7, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, sop_instance
    request.DataSet = BytesIO(encoded(ds))
    (context,) = [c.context_id for c in assoc.accepted_contexts if c.abstract_syntax == ds.SOPClassUID]
    assert context
    assoc._reactor_checkpoint.clear()
    until(lambda: assoc._is_paused, "the reactor to pause")
    assoc.dimse.send_msg(request, context)
    _, answer = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    assert answer
    found = Dataset()
    found.Status = answer.Status
    return found


@pytest.mark.fault("receive/disk-full")
def test_a_full_disk_fails_the_instance_and_not_the_association(
    listen: Listen, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    real = spool_module._write

    def write_some(descriptor: int, *buffers: bytes | memoryview) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device", str(spool.root))
        real(descriptor, *buffers)

    monkeypatch.setattr(spool_module, "_write", write_some)
    listener = listen()
    with associated(listener) as assoc:
        assert status(assoc, instance(side=400)) == 0
        full.set()
        answer = assoc.send_c_store(instance(side=400))
        assert answer.Status == 0xA700
        assert str(spool.root) not in answer.ErrorComment
        full.clear()
        assert status(assoc, instance(side=400)) == 0
    assert len(list(spool.root.rglob("*.dcm"))) == 2
    assert not list(spool.root.rglob("*.part"))


@pytest.mark.fault("receive/disk-full")
def test_a_disk_that_is_really_full(catalog: Catalog, pseudonymizer: Pseudonymizer, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        spool = Spool(small / "spool", pseudonymizer)
        with (
            Reception(catalog, spool, pseudonymizer, source="listener") as reception,
            Listener(Settings(port=0, free_bytes=0), reception, catalog, pseudonymizer) as listener,
            associated(listener) as assoc,
        ):
            answers = [status(assoc, instance(side=400, seed=n)) for n in range(6)]
            assert answers == [0, 0, 0, 0xA700, 0xA700, 0xA700]
            assert assoc.send_c_echo().Status == 0
            assert status(assoc, instance(side=64)) == 0
            reception.flush()
        assert catalog.count(InstanceRow) == 4
        for path in spool.root.rglob("*.dcm"):
            spool.verify(path)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


@pytest.mark.fault("receive/endless")
def test_an_instance_that_is_too_large_is_refused_and_the_next_one_is_not(listen: Listen, spool: Spool) -> None:
    listener = listen(max_instance_bytes=1 << 20)
    with associated(listener) as assoc:
        assert status(assoc, instance(side=800)) == 0xA700
        assert status(assoc, instance(side=400)) == 0
    assert len(list(spool.root.rglob("*.dcm"))) == 1
    with associated(listener) as assoc:
        assert status(assoc, instance(side=1200)) == -1  # more than twice the limit: it would never end
    assert listener.figures()["received"] == 3


@pytest.mark.fault("receive/watermark")
def test_below_the_watermark_no_association_is_accepted_and_it_is_told_once(listen: Listen, catalog: Catalog) -> None:
    listener = listen(free_bytes=1 << 62)
    done = sent("echoscu", listener, "")
    assert done.returncode != 0
    assert "Congestion" in done.stderr
    assert listener.figures()["rejected"] == 1
    with associated(listener) as assoc:
        assert assoc.is_rejected
    server = Server()
    relay = EventRelay(catalog, server.api)
    assert 1 <= relay.run_due() <= 2  # twice where the hour has just ended
    relay.close()
    server.shutdown()
    assert server.posted[0]["event"] == "nocturne.spool.full"
    assert server.posted[0]["payload"]["wanted_bytes"] == 1 << 62


def test_a_spool_that_is_away_rejects_instead_of_accepting(
    listen: Listen, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> int:
        raise ServiceUnavailableError("the spool is away", where="spool")

    listener = listen()
    monkeypatch.setattr(spool, "free_bytes", away)
    with associated(listener) as assoc:
        assert assoc.is_rejected
    monkeypatch.undo()
    with associated(listener) as assoc:
        assert assoc.is_established


@pytest.mark.fault("receive/unknown-caller")
@pytest.mark.parametrize(
    ("callers", "accepted"),
    [
        ([Caller(ae_title="SCU")], True),
        ([Caller(ae_title="SCU", addresses=("10.0.0.0/8", "127.0.0.0/8"))], True),
        ([Caller(ae_title="OTHER")], False),
        ([Caller(ae_title="OTHER", addresses=("127.0.0.1",)), Caller(ae_title="SCU", addresses=("10.0.0.1",))], False),
    ],
)
def test_only_callers_on_the_list_get_in(listen: Listen, callers: list[Caller], accepted: bool) -> None:
    listener = listen(callers=callers)
    with associated(listener) as assoc:
        assert assoc.is_established == accepted
        assert assoc.is_rejected != accepted
        if accepted:
            assert assoc.send_c_echo().Status == 0


@pytest.mark.fault("receive/unknown-caller")
def test_an_address_that_no_caller_has_is_cut_off_at_once(listen: Listen) -> None:
    listener = listen(callers=[Caller(ae_title="SCU", addresses=("10.0.0.0/8",))])
    with socket.create_connection(("127.0.0.1", listener.port), timeout=PATIENCE) as probe:
        assert probe.recv(1) == b""
    assert listener.figures()["turned_away"] == 1


def test_associations_are_counted_per_address_and_in_all(listen: Listen) -> None:
    listener = listen(associations=3, associations_per_peer=2)
    with associated(listener), associated(listener):
        with associated(listener) as third:
            assert third.is_rejected
        assert listener.figures()["associations"] == 2
    until(lambda: listener.figures()["associations"] == 0, "associations to end")
    with associated(listener) as again:
        assert again.is_established


def test_stopping_lets_an_instance_finish_and_ends_the_association(
    listen: Listen, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "STOP_SECONDS", PATIENCE)
    listener = listen()
    taking, go = threading.Event(), threading.Event()
    write_spool = spool.write

    def slow(*parts: object, **command: object) -> object:
        taking.set()
        go.wait(PATIENCE)
        return write_spool(*parts, **command)  # type: ignore[arg-type]

    spool.write = slow  # type: ignore[method-assign, assignment]
    found: list[int] = []
    with associated(listener) as assoc:
        sending = threading.Thread(target=lambda: found.append(status(assoc, instance())))
        sending.start()
        assert taking.wait(PATIENCE)
        stopping = threading.Thread(target=listener.stop)
        stopping.start()
        go.set()
        stopping.join(PATIENCE)
        sending.join(PATIENCE)
        assert found == [0]
        until(lambda: not assoc.is_established, "the association to end")
    assert len(list(spool.root.rglob("*.dcm"))) == 1


def test_a_port_that_is_taken_is_told(listen: Listen) -> None:
    taken = listen().port
    with pytest.raises(ServiceUnavailableError, match="cannot listen"):
        listen(port=taken)
