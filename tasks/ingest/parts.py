"""A part of many series, one after another: what became of each is told, and one that fails does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

from models.errors import NocturneError, is_transient
from models.refs import SeriesRef

_ENOUGH: Final = 3
"""After so many failures that may heal it is the store that is away, not a series that is bad: the part ends."""


class Told(Protocol):
    """What became of one series."""

    @property
    def quarantined(self) -> tuple[str, ...]:
        """The reasons why something of it was set aside."""
        ...


Outcome = TypeVar("Outcome", bound=Told)


def each(
    work: Callable[[SeriesRef], Outcome], refs: Iterable[SeriesRef], tell: Callable[[str], object]
) -> tuple[Outcome, ...]:
    """`work` on all of them, in order; `tell` is told of every one that was set aside or failed, by its key.

    A failure is raised when the others are done, one that may heal before one that does not: tried again, the part
    finds the others done. What is no error of ours is raised at once.
    """
    done: list[Outcome] = []
    failures: list[NocturneError] = []
    for ref in refs:
        try:
            outcome = work(ref)
        except NocturneError as error:
            tell(f"series {ref}: failed ({error.reason}): {error.what}")
            failures.append(error)
            if sum(map(is_transient, failures)) == _ENOUGH:
                break
        else:
            if outcome.quarantined:
                tell(f"series {ref}: set aside: {', '.join(outcome.quarantined)}")
            done.append(outcome)
    if failures:
        raise next((error for error in failures if is_transient(error)), failures[0])
    return tuple(done)
