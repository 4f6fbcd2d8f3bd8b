from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models.errors import LabelError, NothingToDoError
from models.evaluation import Comparison
from tasks.evaluate import segmentation
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.comparison import compare_classification, compare_segmentation

KEYS = {"dataset": "d", "champion_key": "old", "challenger_key": "new", "bootstrap": 300}


def _masks(gain: float, cases: int = 12) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {"patient": f"P{i // 2}", "case": f"c{i}", "class_name": name, "outcome": "found"}
        | {metric: generator.uniform(0.4, 0.9) + gain for metric in segmentation.METRICS}
        for i in range(cases)
        for name in ("a", "b")
    ]
    return pd.DataFrame(rows)


def test_segmentation_differences_are_paired_and_clustered_by_patient() -> None:
    found = compare_segmentation(_masks(0.0), _masks(0.02).sample(frac=1, random_state=1), **KEYS)
    gain = found.primary_difference
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.02, 0.02, 0.02))
    assert (found.n_patients, found.n_cases, found.n_unmatched, gain.n) == (6, 12, 0, 6)
    assert {m.class_name for m in found.differences} == {None, "a", "b"}
    assert Comparison.from_json(found.to_json()) == found


def test_only_common_cases_and_classes_count() -> None:
    old, new = _masks(0.0), _masks(0.02)
    found = compare_segmentation(old[old["class_name"] == "a"], new[new["case"] != "c0"], **KEYS)
    assert (found.n_cases, found.n_unmatched) == (11, 1)
    assert found.primary_difference.value == pytest.approx(0.02)
    with pytest.raises(NothingToDoError):
        compare_segmentation(old, new.assign(case="other"), **KEYS)


def _judged(sharpness: float, classes: int) -> tuple[float, pd.DataFrame]:
    generator = np.random.default_rng(1)
    truth = generator.integers(0, classes, 90)
    raw = generator.normal(0, 1, (90, classes))
    raw[np.arange(90), truth] += sharpness
    chances = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    names = [f"k{i}" for i in range(classes)]
    ids = [f"P{i // 3}" for i in range(90)], [f"c{i}" for i in range(90)]
    found, frame, _ = evaluate_classification(*ids, truth, chances, names, package="p", dataset="d", bootstrap=100)
    return found.of("auc").value, frame


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_differences_are_those_of_the_two_evaluations(classes: int) -> None:
    (old, old_frame), (new, new_frame) = _judged(0.5, classes), _judged(2.0, classes)
    found = compare_classification(old_frame, new_frame, **KEYS)
    assert found.primary_difference.value == pytest.approx(new - old)
    assert 0 < found.primary_difference.low < found.primary_difference.high
    assert found.primary_difference.n == 30
    same = compare_classification(old_frame, old_frame, **KEYS)
    assert (same.primary_difference.low, same.primary_difference.high) == (0, 0)


def test_every_metric_and_class_is_tested_in_pairs() -> None:
    old, new = _masks(0.0, cases=20), _masks(0.0, cases=20)
    gained = new["class_name"] == "a"
    new.loc[gained, "dice"] += np.random.default_rng(3).uniform(0.01, 0.05, gained.sum())
    tests = {(t.metric, t.class_name): t for t in compare_segmentation(old, new, **(KEYS | {"bootstrap": 2000})).tests}
    a, b = tests["dice", "a"], tests["dice", "b"]
    assert a.wilcoxon == pytest.approx(2 / 2**10), "ten patients, all of them better"
    assert max(a.wilcoxon, a.bootstrap) < a.adjusted < 0.05, "two classes were asked about"
    assert (b.wilcoxon, b.bootstrap, b.adjusted) == (None, 1, 1)
    assert {("assd_mm", None), ("hd95_mm", "b")} <= tests.keys()
    told = compare_classification(_judged(0.5, 3)[1], _judged(2.0, 3)[1], **KEYS)
    tests = {(t.metric, t.class_name): t for t in told.tests}
    assert tests["auc", "k1"].wilcoxon is None, "an area is no mean over patients"
    assert tests["auc", "k1"].adjusted >= tests["auc", "k1"].bootstrap
    assert tests["brier", None].wilcoxon < 0.01


def test_other_classes_do_not_compare() -> None:
    with pytest.raises(LabelError):
        compare_classification(_judged(1, 2)[1], _judged(1, 3)[1], **KEYS)
