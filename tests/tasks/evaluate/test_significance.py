from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tasks.evaluate.figures import Figures
from tasks.evaluate.intervals import weighted_mean
from tasks.evaluate.significance import paired_tests, wilcoxon
from tasks.imaging.distributions import holm


def _tests(gaps: np.ndarray, patients: list[str], names: tuple[str | None, ...]) -> dict[str | None, object]:
    figures = Figures(tuple(("dice", name) for name in names), weighted_mean(gaps), tuple(patients), gaps)
    return {t.class_name: t for t in paired_tests(figures, figures.drawn(samples=999))}


def test_wilcoxon_sees_each_patient_once() -> None:
    gaps = np.random.default_rng(0).normal(0.3, 1, 24)
    patients = [f"P{number}" for number in range(24)]
    expected = stats.wilcoxon(gaps).pvalue
    assert wilcoxon(gaps, patients) == pytest.approx(expected)
    assert wilcoxon(np.repeat(gaps, 5), np.repeat(patients, 5).tolist()) == pytest.approx(expected)
    assert wilcoxon(np.r_[gaps, 0.0, np.nan], [*patients, "Q", "R"]) == pytest.approx(expected)


def test_few_patients_with_like_differences_are_gone_through() -> None:
    assert wilcoxon([1, 1, 1, 1, 1], list("ABCDE")) == pytest.approx(2 / 32)
    assert wilcoxon([1, 1, 1, 1, -1], list("ABCDE")) == pytest.approx(2 * 6 / 32)
    assert wilcoxon([0, 0], ["A", "B"]) is None
    assert wilcoxon([np.nan], ["A"]) is None


def test_both_tests_have_to_agree_and_classes_pay_for_each_other() -> None:
    generator = np.random.default_rng(1)
    gaps = generator.normal((0.6, 0.6, 0.0, 0.0), 1, (30, 4))
    found = _tests(gaps, [f"P{number}" for number in range(30)], (None, "a", "b", "c"))
    worse = {name: max(test.wilcoxon, test.bootstrap) for name, test in found.items()}
    assert found[None].adjusted == worse[None], "the figure over all classes is asked alone"
    assert [found[n].adjusted for n in "abc"] == pytest.approx(holm([worse[n] for n in "abc"]))
    assert found["a"].adjusted >= worse["a"]
    assert found["a"].bootstrap == pytest.approx(stats.ttest_1samp(gaps[:, 1], 0).pvalue, abs=0.02)


def test_without_a_difference_nothing_is_found_and_one_patient_is_no_test() -> None:
    (same,) = _tests(np.zeros((5, 1)), list("ABCDE"), ("a",)).values()
    assert (same.wilcoxon, same.bootstrap, same.adjusted) == (None, 1, 1)
    assert _tests(np.ones((3, 1)), ["A", "A", "A"], ("a",)) == {}
