"""What a place promises: in a folder, on S3, and in any store that fsspec reaches (its memory stands for those)."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import NotFoundError, SettingsError
from tasks.stores.places import STAGING, Place, open_place, write_synced
from tests.objects import place_url

KEY = "ab" + "0" * 30


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return open_place(place_url(request, tmp_path), scratch=tmp_path / "scratch")


def publish(place: Place, key: str, **files: str) -> None:
    with place.staging() as folder:
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        place.publish(folder, key)


def content(place: Place, key: str) -> dict[str, str]:
    folder = place.local(key)
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_is_published_is_found_whole(place: Place) -> None:
    assert not place.exists(KEY)
    publish(place, KEY, a="1", deep__er__b="2")
    assert place.exists(KEY)
    assert content(place, KEY) == {"a": "1", "deep/er/b": "2"}
    assert list(place.keys()) == [KEY]
    assert KEY in place.location(KEY)


def test_nothing_is_seen_before_it_is_published(place: Place) -> None:
    with place.staging() as folder:
        (folder / "a").write_text("1")
        assert not place.exists(KEY)
        assert list(place.keys()) == []
        with pytest.raises(NotFoundError):
            place.local(KEY)
    assert not folder.exists()
    assert list(place.keys()) == []


def test_the_first_of_two_publications_stays(place: Place) -> None:
    publish(place, KEY, a="first")
    publish(place, KEY, a="second", b="more")
    assert content(place, KEY) == {"a": "first"}


def test_writers_at_once_publish_one_whole(place: Place) -> None:
    start = threading.Barrier(4)

    def write(i: int) -> None:
        with place.staging() as folder:
            for name in "abc":
                (folder / name).write_text(str(i))
            start.wait(timeout=300)
            place.publish(folder, KEY)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert set(content(place, KEY)) == {"a", "b", "c"}
    assert len(set(content(place, KEY).values())) == 1


def test_what_is_removed_is_gone_and_may_come_back(place: Place) -> None:
    publish(place, KEY, a="1")
    place.local(KEY)
    place.remove(KEY)
    place.remove(KEY)
    assert not place.exists(KEY)
    with pytest.raises(NotFoundError):
        place.local(KEY)
    publish(place, KEY, a="2")
    assert content(place, KEY) == {"a": "2"}


def test_a_sweep_takes_what_no_row_knows(place: Place) -> None:
    other = "cd" + "1" * 30
    publish(place, KEY, a="1")
    publish(place, other, a="1")
    assert place.sweep({KEY}, older_than_seconds=3600) == []
    assert place.sweep({KEY}, older_than_seconds=-1) == [other]
    assert list(place.keys()) == [KEY]


def test_a_sweep_takes_what_a_killed_writer_left(place: Place) -> None:
    left = place._scratch / STAGING / "left-behind"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    assert place.sweep(set(), older_than_seconds=3600) == []
    assert place.sweep(set(), older_than_seconds=-1) == [f"{STAGING}/left-behind"]
    assert not left.exists()


@pytest.mark.parametrize(
    "key", ["", ".", "..", ".staging", "../x", "a/b", "a\\b", "/etc", "a/../../b", "a\0b", "*", "a?"]
)
def test_keys_that_climb_out_are_refused(place: Place, key: str) -> None:
    for call in (place.exists, place.local, place.remove, place.location):
        with pytest.raises(NotFoundError):
            call(key)
    with place.staging() as folder, pytest.raises(NotFoundError):
        place.publish(folder, key)


@pytest.mark.parametrize("url", ["simplecache::file:///etc", "zip://x::memory://y", "a::b"])
def test_chained_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        open_place(url)


def test_a_url_that_nobody_knows_is_the_settings_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        open_place("nosuch://bucket", scratch=tmp_path)


def test_an_empty_folder_can_be_published(place: Place) -> None:
    publish(place, KEY)
    assert place.exists(KEY)
    assert content(place, KEY) == {}


def test_a_full_disk_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no space"), place.staging() as folder:  # noqa: PT012
        (folder / "a").write_text("1")
        raise OSError(28, "no space")
    assert list(place.keys()) == []
    assert list((place._scratch / STAGING).glob("*")) == []


def test_a_folder_place_makes_its_content_durable_before_it_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_place(str(tmp_path / "place"))
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(handle: int) -> None:
        synced.append(f"{Path(f'/proc/self/fd/{handle}').readlink().name}:{place.exists(KEY)}")
        real_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    publish(place, KEY, a="1", deep__b="2")
    before = {entry.split(":")[0] for entry in synced if entry.endswith("False")}
    assert {"a", "b", "deep"} <= before
    assert f"{KEY[:2]}:True" in synced


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.json"
    write_synced(path, b"one")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_synced(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
