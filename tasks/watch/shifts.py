"""Whether what comes is still as what was known: two samples of one property beside each other.

Continuous properties are judged by Kolmogorov and Smirnov's test and, in bins, by the population stability index;
names, such as the manufacturer's, by the index alone. An alarm must mean something: p values are adjusted over all that
is looked at together (Holm), the index's threshold rises to what chance alone may do to so few cases, and differences
too small to matter to a network are none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import norm

from models.recipe.applying import Watch
from models.watching import Shift
from tasks.imaging.distributions import (
    Counts,
    holm,
    in_bins,
    index_by_chance,
    index_p,
    ks_p,
    stability_index,
)

LEAST_KNOWN: Final = 5
"""A distribution of fewer is none."""
_LONG_TAIL: Final = 6.0
"""How much oftener than χ² says the index of few cases lies far out: see `tasks.imaging.distributions`."""
_UNKNOWN: Final = "not recorded"


@dataclass(frozen=True, slots=True)
class Numbers:
    """A continuous property, known and now; `slack` is what does not matter, and a factor where `by_factor`."""

    kind: Literal["input", "output"]
    measure: str
    known: tuple[float, ...]
    now: tuple[float, ...]
    since: str
    unit: str = ""
    slack: float = 0.0
    by_factor: bool = False

    @property
    def told(self) -> str:
        """`median 1.1 mm in training, 2.2 mm now`."""
        unit = f" {self.unit}" if self.unit else ""
        return f"median {np.median(self.known):.4g}{unit} {self.since}, {np.median(self.now):.4g}{unit} now"


@dataclass(frozen=True, slots=True)
class Names:
    """A property that is a name, known and now."""

    kind: Literal["input", "output"]
    measure: str
    known: tuple[str, ...]
    now: tuple[str, ...]
    since: str

    @property
    def told(self) -> str:
        """`A 80%, B 20% in training, C 100% now`."""
        return f"{_mix(self.known)} {self.since}, {_mix(self.now)} now"


def judged(besides: Sequence[Numbers | Names], rule: Watch) -> tuple[Shift, ...]:
    """Each property by the tests that it allows; those of which too little is known, or has come, are left out."""
    enough = [one for one in besides if len(one.known) >= LEAST_KNOWN and len(one.now) >= rule.least]
    tests = [test for one in enough for test in _tests(one)]
    adjusted = holm([test.p for test in tests])
    return tuple(_shift(test, p, rule, len(tests)) for test, p in zip(tests, adjusted, strict=True))


def fall(known: Sequence[float], now: Sequence[float], rule: Watch, *, metric: str) -> Shift | None:
    """How far the mean of a metric has fallen, from test cases to corrected ones; None where there are too few.

    The threshold rises to what chance alone may do, which few corrections leave much room for.
    """
    if not now or len(known) < LEAST_KNOWN:
        return None
    before, after = float(np.mean(known)), float(np.mean(now))
    spread = max(float(np.std(known, ddof=1)), float(np.std(now, ddof=1)) if len(now) > 1 else 0.0)
    by_chance = float(norm.isf(rule.p)) * spread * math.sqrt(1 / len(known) + 1 / len(now))
    return Shift(
        kind="quality",
        measure=metric,
        how="fall",
        value=_kept(before - after),
        threshold=_kept(max(rule.quality, by_chance)),
        cases=len(now),
        told=f"mean {before:.3f} on the test patients, {after:.3f} as corrected",
    )


@dataclass(frozen=True, slots=True)
class _Test:
    """One test of one property: its p value, and for the index the counts."""

    of: Numbers | Names
    p: float
    counts: tuple[Counts, Counts] | None = None


def _tests(one: Numbers | Names) -> list[_Test]:
    if isinstance(one, Names):
        return [_index(one, Counter(map(_named, one.known)), Counter(map(_named, one.now)))]
    known, now, slack = np.array(one.known), np.array(one.now), one.slack
    if one.by_factor:
        known, now, slack = np.log(known), np.log(now), math.log(slack)
    return [_Test(one, ks_p(known, now, slack)), _index(one, *in_bins(known, now, slack=slack))]


def _index(one: Numbers | Names, known: Counts, now: Counts) -> _Test:
    return _Test(one, min(1.0, _LONG_TAIL * index_p(known, now)), (known, now))


def _shift(test: _Test, p: float, rule: Watch, tests: int) -> Shift:
    if test.counts is None:
        value, threshold = p, rule.p
    else:
        by_chance = index_by_chance(*test.counts, rule.p / (tests * _LONG_TAIL))
        value, threshold = stability_index(*test.counts), max(rule.psi, by_chance)
    return Shift(
        kind=test.of.kind,
        measure=test.of.measure,
        how="ks" if test.counts is None else "psi",
        value=_kept(value),
        threshold=_kept(threshold),
        cases=len(test.of.now),
        told=test.of.told,
    )


def _named(name: str) -> str:
    return name or _UNKNOWN


def _mix(names: Sequence[str]) -> str:
    common = Counter(map(_named, names)).most_common(4)
    return ", ".join(f"{name} {count / len(names):.0%}" for name, count in common)


def _kept(value: float) -> float:
    return float(f"{value:.6g}")
