"""Two samples beside each other: what is a difference, what is chance, and what is too little to matter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import ks_2samp

from tasks.imaging.distributions import (
    holm,
    in_bins,
    index_by_chance,
    index_p,
    ks_distance,
    ks_p,
    stability_index,
)


def test_distances() -> None:
    assert ks_distance([1, 2, 3], [1, 2, 3]) == 0
    assert ks_distance([1, 1, 1], [2, 2]) == 1
    assert ks_distance([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(0.25)
    assert stability_index({"A": 5}, {"A": 50}) == 0
    assert stability_index(Counter(A=50, B=50), Counter(A=90, B=10)) == pytest.approx(0.879, abs=0.01)


def test_without_slack_the_p_value_is_scipys_own_test() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.5, 1.5):
        one, other = rng.normal(0, 1, 30), rng.normal(shift, 1, 40)
        expected = ks_2samp(one, other).pvalue
        assert ks_p(one, other) >= expected * 0.999
        if expected < 0.05:
            assert ks_p(one, other) == pytest.approx(expected, rel=0.05, abs=1e-12)


def test_what_is_too_small_to_matter_is_no_difference_however_many_show_it() -> None:
    one, other = [0.7] * 500, [0.703125] * 500
    assert ks_p(one, other) < 1e-12
    assert ks_p(one, other, slack=0.01) == 1
    assert ks_p(one, [0.9] * 500, slack=0.01) < 1e-12
    assert stability_index(*in_bins(one, other)) > 1
    assert stability_index(*in_bins(one, other, slack=0.01)) == 0


def test_chance_alone_is_seldom_called_a_difference() -> None:
    rng, false_ks, false_index, far = np.random.default_rng(2), 0, 0, 0
    for _ in range(400):
        old, new = rng.normal(0, 1, 40), rng.normal(0, 1, 30)
        false_ks += ks_p(old, new, slack=0.02) < 0.05
        binned = in_bins(old, new)
        false_index += index_p(*binned) < 0.05
        far += stability_index(*binned) > index_by_chance(*binned, 0.05)
    assert false_ks <= 0.07 * 400
    assert false_index == far
    assert false_index <= 0.12 * 400, "χ² is an approximation: its tail is a little short"


def test_bins_hold_about_as_many_and_equal_values_stay_together() -> None:
    old, new = in_bins(range(50), range(50, 100))
    assert (sum(old.values()), sum(new.values())) == (50, 50)
    assert all(15 <= n <= 25 for n in (old + new).values())
    assert in_bins([1.0] * 9, [1.0] * 4) == (Counter({"bin 1": 9}), Counter({"bin 1": 4}))
    assert index_p(*in_bins([1.0] * 9, [1.0] * 4)) == 1


def test_holm_is_the_published_step_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
