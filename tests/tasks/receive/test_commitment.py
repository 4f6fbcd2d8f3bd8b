"""Storage commitment, asked and answered, on one association and on two, with pynetdicom and with Orthanc."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pynetdicom import AE, build_role
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from models.errors import StoreBusyError
from models.hospital import Listener as Settings
from models.pseudonyms import Pseudonymizer
from tasks.receive import commitment
from tasks.receive.commitment import CLASS_CONFLICT, NO_SUCH_INSTANCE, Requester
from tasks.receive.listener import Listener
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tasks.stores.tables import ArrivalRow, CommitmentRow, InstanceRow
from tests.components import part10, running_orthanc, until
from tests.tasks.receive.peer import PATIENCE, Answers, ask, associate, of, opened, reference, requester, unhurried
from tests.tasks.receive.samples import instance
from tests.tasks.receive.test_listener import Listen, status
from tests.tasks.receive.test_listener import listen as listen


def test_what_is_safe_is_committed_and_its_study_is_told_whole(
    listen: Listen,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
) -> None:
    answers, transaction = Answers(), generate_uid()
    datasets = [instance("1.2.3.4", seed=n) for n in range(3)]
    with opened(listen().port, answers) as assoc:
        assert [status(assoc, ds) for ds in datasets] == [0, 0, 0]
        assert ask(assoc, *map(of, datasets), transaction=transaction) == 0
        kind, told = answers.next()
    assert (kind, told.TransactionUID) == (1, transaction)
    assert {item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence} == {
        d.SOPInstanceUID for d in datasets
    }
    assert "FailedSOPSequence" not in told
    found = catalog.get(ArrivalRow, pseudonymizer.uid("1.2.3.4"))
    until(lambda: catalog.get(ArrivalRow, pseudonymizer.uid("1.2.3.4")).told_at, "the study to be told whole")  # type: ignore[union-attr]
    assert found
    assert found.waiting == 3


def test_what_is_missing_or_of_another_class_is_named(
    listen: Listen,
    catalog: Catalog,
    spool: Spool,
    reception: Reception,
    pseudonymizer: Pseudonymizer,
) -> None:
    answers = Answers()
    kept, gone, never = instance("1.2.3.4"), instance("1.2.3.4", seed=1), instance()
    with opened(listen().port, answers) as assoc:
        assert status(assoc, kept) == status(assoc, gone) == 0
        reception.flush()
        (row,) = catalog.find(InstanceRow, InstanceRow.sop_uid == pseudonymizer.uid(gone.SOPInstanceUID))
        spool.path(row.study, row.instance).unlink()
        assert ask(assoc, of(kept), of(gone), of(never), (MRImageStorage, str(kept.SOPInstanceUID))) == 0
        kind, told = answers.next()
    assert kind == 2
    assert [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence] == [kept.SOPInstanceUID]
    assert {(str(i.ReferencedSOPInstanceUID), i.FailureReason) for i in told.FailedSOPSequence} == {
        (str(gone.SOPInstanceUID), NO_SUCH_INSTANCE),
        (str(never.SOPInstanceUID), NO_SUCH_INSTANCE),
        (str(kept.SOPInstanceUID), CLASS_CONFLICT),
    }
    found = catalog.get(ArrivalRow, pseudonymizer.uid("1.2.3.4"))
    assert found
    assert found.told_at is None  # not whole: something is missing


def test_a_requester_need_not_wait_for_one_answer_before_it_asks_again(listen: Listen) -> None:
    answers = Answers()
    transactions = [generate_uid() for _ in range(12)]
    with opened(listen().port, answers) as assoc:
        unhurried(assoc)
        datasets = [instance(seed=n) for n in range(4)]
        for turn, transaction in enumerate(transactions):
            assert status(assoc, datasets[turn % 4]) == 0
            assert ask(assoc, of(datasets[turn % 4]), transaction=transaction) == 0
        told = [answers.next() for _ in transactions]
        assert assoc.is_established
    assert {kind for kind, _ in told} == {1}
    assert {result.TransactionUID for _, result in told} == set(transactions)


def test_requests_that_make_no_sense_are_refused(listen: Listen) -> None:
    answers = Answers()
    with opened(listen().port, answers) as assoc:
        assert ask(assoc, of(instance()), action=2) == 0x0123
        assert ask(assoc, (CTImageStorage, "not a UID")) == 0x0115
        assert ask(assoc, of(instance()), transaction="x") == 0x0115
        assert ask(assoc, of(instance())) == 0
        assert answers.next()[0] == 2


def test_a_requester_that_has_gone_is_called(
    reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "_RELEASE_SECONDS", PATIENCE)
    answers = Answers()
    mine = AE("SCU")
    mine.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    server = mine.start_server(("127.0.0.1", 0), block=False, evt_handlers=answers.handlers)
    assert server
    settings = Settings(port=0, free_bytes=0)
    places = {"SCU": Requester("127.0.0.1", server.server_address[1])}
    ds = instance()
    try:
        with (
            Listener(settings, reception, catalog, pseudonymizer, requesters=places) as listener,
            opened(listener.port, Answers()) as assoc,
        ):
            assert status(assoc, ds) == 0
            assert ask(assoc, of(ds)) == 0
            assoc.release()
            kind, told = answers.next()
            assert kind == 1
            assert told.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
            answers.settle()
    finally:
        server.shutdown()


@contextmanager
def reporting(listener: Listener, *, role: bool) -> Iterator[Association]:
    """A PACS that opens an association to us for its answer."""
    ae = requester()
    roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if role else []
    assoc = associate(ae, listener.port, ext_neg=roles)
    assert assoc.is_established
    try:
        yield assoc
    finally:
        assoc.release()


def result(transaction: str, *, failed: tuple[str, ...] = ()) -> Dataset:
    told = Dataset()
    told.TransactionUID = transaction
    told.ReferencedSOPSequence = [reference(CTImageStorage, "1.2.3")]
    if failed:
        told.FailedSOPSequence = [reference(CTImageStorage, sop) for sop in failed]
        for item in told.FailedSOPSequence:
            item.FailureReason = NO_SUCH_INSTANCE
    return told


@pytest.mark.parametrize("role", [True, False])
def test_what_a_pacs_answers_to_us_is_kept(
    listen: Listen,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
    role: bool,
) -> None:
    transaction, other = generate_uid(), generate_uid()
    catalog.add(*(CommitmentRow(transaction=pseudonymizer.uid(t), delivery="d") for t in (transaction, other)))
    with reporting(listen(), role=role) as assoc:
        send = (StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        answer, _ = assoc.send_n_event_report(result(transaction), 1, *send)
        assert answer.Status == 0
        answer, _ = assoc.send_n_event_report(result(other, failed=("1.2.4",)), 2, *send)
        assert answer.Status == 0
        answer, _ = assoc.send_n_event_report(result(generate_uid()), 1, *send)
        assert answer.Status == 0x0110
        answer, _ = assoc.send_n_event_report(reference(CTImageStorage, "1.2.3"), 1, *send)
        assert answer.Status == 0x0115
    whole = catalog.get(CommitmentRow, pseudonymizer.uid(transaction))
    partly = catalog.get(CommitmentRow, pseudonymizer.uid(other))
    assert whole
    assert partly
    assert whole.answered_at is not None
    assert (whole.failed, partly.failed) == ([], [pseudonymizer.uid("1.2.4")])


def test_a_catalog_that_is_away_is_a_processing_failure(
    listen: Listen,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(*_: object, **__: object) -> int:
        raise StoreBusyError("locked", where="catalog")

    monkeypatch.setattr(catalog, "change", busy)
    with reporting(listen(), role=True) as assoc:
        answer, _ = assoc.send_n_event_report(
            result(generate_uid()), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        assert answer.Status == 0x0110


# -- Orthanc ------------------------------------------------------------------------------------------------------


def test_orthanc_asks_and_is_answered_and_answers(
    reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer, tmp_path: Path
) -> None:
    """Orthanc always ends the association after asking, and opens one of its own to answer."""
    ds = instance("1.2.3.4")
    settings = Settings(port=0, free_bytes=0)
    with running_orthanc(tmp_path) as orthanc:
        places = {"ORTHANC": Requester("127.0.0.1", orthanc.dicom_port)}
        with Listener(settings, reception, catalog, pseudonymizer, requesters=places) as listener:
            orthanc.know("NOCTURNE", listener.port)
            stored = orthanc.upload(part10(ds))
            with orthanc.client() as client:
                sent = client.post(
                    "/modalities/nocturne/store", json={"Resources": [stored], "StorageCommitment": True}
                ).raise_for_status()
                asked = sent.json()["StorageCommitmentTransactionUID"]
            report = until(
                lambda: (r := orthanc.get(f"/storage-commitment/{asked}"))["Status"] != "Pending" and r, "a report"
            )
            assert report["Status"] == "Success"
            assert report["Success"][0]["SOPInstanceUID"] == ds.SOPInstanceUID
            until(
                lambda: (row := catalog.get(ArrivalRow, pseudonymizer.uid("1.2.3.4"))) and row.told_at,
                "the study to be told whole",
            )

            transaction = generate_uid()
            catalog.add(CommitmentRow(transaction=pseudonymizer.uid(transaction), delivery="d"))
            ae = requester()
            ae.ae_title = "NOCTURNE"
            assoc = associate(ae, orthanc.dicom_port, ae_title="ORTHANC")
            assert assoc.is_established
            assert ask(assoc, of(ds), of(instance()), transaction=transaction) == 0
            assoc.release()
            row = until(
                lambda: (r := catalog.get(CommitmentRow, pseudonymizer.uid(transaction))) and r.answered_at and r,
                "Orthanc's answer",
            )
            assert len(row.failed) == 1


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("AcceptorThread")], "threads to end")
