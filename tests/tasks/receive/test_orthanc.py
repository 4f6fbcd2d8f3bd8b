"""Orthanc's changes feed, read from a real Orthanc."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from models.errors import ServiceUnavailableError, SettingsError
from models.hospital import OrthancFeed
from models.pseudonyms import Pseudonymizer
from tasks.receive import orthanc as module
from tasks.receive.orthanc import OrthancWatcher
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool, digest_of
from tasks.stores.tables import (
    AnalysisRow,
    ArrivalRow,
    CursorRow,
    DatasetRecord,
    DeliveryRow,
    InstanceRow,
    PackageRow,
    QuarantineRow,
    StudyVersionRow,
)
from tests.components import Orthanc, _orthanc, orthanc, part10, phantom_study, segmentation_of, until  # noqa: F401
from tests.tasks.receive.samples import instance


class Desk:
    """Watchers of one Orthanc, and what reached the catalog."""

    def __init__(self, pacs: Orthanc, reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer) -> None:
        self.orthanc, self.reception, self.catalog, self.pseudonymizer = pacs, reception, catalog, pseudonymizer
        self._open: list[OrthancWatcher] = []

    def watcher(self, **settings: Any) -> OrthancWatcher:
        values = {
            "name": "pacs",
            "url": self.orthanc.url,
            "user": self.orthanc.user,
            "password": self.orthanc.password,
            **settings,
        }
        self._open.append(OrthancWatcher(OrthancFeed(**values), self.reception, self.catalog, self.pseudonymizer))
        return self._open[-1]

    def uids(self) -> set[str]:
        return {row.sop_uid for row in self.catalog.find(InstanceRow)}

    def pseudonyms(self, *datasets: Dataset) -> set[str]:
        return {self.pseudonymizer.uid(ds.SOPInstanceUID) for ds in datasets}

    def close(self) -> None:
        for watcher in self._open:
            watcher.close()


@pytest.fixture
def reception(catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer) -> Iterator[Reception]:
    with Reception(catalog, spool, pseudonymizer, source="pacs") as opened:
        yield opened


@pytest.fixture
def desk(
    orthanc: Orthanc,  # noqa: F811
    reception: Reception,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
) -> Iterator[Desk]:
    opened = Desk(orthanc, reception, catalog, pseudonymizer)
    yield opened
    opened.close()


def test_what_was_there_before_is_taken_only_when_asked_for(desk: Desk) -> None:
    old, new = phantom_study(1), phantom_study(2)
    desk.orthanc.upload_all(map(part10, old))
    watcher, everything = desk.watcher(), desk.watcher(name="all", from_start=True)
    assert watcher.look() == 0
    desk.orthanc.upload_all(map(part10, new))
    assert watcher.look() == len(new)
    assert watcher.look() == 0
    assert desk.uids() == desk.pseudonyms(*new)
    assert everything.look() == len(old) + len(new)
    assert desk.uids() == desk.pseudonyms(*old, *new)


def test_instances_come_byte_for_byte(desk: Desk, spool: Spool) -> None:
    study = phantom_study(2)
    desk.watcher().look()
    desk.orthanc.upload_all(map(part10, study))
    assert desk.watcher().look() == len(study)
    for row in desk.catalog.find(InstanceRow):
        spool.verify(spool.path(row.study, row.instance))
    sent = {_digest(ds) for ds in study}
    assert {row.instance for row in desk.catalog.find(InstanceRow)} == sent


def test_a_stable_study_is_told_to_be_whole(desk: Desk) -> None:
    study = phantom_study(1)
    watcher = desk.watcher()
    watcher.look()
    desk.orthanc.upload_all(map(part10, study))
    key = desk.pseudonymizer.uid(study[0].StudyInstanceUID)

    def told() -> bool:
        watcher.look()
        row = desk.catalog.get(ArrivalRow, key)
        return row is not None and row.told_at is not None and row.told_at >= row.last_at

    until(told, "StableStudy reaches the catalog")
    row = desk.catalog.get(ArrivalRow, key)
    assert row
    assert row.waiting == len(study)


def test_a_study_is_told_whole_before_its_late_instance_comes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in one page of the feed: the order in which Orthanc tells them is kept."""
    first, late = phantom_study(1)[:3], phantom_study(1)[3:]
    watcher = desk.watcher()
    watcher.look()
    desk.orthanc.upload_all(map(part10, first))
    until(lambda: "StableStudy" in _kinds(desk.orthanc), "Orthanc holds the study to be stable")
    desk.orthanc.upload_all(map(part10, late))
    order: list[str] = []
    taking, telling = desk.reception.take, desk.reception.told_whole
    monkeypatch.setattr(desk.reception, "take", lambda *a, **k: (order.append("take"), taking(*a, **k))[1])
    monkeypatch.setattr(desk.reception, "told_whole", lambda uid: (order.append("told"), telling(uid))[1])
    told = [_WHAT_IS_DONE[kind] for kind in _kinds(desk.orthanc) if kind in _WHAT_IS_DONE]
    told = told[: len(told) - told[::-1].index("take")]  # up to the late one: that it is stable then may come later
    assert watcher.look() == 4
    assert "told" in told
    assert order[: len(told)] == told


def test_an_interruption_reads_again_and_misses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    study = phantom_study(1, slices=6)
    watcher = desk.watcher()
    watcher.look()
    before = desk.catalog.get(CursorRow, "orthanc:pacs")
    desk.orthanc.upload_all(map(part10, study))
    taking, calls = desk.reception.take, iter(range(100))

    def fails(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 3:
            raise ServiceUnavailableError("the spool cannot be written", where="spool", reason="disk-full")
        return taking(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(desk.reception, "take", fails)
        with pytest.raises(ServiceUnavailableError, match="spool"):
            watcher.look()
    assert desk.catalog.get(CursorRow, "orthanc:pacs") == before
    desk.watcher().look()  # as after a restart
    assert desk.uids() == desk.pseudonyms(*study)
    assert desk.catalog.count(InstanceRow) == len(study)


def test_an_instance_deleted_meanwhile_is_passed_over_and_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    study = phantom_study(1)
    watcher = desk.watcher()
    watcher.look()
    deleted, *_ = desk.orthanc.upload_all(map(part10, study))
    following = watcher._follow

    def late(changes: Any) -> int:
        watcher._follow = following  # type: ignore[method-assign]
        desk.orthanc.delete(f"/instances/{deleted}")
        return following(changes)

    watcher._follow = late  # type: ignore[method-assign]
    assert watcher.look() == len(study) - 1
    assert desk.uids() == desk.pseudonyms(*study[1:])
    assert "deleted before it was fetched" in caplog.text
    assert deleted not in caplog.text
    assert study[0].SOPInstanceUID not in caplog.text


def test_deleting_everything_does_not_start_over(desk: Desk) -> None:
    watcher = desk.watcher()
    watcher.look()
    desk.orthanc.upload_all(map(part10, phantom_study(1)))
    assert watcher.look() == 4
    desk.orthanc.clear()
    assert watcher.look() == 0
    desk.orthanc.upload_all(map(part10, phantom_study(2)))
    assert watcher.look() == 4


def test_an_emptied_orthanc_is_read_from_its_start(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    study, few = phantom_study(1, slices=8), phantom_study(2, slices=2)
    watcher = desk.watcher()
    watcher.look()
    desk.orthanc.upload_all(map(part10, study))
    assert watcher.look() == 8
    desk.orthanc.stop()
    with pytest.raises(ServiceUnavailableError, match="pacs"):
        watcher.look()
    desk.orthanc.empty()
    desk.orthanc.upload_all(map(part10, few))
    assert watcher.look() == 2
    assert desk.uids() == desk.pseudonyms(*study, *few)
    assert "from the start" in caplog.text


def test_a_new_database_that_has_grown_past_the_old_one_is_noticed(desk: Desk) -> None:
    desk.orthanc.upload_all(map(part10, phantom_study(1)))
    last = desk.orthanc.get("/changes?last")["Last"]
    desk.catalog.add(CursorRow(name="orthanc:pacs", value=f"{last} 20010203T040506"))
    assert desk.watcher().look() == 4


def test_our_own_results_are_not_fetched_back(desk: Desk) -> None:
    study = phantom_study(1)
    ours = segmentation_of(study)
    theirs = segmentation_of(study)
    theirs.SOPInstanceUID = theirs.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    key = desk.pseudonymizer.uid(study[0].StudyInstanceUID)
    objects = [{"kind": "seg", "uid": desk.pseudonymizer.uid(ours.SOPInstanceUID)}]
    desk.catalog.add(
        DatasetRecord(dataset="d", name="d", kind="segmentation", classes=[], counts={}),
        PackageRow(package="p", name="m", dataset="d", weights_sha256=""),
        StudyVersionRow(version="v", study=key, number=1, instances=[], why="told"),
        AnalysisRow(analysis="a", version="v", study=key, package="p", name="m"),
        DeliveryRow(delivery="x", analysis="a", study=key, destination="pacs", objects=objects),
    )
    watcher = desk.watcher()
    watcher.look()
    desk.orthanc.upload_all(map(part10, (*study, ours, theirs)))
    assert watcher.look() == len(study) + 1
    assert desk.uids() == desk.pseudonyms(*study, theirs)


def test_an_instance_that_cannot_be_filed_holds_up_no_other(desk: Desk) -> None:
    watcher = desk.watcher()
    watcher.look()
    good = instance()
    desk.orthanc.upload_all([part10(instance(SeriesInstanceUID="1.2.bad")), part10(good)])
    assert watcher.look() == 1
    assert watcher.look() == 0
    assert desk.uids() == desk.pseudonyms(good)
    (row,) = desk.catalog.find(QuarantineRow)
    assert row.reason == "bad-uid"


def test_what_orthanc_itself_cannot_read_is_set_aside_after_a_while(desk: Desk) -> None:
    watcher = desk.watcher()
    watcher.look()
    study = phantom_study(1)
    broken, *_ = desk.orthanc.upload_all(map(part10, study))
    transport = watcher._client._transport

    class Faulty(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if broken in request.url.path:
                return httpx.Response(500)
            return transport.handle_request(request)

    watcher._client._transport = Faulty()
    for _ in range(module.PATIENCE - 1):
        with pytest.raises(ServiceUnavailableError, match="cannot read"):
            watcher.look()
    watcher.look()
    assert desk.uids() == desk.pseudonyms(*study[1:])
    (row,) = desk.catalog.find(QuarantineRow)
    assert row.reason == "unreadable-at-source"
    assert broken not in repr(row)


def test_a_wrong_password_says_what_to_do(desk: Desk) -> None:
    with pytest.raises(SettingsError, match=r"pacs: .*password"):
        desk.watcher(password="wrong").look()


def test_something_else_at_the_address_says_so(desk: Desk) -> None:
    with pytest.raises(SettingsError, match="URL in the settings"):
        desk.watcher(url=f"{desk.orthanc.url}/instances").look()


_WHAT_IS_DONE = {"NewInstance": "take", "StableStudy": "told"}


def _kinds(pacs: Orthanc) -> list[str]:
    return [change["ChangeType"] for change in pacs.get("/changes?limit=1000")["Changes"]]


def _digest(ds: Dataset) -> str:
    file = part10(ds)
    return digest_of(str(ds.file_meta.TransferSyntaxUID), [file[144 + int.from_bytes(file[140:144], "little") :]])
