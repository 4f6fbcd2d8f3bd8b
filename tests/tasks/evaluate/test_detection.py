"""Detections judged: by hand, in the edge cases, and champion against challenger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from models.errors import LabelError, NothingToDoError
from models.evaluation import Evaluation, Picture
from models.geometry import Geometry
from models.recipe import Detection
from models.schemas import CASE_METRICS_DETECTION, check
from tasks.evaluate.comparison import compare_detection
from tasks.evaluate.detection import DetectionSample, evaluate_detection, score_case
from tasks.evaluate.reporting.compose import Judged, compose
from tasks.evaluate.reporting.page import render
from tasks.imaging.detection import Lesions, boxed_lesions, component_lesions

GRID = Geometry.from_spacing((10, 60, 60), (2.0, 1.0, 1.0))
RULE = Detection()
Place = tuple[int, int, int]


def truth_at(places: Sequence[Place], side: int = 6, classes: Sequence[int] = ()) -> Lesions:
    """Cubes of `side` voxels, components of a mask."""
    labels = np.zeros(GRID.shape, np.uint8)
    for place, kind in zip(places, classes or [0] * len(places), strict=True):
        labels[tuple(slice(p, p + side) for p in place)] = kind + 1
    return component_lesions(labels, 2)


def marks_at(places: Sequence[Place], sure: Sequence[float], classes: Sequence[int] = (), side: int = 6) -> Lesions:
    boxes = [[*place, *(p + side for p in place)] for place in places]
    return boxed_lesions(boxes, classes or [0] * len(places), sure)


def sample(number: int, truth: Lesions, found: Lesions, patient: str = "") -> DetectionSample:
    image = np.zeros((1, *GRID.shape), np.float32)
    return DetectionSample(patient or f"P-{number}", f"case{number}", image, truth, found, GRID)


NOTHING = marks_at([], [])
A, B, C = (0, 0, 0), (2, 20, 20), (2, 40, 40)


def judged(
    samples: Iterable[DetectionSample], names: Sequence[str] = ("spot",), threshold: float = 0.5, key: str = "p"
) -> tuple[Evaluation, pd.DataFrame, list[Picture]]:
    return evaluate_detection(samples, names, RULE, threshold, package=key, dataset="d", bootstrap=100)


def cohort(sure: float = 0.9) -> list[DetectionSample]:
    """Four patients: one found and one missed, one found with a false mark, nothing at all, and a false mark alone."""
    return [
        sample(1, truth_at([A, B]), marks_at([A], [sure])),
        sample(2, truth_at([B]), marks_at([B, C], [0.8, 0.6])),
        sample(3, truth_at([]), NOTHING),
        sample(4, truth_at([]), marks_at([C], [0.3])),
    ]


def test_by_hand() -> None:
    evaluation, table, pictures = judged(cohort())
    value = {m.metric: m.interval.value for m in evaluation.metrics}
    assert value["sensitivity"] == pytest.approx(2 / 3)
    assert value["precision"] == pytest.approx(2 / 3)
    assert value["false_positives"] == pytest.approx(1 / 4)
    assert value["average_precision"] == pytest.approx(2 / 3)
    assert value["froc"] == pytest.approx(2 / 3), "both are found before any false mark"
    assert value["sensitivity_at_0.125"] == pytest.approx(2 / 3)
    # 6 × 6 × 6 voxels of 2 mm³ are a ball of 9.4 mm.
    assert value["sensitivity_small"] == pytest.approx(2 / 3)
    assert "sensitivity_large" not in value, "no lesion is large"
    assert (evaluation.n_cases, evaluation.n_patients, evaluation.threshold) == (4, 4, 0.5)
    assert table["outcome"].tolist() == ["found", "missed", "found", "invented", "absent", "invented"]
    found = table[table["outcome"] == "found"]
    assert found["volume_truth_ml"].tolist() == pytest.approx([0.432, 0.432])
    assert found["distance_mm"].max() < 1e-9
    assert found["box_iou"].min() == 1
    check(table, CASE_METRICS_DETECTION, where="test")
    names = ["overlays-best", "overlays-median", "overlays-worst", "overlays-uncertain", "froc"]
    assert [p.name for p in pictures] == names
    assert all(b"<svg" in p.data[:500] for p in pictures)
    (curve,) = evaluation.curves
    assert curve.name == "froc"
    assert curve.y[-1] == pytest.approx(2 / 3)


def test_intervals_are_of_patients() -> None:
    interval = judged(cohort())[0].of("froc")
    low, high = interval.low, interval.high
    assert low is not None
    assert high is not None
    assert 0 <= low <= 2 / 3 <= high <= 1
    alone, _, _ = judged([sample(1, truth_at([A]), marks_at([A], [0.9]))])
    assert alone.of("froc").low is None, "one patient gives none"


def test_a_mark_of_another_class_finds_nothing() -> None:
    scores = score_case(sample(1, truth_at([A]), marks_at([A], [0.9], [1])), ("spot", "nodule"), RULE)
    assert [(s.class_name, s.outcome) for s in scores] == [("spot", "missed"), ("nodule", "invented")]


def test_a_class_without_lesions_does_not_enter_the_mean() -> None:
    evaluation, _, _ = judged(cohort(), ("spot", "nodule"))
    assert evaluation.of("froc").value == evaluation.of("froc", "spot").value
    assert not [m for m in evaluation.metrics if m.class_name == "nodule"]


def test_two_classes_are_averaged() -> None:
    both = [*cohort(), sample(5, truth_at([A], classes=[1]), NOTHING)]
    evaluation, _, _ = judged(both, ("spot", "nodule"))
    assert evaluation.of("froc", "nodule").value == 0
    assert evaluation.of("froc").value == pytest.approx(evaluation.of("froc", "spot").value / 2)


def test_nothing_found_at_all_is_zero() -> None:
    evaluation, _, _ = judged([sample(1, truth_at([A]), NOTHING), sample(2, truth_at([]), NOTHING)])
    assert evaluation.of("froc").value == 0
    assert evaluation.of("average_precision").value == 0
    assert evaluation.of("false_positives").value == 0
    assert not [m for m in evaluation.metrics if m.metric == "precision"], "of no marks"


def test_without_a_lesion_there_is_no_figure() -> None:
    with pytest.raises(NothingToDoError, match="none of the 1 test cases has a lesion"):
        judged([sample(1, truth_at([]), marks_at([A], [0.9]))])
    with pytest.raises(NothingToDoError, match="no case"):
        judged([])
    with pytest.raises(LabelError, match="no name"):
        judged([sample(1, truth_at([A], classes=[1]), NOTHING)])


def test_champion_and_challenger_are_compared_case_by_case() -> None:
    old, before, _ = judged(cohort(), key="old")
    better = [*cohort()[1:], sample(1, truth_at([A, B]), marks_at([A, B], [0.9, 0.7]))]
    new, after, _ = judged(better, key="new")
    comparison = compare_detection(before, after, old, new, bootstrap=100)
    assert comparison.primary == "froc"
    assert comparison.primary_difference.value == pytest.approx(1 / 3)
    assert (comparison.n_cases, comparison.n_patients, comparison.n_unmatched) == (4, 4, 0)
    assert {d.metric for d in comparison.differences} >= {"froc", "average_precision", "sensitivity"}
    part = after[after["case"] != "case4"]
    assert compare_detection(before, part, old, new, bootstrap=100).n_unmatched == 1
    with pytest.raises(NothingToDoError, match="common case"):
        compare_detection(before, after.assign(case="other"), old, new)


def test_thresholds_move_the_operating_point_alone() -> None:
    shy, bold = (judged(cohort(), threshold=t)[0] for t in (0.85, 0.1))
    assert shy.of("froc") == bold.of("froc")
    assert shy.of("sensitivity").value == pytest.approx(1 / 3)
    assert bold.of("false_positives").value == pytest.approx(1 / 2)


def test_the_report_tells_of_lesions() -> None:
    evaluation, table, pictures = judged(cohort())
    when = datetime(2026, 1, 1, tzinfo=UTC)
    report, shown = compose(Judged(evaluation=evaluation, created_at=when, cases=table, pictures=tuple(pictures)))
    page = render(report, shown)
    for words in ("FROC", "False positives an image", "A lesion is found once", "most lesions missed or invented"):
        assert words in page
    (counted,) = report.good.outcomes
    assert (counted.class_name, counted.found, counted.missed, counted.invented) == ("spot", 2, 1, 1)
    assert [note.case for note in report.fails.worst] == ["case1", "case2"]
