"""A part of many series: one that fails neither stops the others nor stays untold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from models.errors import NocturneError, NotFoundError, StoreBusyError
from models.refs import SeriesRef
from tasks.ingest.parts import each

REFS = tuple(SeriesRef.to(digit * 32) for digit in "abcd")


@dataclass(frozen=True)
class Done:
    """What became of one."""

    ref: SeriesRef
    quarantined: tuple[str, ...] = ()


def test_every_outcome_is_returned_in_order_and_what_is_set_aside_is_told_by_key() -> None:
    told: list[str] = []
    bad = Done(REFS[1], ("missing-slices", "mixed-patients"))
    found = each(lambda ref: bad if ref == REFS[1] else Done(ref), REFS, told.append)
    assert [one.ref for one in found] == list(REFS)
    assert told == [f"series {REFS[1]}: set aside: missing-slices, mixed-patients"]


def test_the_rest_is_done_before_a_failure_is_raised_and_what_may_heal_goes_first() -> None:
    failing: dict[SeriesRef, NocturneError] = {
        REFS[0]: NotFoundError("the scan is out of date"),
        REFS[2]: StoreBusyError("the catalog is locked"),
    }
    seen: list[SeriesRef] = []
    told: list[str] = []

    def work(ref: SeriesRef) -> Done:
        seen.append(ref)
        if ref in failing:
            raise failing[ref]
        return Done(ref)

    with pytest.raises(StoreBusyError):
        each(work, REFS, told.append)
    assert seen == list(REFS)
    assert [line.split(":")[0] for line in told] == [f"series {REFS[0]}", f"series {REFS[2]}"]
    assert "the catalog is locked" in told[1]
    del failing[REFS[2]]
    with pytest.raises(NotFoundError):
        each(work, REFS, told.append)


def test_a_fault_of_ours_is_raised_at_once() -> None:
    seen: list[SeriesRef] = []

    def work(ref: SeriesRef) -> Done:
        seen.append(ref)
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        each(work, REFS, seen.append)  # type: ignore[arg-type]
    assert seen == [REFS[0]]


def test_a_store_that_is_away_is_not_asked_for_every_series() -> None:
    seen: list[SeriesRef] = []

    def work(ref: SeriesRef) -> Done:
        seen.append(ref)
        raise StoreBusyError("the catalog is locked")

    with pytest.raises(StoreBusyError):
        each(work, REFS * 10, lambda told: None)
    assert len(seen) == 3
