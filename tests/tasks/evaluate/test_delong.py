from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tasks.evaluate import intervals
from tasks.evaluate.delong import delong, delong_interval


def _cohort(seed: int, cases: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = np.r_[True, True, False, False, generator.random(cases - 4) < 0.4]
    score = generator.normal(0, 1, cases) + truth
    return truth, score if levels is None else np.round(score * levels) / levels


def _slow(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """DeLong, DeLong and Clarke-Pearson's structural components, pair by pair."""
    above, below = score[truth], score[~truth]
    wins = (above[:, None] > below).astype(float) + 0.5 * (above[:, None] == below)
    return float(wins.mean()), float(wins.mean(1).var(ddof=1) / len(above) + wins.mean(0).var(ddof=1) / len(below))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 60), st.sampled_from([None, 1, 3]))
def test_midranks_give_what_all_pairs_give(seed: int, cases: int, levels: int | None) -> None:
    truth, score = _cohort(seed, cases, levels)
    area, variance = delong(truth, score, np.arange(cases))
    assert (area, variance) == pytest.approx(_slow(truth, score))
    assert area == pytest.approx(roc_auc_score(truth, score))


@pytest.mark.parametrize("each", [1, 3])
def test_it_agrees_with_the_bootstrap_of_patients(each: int) -> None:
    truth, score = _cohort(1, 120)
    owners = [f"P{number}" for number in range(120) for _ in range(each)]
    noise = np.random.default_rng(2).normal(0, 0.3, 120 * each)
    truth, score = np.repeat(truth, each), np.repeat(score, each) + noise
    found = delong_interval(truth, score, owners)
    (drawn,) = intervals.bootstrap(intervals.auc(truth, score), owners)
    assert found.value == pytest.approx(drawn.value)
    assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high), abs=0.015)
    assert found.n == 120


def test_copies_of_a_case_make_nothing_surer_and_a_patient_may_have_both_classes() -> None:
    truth, score = _cohort(3, 50)
    owners = [f"P{number}" for number in range(50)]
    once = delong_interval(truth, score, owners)
    thrice = delong_interval(np.repeat(truth, 3), np.repeat(score, 3), np.repeat(owners, 3).tolist())
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)
    mixed = np.tile([True, False], 40)
    level = np.repeat(np.random.default_rng(4).normal(0, 3, 40), 2)
    score = level + mixed + np.random.default_rng(5).normal(0, 1, 80)
    pairs = [f"P{number // 2}" for number in range(80)]
    apart = delong_interval(mixed, score, [f"C{number}" for number in range(80)])
    together = delong_interval(mixed, score, pairs)
    (drawn,) = intervals.bootstrap(intervals.auc(mixed, score), pairs)
    assert together.high - together.low < 0.6 * (apart.high - apart.low), "what a patient's cases share falls out"
    assert together.high - together.low == pytest.approx(drawn.high - drawn.low, rel=0.2)


def test_where_it_is_undefined_there_is_none() -> None:
    assert delong_interval([1, 1], [0.1, 0.2], ["A", "B"]) is None
    assert delong_interval([1, 0, 0], [0.1, 0.2, 0.3], ["A", "B", "C"]) is None, "one positive has no variance"
    assert delong_interval([1, 1, 0, 0], [3, 2, 1, 0], ["A", "B", "C", "D"]) is None, "nor has a perfect order"
    found = delong_interval([1, 1, 1, 0, 0, 0], [9, 9, 4, 5, 1, 1], list("ABCDEF"))
    assert 0 < found.low < found.value < found.high < 1
    assert math.isclose(found.value, 8 / 9, abs_tol=1e-9)
