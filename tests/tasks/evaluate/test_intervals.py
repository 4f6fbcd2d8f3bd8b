from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from models.errors import NothingToDoError
from tasks.evaluate import intervals


def _patients(count: int, each: int = 1) -> list[str]:
    return [f"P{i:03d}" for i in range(count) for _ in range(each)]


def test_drawing_cases_instead_of_patients_would_promise_too_much() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 12), 5)[:, None]
    (clustered,) = intervals.mean_intervals(values, _patients(12, 5))
    (naive,) = intervals.mean_intervals(values, _patients(60))
    assert clustered.high - clustered.low > 1.7 * (naive.high - naive.low)
    assert (clustered.n, naive.n) == (12, 60)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 8))
def test_weighted_auc_and_precision_equal_scikit_learn(seed: int, cases: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.r_[True, False, generator.random(cases - 2) < 0.5]
    score = generator.integers(0, levels, cases) / levels  # with many ties
    weights = generator.integers(0, 3, (3, cases)).astype(float) + 0.5
    areas, precisions = intervals.together(intervals.auc(truth, score), intervals.average_precision(truth, score))(
        weights
    ).T
    for row, area, precision in zip(weights, areas, precisions, strict=True):
        assert area == pytest.approx(roc_auc_score(truth, score, sample_weight=row))
        assert precision == pytest.approx(average_precision_score(truth, score, sample_weight=row))


def test_pairing_sees_a_small_gain_that_separate_intervals_hide() -> None:
    generator = np.random.default_rng(3)
    champion = generator.uniform(0.5, 0.95, 30)
    challenger = champion + generator.normal(0.01, 0.005, 30)
    paired = intervals.paired_interval(champion, challenger, _patients(30))
    old, new = intervals.mean_intervals(np.c_[champion, challenger], _patients(30))
    assert paired.low > 0
    assert new.low < old.high
    assert paired.value == pytest.approx(new.value - old.value)


def test_paired_cases_without_a_value_are_left_out() -> None:
    found = intervals.paired_interval([0.5, np.nan, 0.7], [0.6, 0.9, 0.9], ["A", "B", "C"])
    assert found.n == 2
    assert found.value == pytest.approx(0.15)
    with pytest.raises(NothingToDoError):
        intervals.paired_interval([np.nan], [0.5], ["A"])


def test_same_seed_same_interval_in_any_order_of_cases_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values, patients = np.random.default_rng(4).normal(0, 1, (40, 2)), _patients(10, 4)
    first = intervals.mean_intervals(values, patients, seed=7)
    order = np.random.default_rng(5).permutation(40)
    monkeypatch.setattr(intervals, "_CHUNK_BYTES", 8 * 40 * 33)
    again = intervals.mean_intervals(values[order], [patients[i] for i in order], seed=7)
    for a, b in zip(first, again, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))
    assert intervals.mean_intervals(values, patients, seed=8)[0].low != first[0].low


def test_a_difference_is_as_unlikely_as_the_widest_interval_without_it() -> None:
    generator = np.random.default_rng(6)
    values = generator.normal((0.0, 0.4, 5.0), 1, (25, 3))
    drawn = intervals.draw(intervals.weighted_mean(values), _patients(25))
    p = drawn.p_values()
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.03)
    for column, value in enumerate(p):
        for level, within in ((1 - value - 0.01, False), (min(1 - value + 0.01, 0.9999), True)):
            found = drawn.intervals(level=level)[column] if 0 < level < 1 else None
            if found and value > 0.02:
                assert (found.low <= 0 <= found.high) == within
    assert np.isnan(intervals.draw(intervals.weighted_mean([[1.0]]), ["A"]).p_values()).all()
    assert intervals.draw(intervals.weighted_mean(np.zeros((4, 1))), _patients(4)).p_values() == pytest.approx(1)


def test_a_reflected_interval_holds_its_value_and_leans_the_other_way() -> None:
    values = np.random.default_rng(8).normal(0, 1, (40, 1))

    def size(weights: np.ndarray) -> np.ndarray:
        return np.abs(intervals.weighted_mean(values)(weights))

    drawn = intervals.draw(size, _patients(40))
    (plain,), (reflected,) = drawn.intervals(), drawn.intervals(reflected=True)
    assert reflected.low <= reflected.value <= reflected.high
    assert reflected.high - reflected.value == pytest.approx(max(plain.value - plain.low, 0))


def test_edges() -> None:
    with pytest.raises(NothingToDoError):
        intervals.mean_intervals(np.zeros((0, 1)), [])
    single, undefined = intervals.mean_intervals([[0.8, np.nan], [0.6, np.nan]], ["A", "A"])
    assert (single.value, single.low, single.high, single.n) == (0.7, None, None, 1)
    assert undefined is None
    partly = intervals.mean_intervals([[0.8], [np.nan], [0.4]], ["A", "B", "C"])[0]
    assert (partly.n, partly.value) == (2, pytest.approx(0.6))
    assert 0.4 <= partly.low <= partly.high <= 0.8
    assert intervals.bootstrap(intervals.auc([True, True], [0.1, 0.2]), ["A", "B"]) == (None,)
