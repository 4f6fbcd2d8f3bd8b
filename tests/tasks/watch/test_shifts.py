"""When what comes counts as moved, and when not: on simulated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.recipe.applying import Watch
from models.watching import Shift
from tasks.watch.inputs import inputs
from tasks.watch.seen import Case, Known
from tasks.watch.shifts import Names, Numbers, fall, judged
from tests.tasks.train.samples import balls
from tests.tasks.watch.samples import cases

PLAN = balls().plan
RULE = Watch()


def looked(known: list[Case], now: list[Case], rule: Watch = RULE, *, scanners: bool = True) -> tuple[Shift, ...]:
    return judged(list(inputs(Known(tuple(known), scanners), now, PLAN)), rule)


def moved(shifts: tuple[Shift, ...]) -> set[str]:
    return {shift.measure for shift in shifts if shift.shifted}


@pytest.mark.parametrize(("trained", "shown"), [(12, 20), (60, 50)])
def test_the_same_distribution_raises_no_alert_in_twenty_resamplings(trained: int, shown: int) -> None:
    for seed in range(20):
        shifts = looked(cases(trained, seed), cases(shown, 1000 + seed))
        assert not moved(shifts), [(shift.measure, shift.told) for shift in shifts if shift.shifted]
        assert len(shifts) > 20


@pytest.mark.parametrize(
    ("change", "measures"),
    [
        ({"spacing": 2.0}, {"spacing z", "spacing y", "spacing x", "size y"}),
        ({"brightness": 2.0}, {"median of intensities", "95th percentile of intensities"}),
        ({"brightness": 0.5}, {"median of intensities"}),
        ({"maker": "UIH"}, {"manufacturer", "scanner"}),
    ],
)
@pytest.mark.parametrize("shown", [20, 50])
def test_what_has_moved_is_found_by_its_name(change: dict[str, Any], measures: set[str], shown: int) -> None:
    for seed in range(5):
        found = moved(looked(cases(30, seed), cases(shown, 1000 + seed, **change)))
        assert measures <= found
        if "maker" in change:
            assert found == measures


def test_a_shift_is_told_in_words_with_its_test() -> None:
    shifts = looked(cases(40, 1), cases(30, 2, spacing=2.0, maker="UIH"))
    spacing = next(s for s in shifts if (s.measure, s.how) == ("spacing z", "ks"))
    assert spacing.value < spacing.threshold == RULE.p
    assert spacing.cases == 30
    assert spacing.told.startswith("median ")
    assert "mm in training" in spacing.told
    makers = next(s for s in shifts if s.measure == "manufacturer")
    assert (makers.how, makers.kind) == ("psi", "input")
    assert makers.value > makers.threshold >= RULE.psi
    assert "UIH 100% now" in makers.told


def test_too_few_say_nothing_and_an_unknown_scanner_is_not_compared() -> None:
    assert looked(cases(40, 1), cases(19, 2, spacing=3.0)) == ()
    assert looked(cases(4, 1), cases(30, 2, spacing=3.0)) == ()
    assert not {"manufacturer", "scanner"} & {s.measure for s in looked(cases(40, 1), cases(30, 2), scanners=False)}


def test_a_difference_too_small_to_matter_is_none() -> None:
    """Two sites that write 0.7 and 0.703125 mm of one protocol."""
    known = Numbers("input", "spacing x", (0.7,) * 300, (0.703125,) * 300, "in training", "mm", 1.05, by_factor=True)
    assert not any(shift.shifted for shift in judged([known], RULE))
    other = Numbers("input", "spacing x", (0.7,) * 300, (0.78,) * 300, "in training", "mm", 1.05, by_factor=True)
    assert all(shift.shifted for shift in judged([other], RULE))


def test_some_of_a_new_scanner_are_found_once_they_are_more_than_chance() -> None:
    known = ("A",) * 60
    assert not judged([Names("input", "scanner", known, ("A",) * 29 + ("B",), "in training")], RULE)[0].shifted
    assert judged([Names("input", "scanner", known, ("A",) * 15 + ("B",) * 15, "in training")], RULE)[0].shifted


def test_the_recipe_says_what_counts() -> None:
    known, now = cases(60, 1), cases(60, 2, brightness=1.3)
    strict = Watch.model_validate({"p": 0.2, "least": 5})
    assert "median of intensities" in moved(looked(known, now, strict))
    assert not moved(looked(known, now, Watch.model_validate({"p": 1e-9, "psi": 5.0})))


class TestQuality:
    known = tuple(np.random.default_rng(0).normal(0.9, 0.03, 30))

    def test_a_fall_beyond_the_recipes_is_one(self) -> None:
        found = fall(self.known, [0.8] * 12, RULE, metric="dice")
        assert found is not None
        assert found.shifted
        assert found.value == pytest.approx(0.1, abs=0.02)
        assert (found.kind, found.how, found.cases) == ("quality", "fall", 12)

    def test_as_good_as_before_is_none_and_so_is_better(self) -> None:
        for seed in range(20):
            again = np.random.default_rng(seed).normal(0.9, 0.03, 10)
            found = fall(self.known, list(again), RULE, metric="dice")
            assert found is not None
            assert not found.shifted
        better = fall(self.known, [0.99] * 20, RULE, metric="dice")
        assert better is not None
        assert not better.shifted

    def test_one_poor_case_may_be_chance(self) -> None:
        found = fall(tuple(np.linspace(0.6, 1, 30)), [0.7], RULE, metric="dice")
        assert found is not None
        assert not found.shifted

    def test_without_corrections_nothing_is_said(self) -> None:
        assert fall(self.known, [], RULE, metric="dice") is None
