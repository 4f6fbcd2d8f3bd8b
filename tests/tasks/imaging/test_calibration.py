"""A temperature makes over-confident probabilities honest, and never changes a label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.imaging.calibration import best_temperature, calibration_error, scores, tempered

LOGITS = arrays(np.float32, (7, 4), elements=st.floats(-30, 30, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def cohort(n: int, sharpened: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes drawn by honest logits, and what a model says whose logits are `sharpened` times those."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 3))
    honest = softmax(logits)
    targets = (honest.cumsum(1) < rng.random((n, 1))).sum(1)
    return softmax(logits * sharpened).astype(np.float32), targets, honest


def error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return calibration_error(probabilities.max(1), probabilities.argmax(1) == targets)


@given(LOGITS, st.floats(0.2, 10))
def test_it_divides_the_logits(logits: np.ndarray, temperature: float) -> None:
    found = tempered(softmax(logits.astype(np.float64)), temperature, axis=1)
    assert found == pytest.approx(softmax(logits.astype(np.float64) / temperature), abs=2e-4)


@given(LOGITS, st.floats(0.2, 10))
def test_it_divides_independent_logits(logits: np.ndarray, temperature: float) -> None:
    clear = np.clip(logits, -10, 10).astype(np.float64)
    found = tempered(1 / (1 + np.exp(-clear)), temperature, independent=True)
    assert found == pytest.approx(1 / (1 + np.exp(-clear / temperature)), abs=5e-3)
    sure = np.abs(clear) > 1e-3
    assert np.array_equal((found > 0.5)[sure], (clear > 0)[sure])


@given(LOGITS, st.floats(0.2, 10))
def test_the_likeliest_class_stays(logits: np.ndarray, temperature: float) -> None:
    before = softmax(logits)
    after = tempered(before, temperature, axis=1)
    rows = np.arange(len(logits))
    # Where two are as good as equal either may come out first: its probability is the highest all the same.
    assert after[rows, before.argmax(1)] == pytest.approx(after.max(1), abs=1e-6)


def test_certainty_and_impossibility_stay_numbers() -> None:
    for independent in (False, True):
        found = tempered(np.array([[1.0, 0.0]]), 2.5, axis=1, independent=independent)
        assert np.isfinite(found).all()
        assert found[0, 0] > 0.99
    assert np.isfinite(scores(np.array([0.0, 1.0]), independent=True)).all()


@pytest.mark.parametrize("sharpened", [3.0, 1.0, 0.5])
def test_an_over_confident_models_error_falls(sharpened: float) -> None:
    said, targets, _ = cohort(4000, sharpened)
    temperature = best_temperature(said, targets, len(targets))
    assert temperature == pytest.approx(sharpened, rel=0.15)
    said, targets, _ = cohort(4000, sharpened, seed=1)  # others than it was chosen by
    after = error(tempered(said, temperature, axis=1), targets)
    assert after < 0.04
    if sharpened == 3:
        assert error(said, targets) > 4 * after


def test_independent_classes_are_made_honest_too() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (4000, 3))
    targets = (rng.random((4000, 3)) < 1 / (1 + np.exp(-logits))).astype(int)
    said = 1 / (1 + np.exp(-2.5 * logits))
    assert best_temperature(said, targets, len(targets)) == pytest.approx(2.5, rel=0.15)


def test_a_few_right_answers_are_no_reason_for_certainty() -> None:
    said = np.tile(np.array([[0.8, 0.2]], np.float32), (10, 1))
    assert 0.4 < best_temperature(said, np.zeros(10, int), 10) < 1
    many = np.tile(said, (100, 1))
    # A thousand voxels of ten images tell no more than ten images do.
    assert best_temperature(many, np.zeros(1000, int), 10) == pytest.approx(
        best_temperature(said, np.zeros(10, int), 10), rel=1e-3
    )


def test_the_error_is_the_gap_between_confidence_and_truth() -> None:
    sure = np.full(10, 0.9)
    assert calibration_error(sure, np.arange(10) < 9) == pytest.approx(0)
    assert calibration_error(sure, np.arange(10) < 4) == pytest.approx(0.5)
    assert calibration_error(np.ones(2), np.array([True, True])) == pytest.approx(0)
