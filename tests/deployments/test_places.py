"""The shipped places: every process has its unit and its container, and every setting they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.health import processes
from flows.up import programs
from models.hospital import WatchedFolder
from models.settings import Settings

PLACES = Path(__file__).resolve().parents[2] / "deployments"
WATCHING = (WatchedFolder(name="export", path=Path("/srv/export")),)


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PLACES / "compose" / "compose.yaml").read_text())
    return found


def test_the_example_settings_are_valid_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PLACES / "nocturne.toml", tmp_path / "nocturne.toml")
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path))
    settings = Settings.load()
    assert settings.destinations[0].commitment
    assert settings.nightly.timezone == "Europe/Berlin"
    assert {one.name for one in (*settings.watched, *settings.orthanc)} == {"export", "pacs-feed"}


def test_compose_starts_every_process(compose: dict[str, Any], tmp_path: Path) -> None:
    needed = {program.name for program in programs(Settings(home=tmp_path, watched=WATCHING))}
    assert needed | {"postgres"} == set(compose["services"])
    for name in processes(Settings(home=tmp_path, watched=WATCHING)):
        assert compose["services"][name]["command"] == ["run", name]


@pytest.mark.fault("access/loopback")
def test_compose_publishes_on_loopback_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.fault("access/secrets")
def test_compose_names_settings_that_exist_and_no_password(compose: dict[str, Any], tmp_path: Path) -> None:
    monkeyed = Settings(home=tmp_path)
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            if name.startswith("NOCTURNE_") and not name.endswith("_DB_PASSWORD"):
                first, *rest = name.removeprefix("NOCTURNE_").lower().split("__")
                place = getattr(monkeyed, first)
                assert not rest or hasattr(place, rest[0]), name
            if "password" in name.lower() or "@postgres" in str(value):
                assert "${" in value, f"{name} holds a password"


def test_every_process_has_a_unit(tmp_path: Path) -> None:
    target = (PLACES / "systemd" / "nocturne.target").read_text()
    for name in processes(Settings(home=tmp_path)):
        assert f"nocturne@{name}.service" in target
    for name in ("prefect", "mlflow", "deploy"):
        assert (PLACES / "systemd" / f"nocturne-{name}.service").is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", sorted(path.name for path in (PLACES / "systemd").iterdir()))
def test_systemd_understands_the_units(unit: str, tmp_path: Path) -> None:
    for path in (PLACES / "systemd").iterdir():
        text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", path.read_text(), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    shown = unit.replace("@.", "@listener.")
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / shown)], capture_output=True, text=True, timeout=300
    )
    ours = [line for line in (told.stdout + told.stderr).splitlines() if "nocturne" in line and "Unknown" in line]
    assert ours == []


def test_orthanc_lets_nobody_in_unasked() -> None:
    text = (PLACES / "orthanc" / "orthanc.json").read_text()
    read = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert read["AuthenticationEnabled"]
    assert read["DicomCheckCalledAet"]
    assert not any(read[f"DicomAlwaysAllow{what}"] for what in ("Echo", "Store", "Find", "Get"))
    assert read["RegisteredUsers"] == {"nocturne": "CHANGE-ME"}
    assert read["DicomModalities"]["nocturne"]["AET"] == "NOCTURNE"
