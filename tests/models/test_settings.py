"""Environment over file over defaults, and what a wrong key is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import SettingsError
from models.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path))
    return tmp_path


def test_everything_has_an_embedded_default(home: Path) -> None:
    settings = Settings.load()
    assert settings.database() == f"sqlite:///{home}/catalog.db"
    assert settings.place("volumes") == str(home / "volumes")


def test_environment_wins_over_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "nocturne.toml").write_text('workers = 3\nvolumes_url = "s3://bucket/volumes"\n')
    monkeypatch.setenv("NOCTURNE_WORKERS", "5")
    settings = Settings.load()
    assert settings.workers == 5
    assert settings.place("volumes") == "s3://bucket/volumes"


@pytest.mark.fault("access/secrets")
def test_an_unknown_key_is_refused_by_name_without_its_value(home: Path) -> None:
    (home / "nocturne.toml").write_text('volume_url = "s3://user:password@bucket"\n')
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "volume_url" in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.fault("access/secrets")
def test_secrets_do_not_show(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOCTURNE_CATALOG_URL", "postgresql://u:hunter2@db/nocturne")
    assert "hunter2" not in repr(Settings.load())


def test_prepared_arrays_lie_in_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOCTURNE_PREPARED_URL", "s3://bucket/prepared")
    with pytest.raises(SettingsError, match="name a folder"):
        Settings.load()
    monkeypatch.setenv("NOCTURNE_PREPARED_URL", "file:///srv/prepared")
    assert Settings.load().place("prepared") == "/srv/prepared"


def test_the_files_of_a_schedulers_tls_go_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOCTURNE_DASK_TLS_CA", "ca.pem")
    with pytest.raises(SettingsError, match="go together"):
        Settings.load()
    monkeypatch.setenv("NOCTURNE_DASK_TLS_CERT", "cert.pem")
    monkeypatch.setenv("NOCTURNE_DASK_TLS_KEY", "key.pem")
    assert Settings.load().dask_tls_key == "key.pem"
