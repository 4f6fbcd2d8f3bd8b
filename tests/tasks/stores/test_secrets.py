"""The installation's secret is made once, kept private, and never guessed at."""

from __future__ import annotations

import base64
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from models.errors import SettingsError
from tasks.stores.secrets import load_or_create_secret, secret_from_text


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "secret"
    secret = load_or_create_secret(path)
    assert len(secret) == 32
    assert secret == load_or_create_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["secret"]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    paths = [tmp_path / f"secret{n}" for n in range(20)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(load_or_create_secret, [path for path in paths for _ in range(2)]))
    assert found[::2] == found[1::2]
    assert len(set(found)) == len(paths)


@pytest.mark.fault("access/secrets")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o700])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    load_or_create_secret(path)
    path.chmod(mode)
    with pytest.raises(SettingsError) as refused:
        load_or_create_secret(path)
    assert refused.value.reason == "secret-exposed"


def test_a_read_only_file_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = load_or_create_secret(path)
    path.chmod(0o400)
    assert load_or_create_secret(path) == secret


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 10_000])
def test_another_length_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError):
        load_or_create_secret(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_used_is_a_matter_of_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError):
        load_or_create_secret(tmp_path / "file" / "secret")


def test_from_the_environment() -> None:
    secret = bytes(range(32))
    assert secret_from_text(secret.hex()) == secret
    assert secret_from_text(f" {secret.hex().upper()}\n") == secret
    assert secret_from_text(base64.b64encode(secret).decode()) == secret


@pytest.mark.fault("access/secrets")
@pytest.mark.parametrize("text", ["", "00", "hunter2", "zz" * 32, "QUJD", "é" * 64])
def test_what_is_no_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        secret_from_text(text, where="NOCTURNE_SECRET")
    assert not text or text not in str(refused.value)
