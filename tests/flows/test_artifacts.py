"""What a night shows in the Prefect UI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import artifacts
from flows.thumbnails import chosen
from models.evaluation import Evaluation, MetricSummary, Picture
from models.refs import EvaluationRef, PackageRef
from models.registration import Registered
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
