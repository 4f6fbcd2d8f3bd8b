"""Reception: rows follow what was kept, once each, through outages, kills and floods, on both databases."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from models.errors import HeaderError, ServiceUnavailableError, StoreBusyError
from models.pseudonyms import Pseudonymizer
from tasks.receive import indexing, reception
from tasks.receive.indexing import Index
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import STALE_SECONDS, Spool, Stored
from tasks.stores.tables import ArrivalRow, CursorRow, InstanceRow, QuarantineRow, now
from tests.components import until
from tests.tasks.receive.samples import encoded, instance, write
from tests.tasks.stores.conftest import database_url, postgres  # noqa: F401


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:  # noqa: F811
    opened = Catalog(database_url)
    yield opened
    opened.close()


def take(to: Reception | Spool, ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> Stored:
    put = to.take if isinstance(to, Reception) else to.write
    command = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    return put([encoded(ds, syntax)], transfer_syntax=syntax, **command)


def arrival(catalog: Catalog, study: str) -> ArrivalRow:
    found = catalog.get(ArrivalRow, study)
    assert found
    return found


@pytest.mark.fault("receive/resend")
def test_rows_follow_and_a_resend_changes_nothing(reception: Reception, catalog: Catalog) -> None:
    first = instance()
    study = first.StudyInstanceUID
    stored = take(reception, first)
    take(reception, instance(study))
    reception.flush()
    row = catalog.get(InstanceRow, stored.instance)
    assert row
    assert (row.study, row.sop_uid, row.source) == (stored.study, stored.sop_uid, "listener")
    assert (row.modality, row.sop_class, row.bytes) == ("CT", stored.sop_class, stored.bytes)
    before = arrival(catalog, stored.study)
    assert (before.waiting, before.conflicts, before.told_at, before.source) == (2, 0, None, "listener")
    assert not take(reception, first).new
    reception.flush()
    assert arrival(catalog, stored.study) == before
    assert catalog.count(InstanceRow) == 2


@pytest.mark.fault("receive/other-pixels")
def test_one_uid_with_two_contents_is_flagged_and_both_are_kept(reception: Reception, catalog: Catalog) -> None:
    ds = instance()
    study = take(reception, ds).study
    take(reception, instance(ds.StudyInstanceUID))
    take(reception, ds, ImplicitVRLittleEndian)  # the same instance in another encoding is other bytes
    reception.flush()
    assert arrival(catalog, study).conflicts == 1
    ds.PatientComments = "third"
    take(reception, ds)
    reception.flush()
    found = arrival(catalog, study)
    assert (found.waiting, found.conflicts) == (4, 1)


def test_told_whole_comes_after_what_came_before(reception: Reception, catalog: Catalog) -> None:
    ds = instance()
    study = take(reception, ds).study
    reception.told_whole(ds.StudyInstanceUID)
    reception.flush()
    found = arrival(catalog, study)
    assert found.told_at is not None
    assert found.told_at >= found.last_at
    catalog.change(ArrivalRow, ArrivalRow.study == study, waiting=0, told_at=None)  # as a completed version leaves it
    reception.told_whole(ds.StudyInstanceUID)
    take(reception, instance(ds.StudyInstanceUID))
    reception.flush()
    late = arrival(catalog, study)
    assert (late.waiting, late.told_at) == (1, None)
    assert late.first_at == late.last_at > found.last_at


def test_what_was_refused_is_told_without_identities(reception: Reception, catalog: Catalog, tmp_path: Path) -> None:
    ds = instance()
    uid = ds.SOPInstanceUID
    with pytest.raises(HeaderError):
        reception.take(
            [encoded(ds)], sop_class=ds.SOPClassUID, sop_instance="1.2.3", transfer_syntax=ExplicitVRLittleEndian
        )
    (tmp_path / "note.txt").write_text("not DICOM")
    with pytest.raises(HeaderError):
        reception.take_file(tmp_path / "note.txt")
    reception.flush()
    (row,) = catalog.find(QuarantineRow)
    assert (row.stage, row.reason, row.instances) == ("receive", "sop-mismatch", 1)
    assert reception.spool.quarantined(row.subject).is_file()
    assert uid not in row.what
    assert catalog.count(InstanceRow) == 0


def test_files_are_taken_by_their_content(reception: Reception, catalog: Catalog, tmp_path: Path) -> None:
    ds = instance()
    stored = take(reception, ds)
    (path,) = write(tmp_path / "in", ds)
    assert reception.take_file(path).instance == stored.instance
    reception.flush()
    assert catalog.count(InstanceRow) == 1


def test_recover_indexes_what_was_killed_before_its_row(
    reception: Reception, spool: Spool, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reception.recover() == 0
    study = instance().StudyInstanceUID
    lost = [take(spool, instance(study)) for _ in range(3)]
    assert reception.recover() == 3
    assert {row.instance for row in catalog.find(InstanceRow)} == {s.instance for s in lost}
    assert arrival(catalog, lost[0].study).waiting == 3
    assert reception.recover() == 0
    cursor = catalog.get(CursorRow, "spool")
    assert cursor
    catalog.change(CursorRow, CursorRow.name == "spool", value=repr(float(cursor.value) + 3 * STALE_SECONDS))
    monkeypatch.setattr(reception, "_recover_folder", lambda folder: pytest.fail("an unchanged folder was searched"))
    assert reception.recover() == 0


def test_recover_removes_in_the_end_what_a_killed_writer_left(reception: Reception, spool: Spool) -> None:
    left = take(spool, instance()).path.parent / ".left.part"
    left.touch()
    reception.recover()
    assert left.exists()
    long_ago = spool.clock() - STALE_SECONDS - 60
    os.utime(left, (long_ago, long_ago))
    reception.recover()
    assert not left.exists()


def test_recover_goes_on_past_a_broken_file(
    reception: Reception, spool: Spool, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    stored = take(spool, instance())
    (stored.path.parent / f"{'a' * 64}.dcm").write_bytes(b"broken")
    assert reception.recover() == 1
    assert "a" * 64 in caplog.text
    assert catalog.count(InstanceRow) == 1


def test_an_outage_loses_nothing_and_is_told_once(
    reception: Reception, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away, tried = threading.Event(), threading.Event()
    write_rows = Index.write
    away.set()

    def failing(self: Index, batch: list[indexing.News]) -> None:
        if away.is_set():
            tried.set()
            raise ServiceUnavailableError("the catalog's database does not answer", where="catalog")
        write_rows(self, batch)

    monkeypatch.setattr(Index, "write", failing)
    with caplog.at_level(logging.WARNING):
        stored = [take(reception, instance()) for _ in range(3)]
        assert tried.wait(180)
        with pytest.raises(StoreBusyError):
            reception.flush(timeout=0.5)
        away.clear()
        reception.flush()
    assert {row.instance for row in catalog.find(InstanceRow)} == {s.instance for s in stored}
    assert caplog.text.count("wait for the catalog") == 1
    assert "takes rows again" in caplog.text


def test_a_flood_during_an_outage_is_found_in_the_spool(
    reception: Reception, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.receive.reception.PENDING_LIMIT", 2)
    away = threading.Event()
    away.set()
    write_rows = Index.write

    def failing(self: Index, batch: list[indexing.News]) -> None:
        if away.is_set():
            raise ServiceUnavailableError("the catalog's database does not answer", where="catalog")
        write_rows(self, batch)

    monkeypatch.setattr(Index, "write", failing)
    ds = instance()
    stored = [take(reception, instance(ds.StudyInstanceUID)) for _ in range(6)]
    reception.told_whole(ds.StudyInstanceUID)
    away.clear()
    reception.flush()
    assert {row.instance for row in catalog.find(InstanceRow)} == {s.instance for s in stored}
    assert arrival(catalog, stored[0].study).waiting == 6


def test_one_row_that_the_catalog_refuses_does_not_stop_the_others(
    reception: Reception, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = Index._row
    bad = instance(Modality="MR")
    monkeypatch.setattr(
        Index, "_row", lambda self, news: row(self, news) | ({"study": None} if news.stored.modality == "MR" else {})
    )
    kept = [take(reception, ds) for ds in (instance(), bad, instance())]
    reception.flush()
    assert {r.instance for r in catalog.find(InstanceRow)} == {kept[0].instance, kept[2].instance}
    assert "refuses the row" in caplog.text
    assert bad.SOPInstanceUID not in caplog.text


def test_two_sources_with_the_same_instances_at_once(
    catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer
) -> None:
    study = instance().StudyInstanceUID
    datasets = [instance(study, seed=n) for n in range(12)]

    def work(source: str) -> None:
        with Reception(catalog, spool, pseudonymizer, source=source) as one:
            for ds in datasets if source == "a" else reversed(datasets):
                take(one, ds)
            one.flush()

    threads = [threading.Thread(target=work, args=(source,)) for source in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert catalog.count(InstanceRow) == 12
    found = arrival(catalog, pseudonymizer.uid(study))
    assert (found.waiting, found.conflicts) == (12, 0)


def test_closing_writes_what_is_pending(catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer) -> None:
    with Reception(catalog, spool, pseudonymizer, source="folder") as one:
        stored = take(one, instance())
    assert catalog.get(InstanceRow, stored.instance)


@pytest.mark.fault("stores/locked")
def test_a_locked_catalog_is_waited_for(
    tmp_path: Path, spool: Spool, pseudonymizer: Pseudonymizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.stores.catalog.BUSY_SECONDS", 0.2)
    monkeypatch.setattr(reception, "_LONGEST_PAUSE", 0.2)
    locked = Catalog(f"sqlite:///{tmp_path / 'locked.db'}")
    with (
        closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as other,
        Reception(locked, spool, pseudonymizer, source="listener") as one,
    ):
        other.execute("BEGIN IMMEDIATE")
        stored = take(one, instance())
        with pytest.raises(StoreBusyError):
            one.flush(timeout=1)
        other.execute("ROLLBACK")
        until(lambda: locked.get(InstanceRow, stored.instance), "the row of an instance")
    row = arrival(locked, stored.study)
    assert now() - row.last_at < timedelta(minutes=5)
    locked.close()
