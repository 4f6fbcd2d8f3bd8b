"""A model that makes images, and one that learns from them as well: two nights by the commands that a user types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.test_cli import nocturne

COMMON = """
images.modality = "CR"
images.allow_without_burned_in = "CR"
labels.source = "CSV"
labels.name = "pneumonia"
labels.classes = [{ name = "normal", match = "0" }, { name = "pneumonia", match = "1" }]
evaluate.bootstrap = 100
network.features = [4, 8]
train.epochs = 1
train.steps_per_epoch = 4
train.precision = "fp32"
train.compile = false
train.validations = 1
"""
MAKER = f'name = "maker"\nkind = "synthesis"\n{COMMON}'
CHEST = f"""
name = "chest"
kind = "classification"
{COMMON}
[synthetic]
source = "maker"
per_class = {{ normal = 7 }}
"""


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A home where both recipes had a night."""
    folder = tmp_path_factory.mktemp("synthesis")
    home, images = folder / "home", folder / "dicom"
    (folder / "maker.toml").write_text(MAKER)
    (folder / "chest.toml").write_text(CHEST)
    make = [sys.executable, str(shared_data / "make_dicom.py"), "pneumonia", str(images), "--limit", "60"]
    subprocess.run(make, check=True, capture_output=True, timeout=600)
    for command in (
        ["ingest", str(images), "--recipe", str(folder / "maker.toml")],
        ["labels", "import", str(images / "labels.csv"), "--name", "pneumonia"],
        ["retrain", str(folder / "maker.toml")],
        ["retrain", str(folder / "chest.toml")],
    ):
        told = nocturne(*command, home=home)
        assert told.returncode == 0, told.stdout + told.stderr
    return folder


def test_made_images_are_marked_and_only_in_training(nights: Path) -> None:
    tables = [pd.read_parquet(path) for path in (nights / "home" / "datasets").rglob("rows.parquet")]
    (whole,) = (table for table in tables if table["synthetic"].any())
    made, real = whole[whole["synthetic"]], whole[~whole["synthetic"]]
    assert len(made) == 7
    assert set(made["split"]) == {"train"}
    assert len(set(made["patient"])) == 7
    assert set(made["patient"]).isdisjoint(real["patient"])
    assert set(real["split"]) == {"train", "validation", "test"}


def test_the_report_compares_with_and_without(nights: Path) -> None:
    pages = [path.read_text() for path in (nights / "home" / "evaluations").rglob("report.html")]
    assert sum("With and without made images" in page for page in pages) == 1
    assert any("Copies of training images" in page for page in pages)


def test_a_second_night_makes_nothing_anew(nights: Path) -> None:
    volumes = nights / "home" / "volumes"
    before = sorted(path.name for path in volumes.glob("*/*"))
    told = nocturne("retrain", str(nights / "chest.toml"), home=nights / "home")
    assert told.returncode == 0, told.stdout + told.stderr
    assert sorted(path.name for path in volumes.glob("*/*")) == before


def test_made_images_outlive_a_repair(nights: Path) -> None:
    told = nocturne("doctor", "--repair", home=nights / "home")
    assert told.returncode == 0, told.stdout + told.stderr
    lines = [line for line in told.stdout.splitlines() if "leftovers" in line]
    assert lines
    assert all("none" in line for line in lines), lines


def test_a_model_that_makes_images_is_not_asked_what_an_image_shows(nights: Path) -> None:
    image = sorted((nights / "dicom").glob("*.dcm"))[0]
    told = nocturne("predict", str(image), "--model", "maker", home=nights / "home")
    assert told.returncode != 0
    assert "makes images" in told.stdout + told.stderr
