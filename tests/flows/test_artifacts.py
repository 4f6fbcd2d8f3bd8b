"""What a night shows in the Prefect UI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import artifacts
from flows.thumbnails import chosen
from models.evaluation import Evaluation, MetricSummary, Picture
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.registration import Registered
from tasks.stores.tables import DatasetRecord, PackageRow
from tests.tasks.evaluate.reporting.samples import an_interval
from tests.tasks.predict.samples import stores_at


def a_picture(name: str, size: int = 1000) -> Picture:
    return Picture(name, f"title of {name}", "seen", b"x" * size)


def test_few_of_a_kind_and_none_that_is_very_large_are_shown_beside_a_run() -> None:
    names = [p.name for p in chosen([a_picture(f"overlays-{n}") for n in ("best", "median", "worst")])]
    assert names == ["overlays-best", "overlays-median"]
    assert [p.name for p in chosen([a_picture("saliency-1", 10**6), a_picture("roc")])] == ["roc"]
    assert sum(len(p.data) for p in chosen([a_picture(f"k{n}", 300_000) for n in range(30)])) <= 1_500_000


def test_the_page_of_a_night_leads_to_the_report_and_shows_a_few_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path))
    made: dict[str, dict[str, Any]] = {}
    for kind in ("link", "markdown", "table"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", lambda **said: made.update({said["key"]: said}))
    stores, ref = stores_at(tmp_path), EvaluationRef.to("a" * 32)
    evaluation = Evaluation(
        kind="segmentation",
        package="p",
        dataset="d",
        class_names=("liver",),
        primary="dice",
        metrics=(MetricSummary(metric="dice", interval=an_interval(0.8, 0.1, 5)),),
        n_patients=5,
        n_cases=6,
    )
    pictures = [a_picture(f"overlays-{n}") for n in ("best", "median", "worst")]
    stores.evaluations.write(ref.key, evaluation, pd.DataFrame({"patient": ["P"]}), pictures)
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("report.html", "report.json", "cases.parquet"):
        (folder / name).write_text("")
    registered = Registered(
        name="liver", version="3", package=PackageRef.to("b" * 32), action="kept", reasons=("it is not better",),
        page="#/models/liver/versions/3", run_page="#/experiments/1/runs/r", run_id="r",
    )  # fmt: skip
    artifacts.show_evaluation(stores, ref, registered, folder / "report.html")
    assert made["report-page"]["link"].endswith("/#/experiments/1/runs/r/artifacts/report/report.html")
    assert made["report-page"]["link"].startswith("http://")
    told = made["report"]["markdown"]
    for part in ("it is not better", "`report.html`, `report.json`, `cases.parquet`", "1 further picture is in"):
        assert part in told
    assert told.count("![seen](data:image/svg+xml;base64,") == 2
    assert made["evaluation"]["table"][0]["value"] == "0.8000"


def test_a_night_says_early_whether_there_is_anything_new_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **said: made.append(said))
    stores, ref = stores_at(tmp_path), DatasetRef.to("d" * 32)
    counts = {"train": [5, 6], "validation": [1, 1], "test": [2, 2]}
    stores.catalog.add(
        DatasetRecord(dataset=ref.key, name="liver", kind="segmentation", classes=["liver"], counts=counts)
    )
    artifacts.show_dataset(stores, "liver", ref)
    stores.catalog.add(PackageRow(package="p" * 32, name="liver", dataset=ref.key, weights_sha256="0" * 64))
    artifacts.show_dataset(stores, "liver", ref)
    artifacts.show_dataset(stores, "another", ref)
    assert [said["description"].split(", ")[-1].split(" since ")[0] for said in made] == [
        "new data",
        "no new data",
        "new data",
    ]
    assert made[0]["table"][0] == {"split": "train", "patients": 5, "cases": 6}
