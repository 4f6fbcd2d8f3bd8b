"""The main job on real chest X-rays, by the commands that a user types; and that no identity is written anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_cli import nocturne

RECIPE = """
name = "chest"
kind = "classification"
images.modality = "CR"
images.allow_without_burned_in = "CR"
labels.source = "CSV"
labels.name = "pneumonia"
labels.classes = [{ name = "normal", match = "0" }, { name = "pneumonia", match = "1" }]
evaluate.bootstrap = 200
train.epochs = 2
train.steps_per_epoch = 20
train.precision = "fp32"
train.compile = false
train.validations = 2
"""
PATIENTS = 80


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[Path, Path]:
    """(home, DICOM folder) after ingest, labels and a first night."""
    folder = tmp_path_factory.mktemp("chest")
    home, images, recipe = folder / "home", folder / "dicom", folder / "chest.toml"
    recipe.write_text(RECIPE)
    make = [sys.executable, str(shared_data / "make_dicom.py"), "pneumonia", str(images), "--limit", str(PATIENTS)]
    subprocess.run(make, check=True, capture_output=True, timeout=600)
    for command in (
        ["ingest", str(images), "--recipe", str(recipe)],
        ["labels", "import", str(images / "labels.csv"), "--name", "pneumonia"],
        ["retrain", str(recipe)],
    ):
        told = nocturne(*command, home=home)
        assert told.returncode == 0, told.stdout + told.stderr
    assert "promoted" in told.stdout
    assert "test AUC" in told.stdout
    return home, images


def test_a_second_night_without_news_keeps_the_champion(night: tuple[Path, Path]) -> None:
    home, images = night
    told = nocturne("retrain", str(images.parent / "chest.toml"), home=home)
    assert told.returncode == 0, told.stderr
    listed = nocturne("models", "list", home=home).stdout
    row = next(line for line in listed.splitlines() if line.startswith("│ chest"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["chest", "1", "1", "none"]


def test_the_champion_says_what_one_new_image_shows(night: tuple[Path, Path]) -> None:
    home, images = night
    one = sorted(images.glob("*.dcm"))[0]
    told = nocturne("predict", str(one), "--model", "chest", home=home)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "pneumonia" in told.stdout
    assert "yes" in told.stdout


def test_the_report_stands_alone(night: tuple[Path, Path]) -> None:
    home, _ = night
    reports = list((home / "evaluations").glob("*/*/report.html"))
    assert reports
    page = reports[0].read_text()
    assert "AUC" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_was_done_is_listed(night: tuple[Path, Path]) -> None:
    home, _ = night
    status = nocturne("status", home=home).stdout
    assert f"{PATIENTS} CR" in status
    assert f"{PATIENTS} CSV" in status
    shown = nocturne("dataset", "show", home=home).stdout
    assert "normal, pneumonia" in shown


def test_a_damaged_volume_is_found_removed_and_ingested_again(night: tuple[Path, Path]) -> None:
    home, images = night
    shard = next(p for p in (home / "volumes").glob("*/*/0/c/**/*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[3] ^= 0xFF
    shard.write_bytes(content)
    repaired = nocturne("doctor", "--repair", home=home)
    assert "1 damaged, removed" in repaired.stdout
    assert "ingest their studies again" in repaired.stdout
    again = nocturne("ingest", str(images), "--recipe", str(images.parent / "chest.toml"), home=home)
    assert again.returncode == 0, again.stderr
    assert "FAIL" not in nocturne("doctor", "--repair", home=home).stdout


def test_no_identity_is_written_outside_the_vault(night: tuple[Path, Path]) -> None:
    home, images = night
    originals = {b"CXR_TRAIN", b"Test^CXR", b"Referrer^", b"Test Hospital", b"19500101", str(images).encode()}
    found = [
        (file.relative_to(home), marker)
        for file in home.rglob("*")
        if file.is_file()
        for marker in originals
        if marker in file.read_bytes()
    ]
    assert found == []
