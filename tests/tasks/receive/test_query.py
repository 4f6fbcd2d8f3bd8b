"""Queries by DIMSE against a real dcmtk archive: what is asked, what is fetched, and what does not come."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from models.errors import ServiceUnavailableError, SettingsError
from models.hospital import Listener as ListenerSettings
from models.hospital import Peer
from models.pseudonyms import Pseudonymizer
from tasks.receive import associations, query, retrieve
from tasks.receive.asking import FoundInstance, FoundSeries, Order, Wanted
from tasks.receive.listener import Listener
from tasks.receive.offers import EVERY_CLASS, MOST_CONTEXTS, STAGES
from tasks.receive.query import DimseArchive
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tasks.stores.tables import InstanceRow
from tests.components import Archive, free_port, phantom_study, running_archive
from tests.tasks.receive.samples import write

OURS = "NOCTURNE"
STUDIES = {number: datetime(2026, 3, number, 8 * number - 8, 30) for number in (1, 2, 3)}
"""On the 1st at 00:30, on the 2nd at 08:30, on the 3rd at 16:30."""


@pytest.fixture(scope="module")
def studies() -> dict[int, list[Dataset]]:
    return {number: phantom_study(number, slices=3, examined=at) for number, at in STUDIES.items()}


@pytest.fixture(scope="module")
def listening() -> int:
    return free_port()


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory, studies: dict[int, list[Dataset]], listening: int
) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    with running_archive(folder, movers={OURS: listening}, options=["+xv"]) as running:
        running.send(*(path for n, study in studies.items() for path in write(folder / str(n), *study)))
        yield running


@pytest.fixture
def opened(archive: Archive, catalog: Catalog, pseudonymizer: Pseudonymizer) -> Iterator[DimseArchive]:
    yield from _opened(archive, catalog, pseudonymizer)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "ARRIVAL_SECONDS", 180.0)
    monkeypatch.setattr(associations, "CONNECT_SECONDS", 180.0)


def _opened(
    archive: Archive, catalog: Catalog, pseudonymizer: Pseudonymizer, **settings: Any
) -> Iterator[DimseArchive]:
    found = DimseArchive(_peer(archive, **settings), catalog, pseudonymizer, ae_title=OURS, destination=OURS)
    yield found
    found.close()


def _peer(archive: Archive, **settings: Any) -> Peer:
    values = {"name": "pacs", "ae_title": archive.ae_title, "host": "127.0.0.1", "port": archive.port, **settings}
    return Peer(**values)


def _orders(series: list[FoundSeries]) -> list[Order]:
    return [Order(one.uid, one.instances, whole=True, modality=one.modality) for one in series]


def test_studies_are_found_by_date_and_matched_by_time(opened: DimseArchive, studies: dict[int, list[Dataset]]) -> None:
    wanted = Wanted(earliest=datetime(2026, 3, 2, 9))
    found = list(opened.studies(wanted))
    assert {study.uid for study in found} == {studies[n][0].StudyInstanceUID for n in (2, 3)}
    assert {study.begun for study in found} == {STUDIES[2], STUDIES[3]}
    assert [wanted.fits(study) for study in sorted(found, key=lambda s: str(s.begun))] == [False, True]


def test_a_study_is_found_by_its_uid(opened: DimseArchive, studies: dict[int, list[Dataset]]) -> None:
    uid = studies[2][0].StudyInstanceUID
    (found,) = opened.studies(Wanted(study_uids=(uid, "1.2.3.4")))
    assert found.uid == uid


def test_too_many_matches_are_asked_for_in_halves(opened: DimseArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that gives no more than one study for one question."""
    asking: Any = opened._find

    def stingy(asked: Dataset) -> list[Dataset]:
        found = asking(asked)
        if len(found) > 1:
            raise query._TooManyError("has too many matches", where="pacs")
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(opened, "_find", stingy)
    found = opened.studies(Wanted(earliest=datetime(2026, 3, 1)))
    assert {study.begun for study in found} == set(STUDIES.values())


def test_series_list_their_instances(opened: DimseArchive, studies: dict[int, list[Dataset]]) -> None:
    (series,) = opened.series(studies[1][0].StudyInstanceUID)
    assert series.modality == "CT"
    assert {one.uid for one in series.instances} == {ds.SOPInstanceUID for ds in studies[1]}


def test_no_match_is_lost_between_two_threads(opened: DimseArchive, studies: dict[int, list[Dataset]]) -> None:
    """pynetdicom's own thread must not take an answer: with threads that switch this often it takes one in fifty."""
    uid, over = studies[1][0].StudyInstanceUID, threading.Event()
    busy = threading.Thread(target=lambda: deque(iter(over.is_set, True), maxlen=0), daemon=True)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    busy.start()
    try:
        counts = [len(series.instances) for _ in range(100) for series in opened.series(uid)]
    finally:
        over.set()
        sys.setswitchinterval(before)
        busy.join()
    assert counts == [3] * 100


def test_c_get_brings_a_series(
    opened: DimseArchive, studies: dict[int, list[Dataset]], reception: Reception, catalog: Catalog, spool: Spool
) -> None:
    uid = studies[2][0].StudyInstanceUID
    fetched = opened.fetch(uid, _orders(opened.series(uid)), reception)
    reception.flush()
    assert (fetched.instances, fetched.new, fetched.failed) == (3, 3, [])
    rows = catalog.find(InstanceRow)
    assert len(rows) == 3
    for row in rows:
        spool.verify(spool.path(row.study, row.instance))


def test_c_get_brings_some_of_a_series(
    opened: DimseArchive,
    studies: dict[int, list[Dataset]],
    reception: Reception,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
) -> None:
    uid = studies[1][0].StudyInstanceUID
    (series,) = opened.series(uid)
    fetched = opened.fetch(uid, [Order(series.uid, series.instances[:2], whole=False)], reception)
    reception.flush()
    assert (fetched.instances, fetched.failed) == (2, [])
    assert {row.sop_uid for row in catalog.find(InstanceRow)} == {
        pseudonymizer.uid(one.uid) for one in series.instances[:2]
    }


def test_a_series_of_several_encodings_comes_as_it_is(
    archive: Archive, opened: DimseArchive, reception: Reception, catalog: Catalog, spool: Spool, shared_data: Path
) -> None:
    files = [shared_data / "series" / "transfer_syntaxes" / f"{number}.dcm" for number in (1, 9)]
    archive.send(*files)
    uid = dcmread(files[0], stop_before_pixels=True).StudyInstanceUID
    fetched = opened.fetch(uid, _orders(opened.series(uid)), reception)
    reception.flush()
    assert (fetched.instances, fetched.failed) == (2, [])
    kept = [dcmread(spool.path(row.study, row.instance)) for row in catalog.find(InstanceRow)]
    assert {ds.file_meta.TransferSyntaxUID for ds in kept} == {ExplicitVRLittleEndian, JPEG2000Lossless}


def test_an_archive_that_does_not_say_what_it_has_is_offered_everything(
    opened: DimseArchive, studies: dict[int, list[Dataset]], reception: Reception
) -> None:
    uid = studies[3][0].StudyInstanceUID
    fetched = opened.fetch(uid, [Order(studies[3][0].SeriesInstanceUID, (), whole=True)], reception)
    assert (fetched.instances, fetched.failed) == (3, [])


def test_what_does_not_come_is_told(
    opened: DimseArchive, studies: dict[int, list[Dataset]], reception: Reception
) -> None:
    uid = studies[3][0].StudyInstanceUID
    (series,) = opened.series(uid)
    absent = FoundInstance("1.2.3.4.5", studies[3][0].SOPClassUID)
    fetched = opened.fetch(uid, [Order(series.uid, (*series.instances, absent), whole=True)], reception)
    assert fetched.instances == 3
    ((reason, what, instances),) = fetched.failed
    assert (reason, instances) == ("retrieve-incomplete", 1)
    assert "1 of 4" in what
    assert uid not in what


def test_a_full_disk_ends_the_pull_with_its_reason(
    opened: DimseArchive,
    studies: dict[int, list[Dataset]],
    reception: Reception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*arguments: Any, **named: Any) -> Any:
        raise ServiceUnavailableError("the spool cannot be written", where="spool", reason="disk-full")

    monkeypatch.setattr(reception, "take", full)
    uid = studies[1][0].StudyInstanceUID
    with pytest.raises(ServiceUnavailableError, match="spool"):
        opened.fetch(uid, _orders(opened.series(uid)), reception)


@pytest.fixture
def moving(archive: Archive, catalog: Catalog, pseudonymizer: Pseudonymizer) -> Iterator[DimseArchive]:
    yield from _opened(archive, catalog, pseudonymizer, retrieve="c-move")


def test_c_move_sends_to_our_listener(
    moving: DimseArchive,
    studies: dict[int, list[Dataset]],
    listening: int,
    reception: Reception,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
) -> None:
    settings = ListenerSettings(host="127.0.0.1", port=listening, ae_title=OURS, free_bytes=0)
    uid = studies[2][0].StudyInstanceUID
    series = moving.series(uid)
    (one,) = series
    with Listener(settings, reception, catalog, pseudonymizer):
        fetched = moving.fetch(uid, [Order(one.uid, one.instances[:1], whole=False)], reception)
        assert (fetched.instances, fetched.new, fetched.failed) == (1, 1, [])
        fetched = moving.fetch(uid, _orders(series), reception)
    assert (fetched.instances, fetched.new, fetched.failed) == (3, 2, [])
    assert {row.sop_uid for row in catalog.find(InstanceRow)} == {
        pseudonymizer.uid(ds.SOPInstanceUID) for ds in studies[2]
    }


def test_c_move_without_a_listener_is_told(
    moving: DimseArchive, studies: dict[int, list[Dataset]], reception: Reception
) -> None:
    uid = studies[2][0].StudyInstanceUID
    fetched = moving.fetch(uid, _orders(moving.series(uid)), reception)
    assert fetched.instances == 0
    ((reason, what, _),) = fetched.failed
    assert reason == "retrieve-incomplete"
    assert "status 0x" in what


def test_c_move_to_someone_else_is_noticed(
    moving: DimseArchive,
    studies: dict[int, list[Dataset]],
    listening: int,
    reception: Reception,
    pseudonymizer: Pseudonymizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The archive reports success, but it sent to another's listener."""
    monkeypatch.setattr(retrieve, "ARRIVAL_SECONDS", 0.5)
    theirs = Catalog(f"sqlite:///{tmp_path / 'theirs.db'}")
    settings = ListenerSettings(host="127.0.0.1", port=listening, ae_title=OURS, free_bytes=0)
    uid = studies[1][0].StudyInstanceUID
    with (
        Reception(theirs, Spool(tmp_path / "theirs", pseudonymizer), pseudonymizer, source="listener") as other,
        Listener(settings, other, theirs, pseudonymizer),
    ):
        fetched = moving.fetch(uid, _orders(moving.series(uid)), reception)
    ((_, what, instances),) = fetched.failed
    assert instances == 3
    assert "is our listener running" in what


def test_many_classes_go_over_several_associations() -> None:
    """Never more than 128 contexts at once, and every instance is ordered exactly once, with its class offered."""
    instances = tuple(FoundInstance(f"1.2.{n}", uid) for n, uid in enumerate(EVERY_CLASS))
    orders = [Order("1.9", instances[:5], whole=True), Order("1.8", instances[5:], whole=True)]
    for offers in STAGES:
        made = list(offers(orders))
        assert all(0 < len(offer.contexts) < MOST_CONTEXTS for offer in made)
        ordered = [one for offer in made for order in offer.orders for one in order.instances]
        assert sorted(one.uid for one in ordered) == sorted(one.uid for one in instances)
        for offer in made:
            offered = {str(context.abstract_syntax) for context in offer.contexts}
            assert {one.sop_class for order in offer.orders for one in order.instances} <= offered


def test_a_class_that_nobody_tells_and_nothing_suggests_is_found_all_the_same(
    opened: DimseArchive, studies: dict[int, list[Dataset]], reception: Reception
) -> None:
    uid = studies[3][0].StudyInstanceUID
    (series,) = opened.series(uid)
    assert {one.sop_class for one in series.instances} == {""}, "else this shows nothing"
    fetched = opened.fetch(uid, [Order(series.uid, series.instances, whole=True, modality="XX")], reception)
    assert (fetched.instances, fetched.new, fetched.failed) == (3, 3, [])


def test_a_peer_that_is_away_is_named(catalog: Catalog, pseudonymizer: Pseudonymizer) -> None:
    peer = Peer(name="pacs", host="127.0.0.1", port=free_port())
    archive = DimseArchive(peer, catalog, pseudonymizer, ae_title=OURS, destination=OURS)
    with pytest.raises(ServiceUnavailableError, match="pacs: does not answer"):
        archive.studies(Wanted(earliest=datetime.now() - timedelta(days=1)))


def test_a_wrong_ae_title_says_what_to_compare(
    archive: Archive, catalog: Catalog, pseudonymizer: Pseudonymizer
) -> None:
    peer = _peer(archive, ae_title="SOMEONE")
    wrong = DimseArchive(peer, catalog, pseudonymizer, ae_title=OURS, destination=OURS)
    with pytest.raises(SettingsError, match=r"pacs: .*AE title"):
        wrong.studies(Wanted(study_uids=("1.2.3",)))
