"""A watched folder: everything whole is taken once, nothing half-written is, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models.errors import ServiceUnavailableError, SettingsError, is_transient
from models.hospital import WatchedFolder
from models.pseudonyms import Pseudonymizer
from tasks.receive import folder as module
from tasks.receive.folder import LOOK_AGAIN_SECONDS, FolderWatcher
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.spool import Spool
from tasks.stores.tables import InstanceRow, QuarantineRow, SeenRow
from tests.tasks.receive.samples import PATIENT, PATIENT_ID, instance, write


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def reception(catalog: Catalog, spool: Spool, pseudonymizer: Pseudonymizer) -> Iterator[Reception]:
    with Reception(catalog, spool, pseudonymizer, source="share") as opened:
        yield opened


class House:
    """Makes watchers of one folder, as a restart would."""

    def __init__(self, inbox: Path, reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer) -> None:
        self.inbox, self.reception, self.catalog, self.pseudonymizer = inbox, reception, catalog, pseudonymizer

    def watcher(self, **settings: Any) -> FolderWatcher:
        values = {"name": "share", "path": self.inbox, "stable_seconds": 0.0, **settings}
        return FolderWatcher(WatchedFolder(**values), self.reception, self.catalog, self.pseudonymizer)

    def instances(self) -> int:
        return self.catalog.count(InstanceRow)


@pytest.fixture
def house(inbox: Path, reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer, clock: Clock) -> House:
    return House(inbox, reception, catalog, pseudonymizer)


def test_files_in_subfolders_are_taken_once(house: House, inbox: Path) -> None:
    write(inbox, instance())
    write(inbox / "ward 7" / "röntgen", instance(), instance())
    watcher = house.watcher()
    assert watcher.look() == 3
    assert house.instances() == 3
    assert watcher.look() == 0
    (row, *_) = house.catalog.find(InstanceRow)
    assert row.source == "share"


def test_a_folder_that_appears_later_is_found(house: House, inbox: Path) -> None:
    watcher = house.watcher()
    assert watcher.look() == 0
    write(inbox / "new" / "deeper", instance())
    assert watcher.look() == 1


@pytest.mark.fault("files/half-written")
def test_a_file_is_taken_only_when_it_rests(house: House, inbox: Path, clock: Clock) -> None:
    (whole,) = write(inbox.parent / "elsewhere", instance())
    content = whole.read_bytes()
    target = inbox / "slow.dcm"
    watcher = house.watcher(stable_seconds=5.0)
    for part in range(4):
        target.write_bytes(content[: len(content) * (part + 1) // 4])
        os.utime(target, ns=(part, part))  # not all writers leave a time that grows
        assert watcher.look() == 0
        clock.now += 4.0
    assert watcher.look() == 0
    clock.now += 1.5
    assert watcher.look() == 1
    assert house.catalog.count(QuarantineRow) == 0


@pytest.mark.fault("files/half-written")
def test_a_file_written_to_while_it_is_copied_is_not_kept(
    house: House, inbox: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write(inbox, instance(side=400))
    reading, end = module._read, path.read_bytes()[-1000:]

    def slow(descriptor: int, state: Any) -> Iterator[bytes]:
        for chunk in reading(descriptor, state):
            yield chunk
            with path.open("ab") as file:
                file.write(end)

    monkeypatch.setattr(module, "_read", slow)
    watcher = house.watcher()
    assert watcher.look() == 0
    assert list(spool.root.rglob("*.dcm")) == []
    monkeypatch.setattr(module, "_read", reading)
    assert watcher.look() == 1


def test_names_of_files_in_the_making_wait(house: House, inbox: Path) -> None:
    names = [".hidden.dcm", "a.dcm.part", "b.TMP", "c.filepart", "d.partial", "e~", ".x/f.dcm", "study.part/g.dcm"]
    watcher = house.watcher()
    for path, name in zip(write(inbox.parent / "elsewhere", *(instance() for _ in names)), names, strict=True):
        (inbox / name).parent.mkdir(exist_ok=True)
        path.rename(inbox / name)
    assert watcher.look() == 0
    for number, name in enumerate(names):
        (inbox / name).rename(inbox / f"{number}.dcm")
    assert watcher.look() == len(names)


@pytest.mark.fault("files/links")
def test_links_pipes_and_sockets_are_never_followed(house: House, inbox: Path, tmp_path: Path) -> None:
    (outside,) = write(tmp_path / "outside", instance())
    (inbox / "link.dcm").symlink_to(outside)
    (inbox / "folder").symlink_to(outside.parent)
    os.mkfifo(inbox / "pipe.dcm")
    assert house.watcher(remove=True).look() == 0
    assert outside.exists()
    assert house.catalog.count(QuarantineRow) == 0


@pytest.mark.fault("files/links")
def test_a_link_put_in_place_after_the_look_is_not_followed(
    house: House, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside,) = write(tmp_path / "outside", instance())
    write(inbox / "folder", instance())
    watcher = house.watcher(remove=True)
    fresh = watcher._fresh

    def swapped(batch: Any) -> Any:
        found = fresh(batch)
        shutil.rmtree(inbox / "folder")
        (inbox / "folder").symlink_to(outside.parent)
        return found

    monkeypatch.setattr(watcher, "_fresh", swapped)
    assert watcher.look() == 0
    assert outside.exists()
    assert house.instances() == 0


def test_a_restart_does_not_read_again(house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(inbox, *(instance() for _ in range(5)))
    (inbox / "notes.txt").write_text("no image")
    assert house.watcher().look() == 5
    monkeypatch.setattr(module, "open_file", lambda chunks: pytest.fail("read again"))
    assert house.watcher().look() == 0


def test_a_file_that_is_written_anew_is_taken_again(house: House, inbox: Path, clock: Clock) -> None:
    write(inbox, instance())
    watcher = house.watcher()
    assert watcher.look() == 1
    write(inbox, instance(side=20))  # the same name
    clock.now += LOOK_AGAIN_SECONDS + 1
    assert watcher.look() == 1
    assert house.instances() == 2


def test_what_is_not_dicom_is_told_once_and_stays(house: House, inbox: Path) -> None:
    (inbox / f"{PATIENT}.txt").write_text(f"report of {PATIENT_ID}")
    with zipfile.ZipFile(inbox / "study.zip", "w") as archive:
        archive.writestr("a.dcm", b"DICM")
    (inbox / "empty.dcm").touch()
    write(inbox, instance())
    watcher = house.watcher(remove=True)
    assert watcher.look() == 1
    assert watcher.look() == 0
    assert house.watcher().look() == 0
    rows = house.catalog.find(QuarantineRow)
    assert [row.reason for row in rows] == ["not-dicom"] * 3
    assert all(row.stage == "receive" and "share" in row.what for row in rows)
    assert sorted(p.name for p in inbox.iterdir()) == [f"{PATIENT}.txt", "empty.dcm", "study.zip"]


@pytest.mark.fault("files/uids")
def test_an_instance_without_usable_uids_is_set_aside_with_its_reason(house: House, inbox: Path) -> None:
    write(inbox, instance(StudyInstanceUID=""))
    watcher = house.watcher()
    assert watcher.look() == 0
    house.reception.flush()
    (row,) = house.catalog.find(QuarantineRow)
    assert row.reason == "no-uid"


def test_a_dicomdir_is_passed_over(house: House, inbox: Path) -> None:
    (path,) = write(inbox, instance())
    content = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0", 1)
    (inbox / "DICOMDIR").write_bytes(content)
    assert house.watcher().look() == 1
    assert house.catalog.count(QuarantineRow) == 0


def test_removal_comes_after_the_rows_and_spares_what_changed(
    house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(inbox, instance(), instance())
    flush = house.reception.flush

    def flushed(timeout: float = 60.0) -> None:
        assert first.exists()
        flush(timeout)
        assert house.instances() == 2
        second.write_bytes(b"another file, under the same name")

    monkeypatch.setattr(house.reception, "flush", flushed)
    watcher = house.watcher(remove=True)
    assert watcher.look() == 2
    assert not first.exists()
    assert second.read_bytes() == b"another file, under the same name"


def test_nothing_is_removed_when_the_catalog_does_not_take_it(
    house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write(inbox, instance())

    def away(timeout: float = 60.0) -> None:
        raise ServiceUnavailableError("the catalog's database does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(house.reception, "flush", away)
        with pytest.raises(ServiceUnavailableError):
            house.watcher(remove=True).look()
    assert path.exists()
    assert house.catalog.count(SeenRow) == 0
    assert house.watcher(remove=True).look() == 1
    assert not path.exists()
    assert house.instances() == 1


def test_files_that_cannot_be_removed_are_told_and_not_taken_again(
    house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(inbox, instance(), instance())

    def refused(path: Any, *, dir_fd: int) -> None:
        raise PermissionError(errno.EACCES, "refused", path)

    monkeypatch.setattr(module.os, "unlink", refused)
    with pytest.raises(SettingsError, match="2 files were taken but cannot be removed"):
        house.watcher(remove=True).look()
    assert house.instances() == 2
    assert house.watcher(remove=True).look() == 0


def test_a_folder_that_is_away_is_told_and_comes_back(house: House, inbox: Path) -> None:
    write(inbox, instance())
    watcher = house.watcher()
    assert watcher.look() == 1
    away = inbox.rename(inbox.parent / "unmounted")
    with pytest.raises(ServiceUnavailableError, match="share: the watched folder is away") as caught:
        watcher.look()
    assert is_transient(caught.value)
    assert str(inbox) not in str(caught.value)
    away.rename(inbox)
    assert watcher.look() == 0
    write(inbox / "more", instance())
    assert watcher.look() == 1


def test_one_file_that_cannot_be_read_holds_up_no_other(
    house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(inbox, instance(), instance(), instance())
    opening = os.open

    def broken(path: Any, *arguments: Any, **named: Any) -> int:
        if path == "1.dcm":
            raise OSError(errno.EACCES, "refused", path)
        return opening(path, *arguments, **named)

    watcher = house.watcher()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "open", broken)
        assert watcher.look() == 2
        assert watcher.look() == 0
    (row,) = house.catalog.find(QuarantineRow)
    assert row.reason == "unreadable"
    assert watcher.look() == 1
    (row,) = house.catalog.find(QuarantineRow)
    assert row.resolved_at is not None


def test_paths_and_names_stay_out_of_the_catalog(house: House, inbox: Path) -> None:
    write(inbox / PATIENT, instance())
    (inbox / PATIENT / f"{PATIENT_ID}.pdf").write_text("x")
    house.watcher().look()
    with house.catalog.engine.connect() as connection:
        for table in (SeenRow, QuarantineRow, InstanceRow):
            told = repr(connection.execute(select(table.__table__)).all())
            assert "MARKER" not in told
            assert str(inbox) not in told


def test_a_full_folder_costs_no_question_per_file(house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(inbox, *(instance() for _ in range(3)))
    watcher = house.watcher()
    assert watcher.look() == 3
    monkeypatch.setattr(watcher._catalog, "reading", lambda: pytest.fail("asked the catalog"))
    monkeypatch.setattr(module._State, "of", lambda status: pytest.fail("asked the file"))
    assert watcher.look() == 0


def test_a_look_is_bounded(house: House, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 4)
    write(inbox, *(instance() for _ in range(7)))
    watcher = house.watcher()
    assert [watcher.look() for _ in range(3)] == [4, 3, 0]
