"""A file gets its final name only with its bytes on the disk, whichever way the file system asks for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.stores import durable

EXT4 = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the file, in order."""
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def told_sync(descriptor: int) -> None:
        done.append("sync folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "sync file")
        sync(descriptor)

    def told_rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(Path, "rename", told_rename)
    return done


def published(folder: Path) -> bytes:
    part, target = folder / ".x.part", folder / "x"
    descriptor = os.open(part, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, b"bytes")
        durable.publish(descriptor, part, target)
    finally:
        os.close(descriptor)
    assert not part.exists()
    return target.read_bytes()


def range_call(told: list[str], code: int = 0) -> Callable[[], Callable[..., int]]:
    def call(*_: object) -> int:
        told.append("write out")
        durable.ctypes.set_errno(code)
        return -1 if code else 0

    return lambda: call


def test_anywhere_the_file_is_synced_before_its_name_and_the_folder_after(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_journalled", lambda device: False)
    assert published(tmp_path) == b"bytes"
    assert order == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, ["write out", "rename", "sync folder"]),
        (errno.ENOSYS, ["write out", "sync file", "rename", "sync folder"]),
    ],
)
def test_with_a_journal_the_blocks_go_out_before_the_name(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch, code: int, expected: list[str]
) -> None:
    monkeypatch.setattr(durable, "_journalled", lambda device: True)
    monkeypatch.setattr(durable, "_sync_file_range", range_call(order, code))
    assert published(tmp_path) == b"bytes"
    assert order == expected


def test_a_disk_that_fails_is_told_and_no_name_is_given(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_journalled", lambda device: True)
    monkeypatch.setattr(durable, "_sync_file_range", range_call(order, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        published(tmp_path)
    assert not (tmp_path / "x").exists()


def test_as_this_machine_is(tmp_path: Path) -> None:
    assert published(tmp_path) == b"bytes"


@pytest.mark.parametrize(
    ("mount", "journal", "expected"),
    [
        (EXT4, True, True),
        (EXT4, False, False),
        (EXT4 + ",data=writeback", True, False),
        (EXT4.replace("ext4", "xfs"), False, True),
        (EXT4.replace("ext4", "overlay"), True, False),
    ],
)
def test_only_a_file_system_that_journals_in_order_counts(
    monkeypatch: pytest.MonkeyPatch, mount: str, journal: bool, expected: bool
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: journal)
    assert durable._keeps_order(mount) == expected
