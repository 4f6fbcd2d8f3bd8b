"""A finished demo is found, and one of which something is gone is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.environment import open_stores
from flows.memory import recall_demo, remember_demo
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.registration import Night, Registered, Shown
from models.settings import Settings
from tasks.stores.house import Stores
from tasks.stores.tables import DatasetRecord, EvaluationRow, PackageRow


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    stores = open_stores(Settings(home=tmp_path))
    stores.catalog.add(
        DatasetRecord(dataset="d", name="demo", kind="segmentation", classes=["Liver"], counts={}),
        PackageRow(package="p", name="demo", dataset="d", weights_sha256="0" * 64),
        EvaluationRow(evaluation="e", package="p", dataset="d", metric="dice", value=0.9, low=None, high=None),
    )
    return stores


def outcome(report: Path, evaluation: str = "e") -> Shown:
    registered = Registered(
        name="demo",
        version="1",
        package=PackageRef.to("p"),
        action="promoted",
        reasons=("first",),
        page="#/models",
        run_page="#/experiments",
        run_id="r",
    )
    night = Night(
        dataset=DatasetRef.to("d"),
        evaluation=EvaluationRef.to(evaluation),
        registered=registered,
        report=report,
        run="run",
    )
    return Shown(night=night, predictions=())


def test_a_finished_demo_is_found_for_the_same_cohort_alone(stores: Stores, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html>")
    assert recall_demo(stores, 24) is None
    remember_demo(stores, 24, outcome(report))
    assert recall_demo(stores, 24) == outcome(report)
    assert recall_demo(stores, 12) is None


def test_a_demo_of_which_something_is_gone_is_run_again(stores: Stores, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    remember_demo(stores, 24, outcome(report))
    assert recall_demo(stores, 24) is None
    report.write_text("<html>")
    remember_demo(stores, 24, outcome(report, evaluation="other"))
    assert recall_demo(stores, 24) is None


def test_a_damaged_memory_is_none(stores: Stores, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html>")
    remember_demo(stores, 24, outcome(report))
    next((tmp_path / "work" / "demo").iterdir()).write_text("{")
    assert recall_demo(stores, 24) is None
