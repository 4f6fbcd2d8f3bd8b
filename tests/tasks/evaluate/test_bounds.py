from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.evaluation import Interval
from tasks.evaluate import bounds
from tasks.evaluate.classification import evaluate_classification

IDS = {"package": "p", "dataset": "d", "bootstrap": 200}


@pytest.mark.parametrize(("right", "of"), [(0, 10), (3, 10), (10, 10), (81, 263)])
def test_shares_as_scipy_has_them(right: int, of: int) -> None:
    expected = stats.binomtest(right, of).proportion_ci(method="wilson")
    assert bounds.wilson(right / of, of) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("area", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_an_areas_ends_are_as_far_as_their_own_standard_error_says(area: float) -> None:
    m, n = 9, 14
    for end in bounds.mann_whitney(area, m, n):
        if 0 < end < 1:
            q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # Hanley & McNeil, Radiology 1982; sizes as their mean
            size = (m + n) / 2
            variance = (end * (1 - end) + (size - 1) * (q1 + q2 - 2 * end**2)) / (m * n)
            assert abs(area - end) == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-4)
    low, high = bounds.mann_whitney(area, m, n)
    assert 0 <= low <= area <= high <= 1
    assert low < high


def test_perfect_figures_of_few_patients_are_not_certain() -> None:
    truth, names = [0] * 5 + [1] * 5, [f"P{i}" for i in range(10)]
    chances = np.array([[0.8, 0.2]] * 5 + [[0.1, 0.9]] * 5)
    found, _, _ = evaluate_classification(names, names, truth, chances, ("no", "yes"), **IDS)  # type: ignore[arg-type]
    for metric, low in (("auc", 0.64), ("sensitivity", 0.566), ("specificity", 0.566), ("accuracy", 0.722)):
        interval = found.of(metric)
        assert (interval.value, interval.high) == (1, 1)
        assert interval.low == pytest.approx(low, abs=0.02)
    assert not [m for m in found.metrics if m.metric == "auc_delong"], "its variance is 0, and says nothing"


def test_one_patient_has_no_interval_and_an_undefined_figure_none() -> None:
    alone = Interval(value=1, low=None, high=None, n=1)
    assert bounds.on_logit(alone, np.empty(0), (0.5, 1.0)) == alone
    assert bounds.on_logit(None, np.empty(0), (0.5, 1.0)) is None
    plain = Interval(value=0.5, low=0.4, high=0.6, n=3)
    assert bounds.on_logit(plain, np.array([0.4, 0.6]), None) == plain


def test_the_mean_of_classes_errs_as_if_all_erred_together() -> None:
    assert bounds.mean_bounds([(0.5, 0.8), (0.7, 1.0)]) == pytest.approx((0.6, 0.9))
    assert bounds.mean_bounds([(0.5, 0.8), None]) is None
    assert bounds.mean_bounds([]) is None
