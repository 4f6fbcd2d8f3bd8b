from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from models.errors import NotFoundError
from models.evaluation import Comparison, ConfusionMatrix, Curve, Evaluation, Interval, MetricSummary, Picture


def _evaluation(**changes: object) -> Evaluation:
    values = {
        "kind": "segmentation",
        "package": "k",
        "dataset": "d",
        "class_names": ("liver", "left/kidney"),
        "primary": "dice",
        "metrics": (
            MetricSummary(metric="dice", interval=Interval(value=0.1 + 0.2, low=0.25, high=0.35, n=7)),
            MetricSummary(
                metric="dice", class_name="left/kidney", interval=Interval(value=1, low=None, high=None, n=1)
            ),
        ),
        "curves": (Curve(name="roc", class_name="a", x=(0.0, 1.0), y=(0.0, 1.0)),),
        "confusion": ConfusionMatrix(class_names=("a", "b"), counts=((3, 1), (0, 2))),
        "n_patients": 7,
        "n_cases": 9,
    }
    return Evaluation.model_validate(values | changes)


def test_json_round_trip_is_exact() -> None:
    first = _evaluation(created_at=datetime(2026, 1, 2, tzinfo=UTC))
    assert Evaluation.from_json(first.to_json()) == first


def test_digest_follows_the_content_and_not_the_clock() -> None:
    assert _evaluation().digest == _evaluation(created_at=datetime(2026, 1, 2, tzinfo=UTC)).digest
    assert _evaluation().digest != _evaluation(n_cases=10).digest


def test_figures_are_found_by_metric_and_class() -> None:
    found = _evaluation()
    assert found.primary_interval.low == 0.25
    assert found.of("dice", "left/kidney").n == 1
    with pytest.raises(NotFoundError, match="hd95"):
        found.of("hd95_mm")


def test_scalars_have_names_that_a_tracking_server_accepts() -> None:
    assert _evaluation().scalars() == {"dice": 0.1 + 0.2, "dice.low": 0.25, "dice.high": 0.35, "dice/left_kidney": 1}


@pytest.mark.parametrize(
    "interval",
    [
        {"value": float("nan"), "low": 0, "high": 1, "n": 2},
        {"value": 1, "low": 2, "high": 1, "n": 2},
        {"value": 1, "low": 0, "high": None, "n": 2},
        {"value": 1, "low": 0, "high": 1, "n": 0},
    ],
)
def test_impossible_intervals_are_refused(interval: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Interval.model_validate(interval)


def test_an_evaluation_needs_its_primary_metric() -> None:
    with pytest.raises(ValidationError, match="auc"):
        _evaluation(primary="auc")
    with pytest.raises(ValidationError, match="2 × 2"):
        ConfusionMatrix(class_names=("a", "b"), counts=((1, 2),))


def test_comparison_names_the_difference_that_decides() -> None:
    gain = MetricSummary(metric="dice", interval=Interval(value=0.01, low=-0.01, high=0.03, n=5))
    values = {"kind": "segmentation", "dataset": "d", "champion": "a", "challenger": "b", "primary": "dice"}
    found = Comparison.model_validate(values | {"differences": (gain,), "n_patients": 5, "n_cases": 5})
    assert found.primary_difference.low == -0.01
    with pytest.raises(NotFoundError):
        _ = Comparison.model_validate(values | {"differences": (), "n_patients": 5, "n_cases": 5}).primary_difference


def test_a_picture_travels_as_a_data_uri() -> None:
    picture = Picture(name="roc", title="ROC", alt="…", data=b"<svg/>")
    assert base64.b64decode(picture.data_uri.removeprefix("data:image/svg+xml;base64,")) == b"<svg/>"
    assert picture.file_name == "roc.svg"
