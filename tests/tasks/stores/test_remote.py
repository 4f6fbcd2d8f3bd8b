"""What an object store adds to a place: uploads that break off, servers that are away, copies on this machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.errors import (
    IntegrityError,
    NocturneError,
    NotFoundError,
    ServiceUnavailableError,
    SettingsError,
    is_transient,
)
from tasks.stores import remote
from tasks.stores.datasets import DatasetStore
from tasks.stores.evaluations import EvaluationStore
from tasks.stores.places import open_place
from tasks.stores.remote import RemotePlace
from tasks.stores.volumes import VolumeStore
from tests.components import until
from tests.objects import KEY_ID, SECRET, ObjectStore, place_url, requests_of, running_object_store
from tests.tasks.stores.test_places import KEY, content, publish

OTHER = "cd" + "1" * 30


def machine(tmp_path: Path, name: str, url: str) -> RemotePlace:
    """The place as one machine sees it."""
    place = open_place(url, scratch=tmp_path / name)
    assert isinstance(place, RemotePlace)
    return place


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> RemotePlace:
    return machine(tmp_path, "here", place_url(request, tmp_path))


@pytest.fixture
def elsewhere(place: RemotePlace, tmp_path: Path) -> RemotePlace:
    """The same place, seen from another machine."""
    return machine(tmp_path, "there", place.url)


@pytest.fixture
def on_s3(object_store: ObjectStore, tmp_path: Path) -> RemotePlace:
    return machine(tmp_path, "here", f"s3://{object_store.new_bucket()}/p")


def objects(place: RemotePlace) -> list[str]:
    return [path for path in place._fs.find(place._root) if not path.endswith(".json")]


def test_another_machine_finds_what_this_one_published(place: RemotePlace, elsewhere: RemotePlace) -> None:
    publish(place, KEY, a="1", deep__b="2")
    assert content(elsewhere, KEY) == {"a": "1", "deep/b": "2"}
    assert elsewhere._fs.cat_file(f"{elsewhere.location(KEY).partition('://')[2]}/a") == b"1"


@pytest.mark.fault("stores/s3")
def test_an_upload_that_broke_off_is_not_seen_is_done_again_and_swept(
    place: RemotePlace, elsewhere: RemotePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(place._fs, "pipe_file", raising(ConnectionResetError()))
        with pytest.raises(ServiceUnavailableError):
            publish(place, KEY, a="half")
    assert len(objects(place)) == 1
    assert not elsewhere.exists(KEY)
    assert list(elsewhere.keys()) == []
    publish(place, KEY, a="whole")
    publish(place, OTHER, a="1")
    assert content(elsewhere, KEY) == {"a": "whole"}
    assert elsewhere.sweep({KEY, OTHER}, older_than_seconds=3600) == []
    (gone,) = elsewhere.sweep({KEY, OTHER}, older_than_seconds=-1)
    assert gone.startswith(f"{KEY}/")
    assert len(objects(place)) == 2
    assert content(machine(elsewhere._scratch, "third", place.url), KEY) == {"a": "whole"}


@pytest.mark.fault("stores/s3", "stores/killed")
def test_a_writer_that_is_killed_leaves_only_what_a_sweep_removes(
    on_s3: RemotePlace, object_store: ObjectStore, tmp_path: Path
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, on_s3.url, str(tmp_path / "killed"), KEY],
        env={**os.environ, **object_store.environment},
    )
    until(lambda: objects(on_s3), "the first files are there")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not on_s3.exists(KEY)
    with pytest.raises(NotFoundError):
        on_s3.local(KEY)
    assert len(on_s3.sweep(set(), older_than_seconds=-1)) == 1
    assert objects(on_s3) == []
    publish(on_s3, KEY, a="1")
    assert content(on_s3, KEY) == {"a": "1"}


WRITER = """
import sys, threading
from pathlib import Path
from tasks.stores.datasets import DatasetStore
from tasks.stores.evaluations import EvaluationStore
from tasks.stores.places import open_place
from tasks.stores.remote import RemotePlace
from tasks.stores.volumes import VolumeStore
RemotePlace._mark = lambda *_: threading.Event().wait()
place = open_place(sys.argv[1], scratch=Path(sys.argv[2]))
with place.staging() as folder:
    for name in "abc":
        (folder / name).write_text("half")
    place.publish(folder, sys.argv[3])
"""


def test_of_machines_that_publish_at_once_one_is_read_whole(
    place: RemotePlace, elsewhere: RemotePlace, tmp_path: Path
) -> None:
    both = threading.Barrier(2)

    def write(one: RemotePlace, says: str) -> None:
        mark = one._mark

        def late(*given: object) -> bool:
            both.wait(timeout=60)
            return mark(*given)  # type: ignore[arg-type]

        one._mark = late  # type: ignore[method-assign]
        publish(one, KEY, a=says, b=says)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (place, elsewhere), ("here", "there")))
    third = machine(tmp_path, "third", place.url)
    found = content(third, KEY)
    assert found in ({"a": "here", "b": "here"}, {"a": "there", "b": "there"})
    assert content(place, KEY) == content(elsewhere, KEY) == found
    assert len(objects(place)) == 2  # the other took its own away


@pytest.mark.fault("stores/s3")
@pytest.mark.parametrize("reason", [FileExistsError(), OSError(errno.EINVAL, "412"), ConnectionResetError()])
def test_a_marker_whose_answer_was_lost_counts(
    place: RemotePlace, elsewhere: RemotePlace, monkeypatch: pytest.MonkeyPatch, reason: OSError
) -> None:
    real = place._fs.pipe_file

    def lost(*given: object, **options: object) -> None:
        real(*given, **options)
        raise reason

    with monkeypatch.context() as patch:
        patch.setattr(place._fs, "pipe_file", lost)
        publish(place, KEY, a="1")
    assert content(elsewhere, KEY) == {"a": "1"}


@pytest.mark.parametrize("reason", [OSError(errno.ENOSYS, "501"), NotImplementedError(), TypeError("mode")])
def test_a_store_that_cannot_write_on_a_condition_will_do(
    place: RemotePlace, elsewhere: RemotePlace, monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    real = place._fs.pipe_file

    def plain(*given: object, mode: str = "overwrite") -> None:
        if mode == "create":
            raise reason
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(place._fs, "pipe_file", plain)
        publish(place, KEY, a="1")
        publish(place, KEY, a="2")
    assert content(elsewhere, KEY) == {"a": "1"}


def test_files_missing_in_the_object_store_are_told(place: RemotePlace, elsewhere: RemotePlace) -> None:
    publish(place, KEY, a="1", b="2")
    place._fs.rm_file(next(path for path in objects(place) if path.endswith("/b")))
    with pytest.raises(IntegrityError, match="missing") as caught:
        elsewhere.local(KEY)
    assert caught.value.where == KEY


def test_what_changed_in_the_object_store_is_told(place: RemotePlace, elsewhere: RemotePlace) -> None:
    publish(place, KEY, a="one", b="2")
    place._fs.pipe_file(next(path for path in objects(place) if path.endswith("/a")), b"two")
    with pytest.raises(IntegrityError, match="damaged") as caught:
        elsewhere.local(KEY)
    assert caught.value.where == KEY
    assert not list((elsewhere._scratch / ".cache").glob("*"))


@pytest.mark.fault("stores/s3", "stores/corrupt")
def test_what_was_damaged_on_its_way_is_fetched_again(
    place: RemotePlace, elsewhere: RemotePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(place, KEY, a="one", b="2")
    real, asked = elsewhere._get, []

    def get(key: str, upload: str, names: list[str], folder: Path) -> None:
        real(key, upload, names, folder)
        asked.append(list(names))
        if len(asked) == 1:
            (folder / "a").write_text("onE")

    monkeypatch.setattr(elsewhere, "_get", get)
    assert content(elsewhere, KEY) == {"a": "one", "b": "2"}
    assert asked == [["a", "b"], ["a"]]


@pytest.mark.parametrize(
    "told", ["", "[]", '{"upload": "u"}', '{"upload": "u", "files": {"a": "x"}}', '{"upload": "u", "files": 3}']
)
def test_a_damaged_marker_is_told(place: RemotePlace, told: str) -> None:
    place._fs.pipe_file(f"{place._path(KEY)}.json", told.encode() or b" ")
    with pytest.raises(IntegrityError, match="marker"):
        place.local(KEY)


@pytest.mark.parametrize("name", ["../b", "/etc/nocturne", "", "a/../../b"])
def test_a_marker_writes_nowhere_else(place: RemotePlace, name: str) -> None:
    place._fs.pipe_file(f"{place._path(KEY)}.json", json.dumps({"upload": "u", "files": {name: [1, 1]}}).encode())
    with pytest.raises(IntegrityError, match="outside"):
        place.local(KEY)


def test_threads_that_ask_at_once_get_the_same_folder(place: RemotePlace, elsewhere: RemotePlace) -> None:
    publish(place, KEY, a="1", b="2")
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(elsewhere.local, [KEY] * 8))
    assert len(folders) == 1
    assert content(elsewhere, KEY) == {"a": "1", "b": "2"}


def test_few_requests_are_needed(on_s3: RemotePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests_of(monkeypatch, on_s3)
    publish(on_s3, KEY, a="1", b="2", c="3")
    assert sorted(asked) == ["get_object", *["put_object"] * 4]
    asked.clear()
    content(on_s3, KEY)
    assert asked == []  # its writer has it
    content(machine(tmp_path, "there", on_s3.url), KEY)
    assert asked == ["get_object"] * 4
    asked.clear()
    assert on_s3.exists(KEY)
    assert not on_s3.exists(OTHER)
    assert asked == ["get_object"] * 2


class TestCopies:
    def test_they_stay_while_the_disk_has_room(self, place: RemotePlace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100, free=11))
        publish(place, KEY, a="1")
        monkeypatch.setattr(remote, "_RESTING_SECONDS", -1.0)
        place._make_room()
        assert place._cached(KEY).is_dir()

    def test_the_one_unused_the_longest_goes_first(
        self, place: RemotePlace, elsewhere: RemotePlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = [f"{n}0" + "1" * 30 for n in range(4)]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100, free=100))
        for key in keys:
            publish(place, key, a="1")
        for age, key in zip((4000, 9000, 7000), (elsewhere.local(key).name for key in keys[:3]), strict=True):
            stamp = elsewhere._cached(key).stat().st_mtime - age
            os.utime(elsewhere._cached(key), (stamp, stamp))

        def usage(_: Path) -> SimpleNamespace:
            copies = len(list((elsewhere._scratch / ".cache").glob("*")))
            return SimpleNamespace(total=100, free=9 if copies > 1 else 11)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        elsewhere.local(keys[3])
        assert {path.name for path in (elsewhere._scratch / ".cache").glob("*")} == {keys[0], keys[3]}
        assert content(elsewhere, keys[1]) == {"a": "1"}

    def test_one_that_may_be_in_use_stays(self, place: RemotePlace, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(place, KEY, a="1")
        place.local(KEY)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=100, free=0))
        place._make_room()
        assert place._cached(KEY).is_dir()


class TestWhatIsToldOfAStore:
    @pytest.fixture
    def away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
        """A server of its own, to be stopped."""
        import s3fs

        with running_object_store(tmp_path) as store:
            for name, value in store.environment.items():
                monkeypatch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()  # clients read the environment when they are made
            monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
            yield store
        s3fs.S3FileSystem.clear_instance_cache()

    @pytest.mark.fault("stores/s3")
    def test_one_that_is_away_may_come_back(self, away: ObjectStore, tmp_path: Path) -> None:
        bucket = away.new_bucket()
        place = machine(tmp_path, "here", f"s3://{bucket}")
        publish(place, KEY, a="1")
        away.process.stop()
        other = machine(tmp_path, "there", place.url)
        assert content(place, KEY) == {"a": "1"}  # it has a copy
        calls = (
            lambda: place.exists(KEY),
            lambda: other.local(KEY),
            lambda: list(place.keys()),
            lambda: place.remove(OTHER),
            lambda: place.sweep(set()),
            lambda: publish(place, OTHER, a="1"),
        )
        for call in calls:
            with pytest.raises(ServiceUnavailableError) as caught:
                call()
            assert is_transient(caught.value)
            assert caught.value.where == place.url
            assert SECRET not in str(caught.value)
            assert KEY_ID not in str(caught.value)
        assert away.process.start()
        away.new_bucket()
        with pytest.raises(SettingsError, match="no such bucket"):
            publish(place, OTHER, a="1")

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            (PermissionError("403"), SettingsError),
            (FileNotFoundError("NoSuchBucket"), SettingsError),
            (OSError(errno.EBUSY, "503 SlowDown"), ServiceUnavailableError),
            (OSError(errno.EREMOTEIO, "500"), ServiceUnavailableError),
            (TimeoutError(), ServiceUnavailableError),
        ],
    )
    def test_its_refusals(
        self,
        place: RemotePlace,
        monkeypatch: pytest.MonkeyPatch,
        reason: Exception,
        expected: type[NocturneError],
    ) -> None:
        monkeypatch.setattr(place._fs, "put", raising(reason))
        with pytest.raises(expected):
            publish(place, KEY, a="1")

    def test_is_not_taken_for_damage(self, place: RemotePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stores = (EvaluationStore, EvaluationStore, EvaluationStore, DatasetStore, DatasetStore, VolumeStore)
        names = ("read", "cases", "pictures", "read", "members", "open")
        monkeypatch.setattr(place._fs, "cat_file", raising(ConnectionResetError()))
        for kind, name in zip(stores, names, strict=True):
            with pytest.raises(ServiceUnavailableError):
                getattr(kind(place.url, scratch=tmp_path / "new"), name)(KEY)

    def test_without_credentials(self, on_s3: RemotePlace, monkeypatch: pytest.MonkeyPatch) -> None:
        from botocore.exceptions import NoCredentialsError

        monkeypatch.setattr(on_s3._fs, "cat_file", raising(NoCredentialsError()))
        with pytest.raises(SettingsError, match="refuses"):
            on_s3.exists(KEY)

    def test_a_full_disk_is_no_fault_of_the_store(self, place: RemotePlace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(place._fs, "put", raising(OSError(errno.ENOSPC, "no space")))
        with pytest.raises(OSError, match="no space") as caught:
            publish(place, KEY, a="1")
        assert not isinstance(caught.value, NocturneError)

    @pytest.mark.parametrize("url", ["s3://key:hidden@bucket/p", "s3://bucket/p?secret=hidden"])
    def test_credentials_in_a_url_are_refused_and_not_repeated(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(SettingsError) as caught:
            open_place(url, scratch=tmp_path)
        assert "hidden" not in str(caught.value)
        assert "environment" in str(caught.value)


def raising(reason: Exception) -> object:
    def call(*_: object, **__: object) -> None:
        raise reason

    return call
