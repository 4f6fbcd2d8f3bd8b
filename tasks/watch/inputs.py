"""What training saw of an image's properties beside what comes now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from models.plan import CaseFacts, ChannelLevels, Plan
from tasks.imaging.facts import NOTHING, PERCENTILES, channel_name, extent, visible_level, visible_range
from tasks.watch.seen import Case, Known
from tasks.watch.shifts import Names, Numbers

MATTERS: Final = 0.05
"""Differences of spacing and size below this share, and of intensities below this share of the contrast, are none."""
_SINCE: Final = "in training"


def inputs(known: Known, now: Sequence[Case], plan: Plan) -> Iterator[Numbers | Names]:
    """Spacing, size, intensities of every channel, orientation; and scanners, where it is known what training had."""
    before, after = [case.facts for case in known.cases], [case.facts for case in now]
    yield from _grids(before, after)
    yield from _levels(before, after, plan)
    if all(facts.orientation for facts in before):
        yield _names("orientation", [f.orientation for f in before], [f.orientation for f in after])
    if known.scanners:
        yield _names("manufacturer", [c.manufacturer for c in known.cases], [c.manufacturer for c in now])
        yield _names("scanner", [c.scanner for c in known.cases], [c.scanner for c in now])


def grid_of(facts: CaseFacts) -> dict[str, float]:
    """Spacing and size by name, in mm; a single slice has neither a distance to the next nor a depth."""
    axes = [axis for axis in range(3) if facts.shape[axis] > 1]
    spacings = {f"spacing {'zyx'[axis]}": facts.spacing[axis] for axis in axes}
    return spacings | {f"size {'zyx'[axis]}": extent(facts)[axis] for axis in axes}


def levels_of(facts: CaseFacts, plan: Plan) -> dict[str, float]:
    """Percentiles of every channel that is there by name, as the network sees them."""
    found: dict[str, float] = {}
    for channel, levels in enumerate(facts.levels):
        if levels != NOTHING:
            seen = visible_range(plan.prepare.normalisation, channel)
            name = channel_name(plan, channel, len(facts.levels))
            found |= {f"{told} of {name}": visible_level(levels, key, seen) for told, key in PERCENTILES.items()}
    return found


def contrast(cases: Sequence[CaseFacts], plan: Plan) -> dict[str, float]:
    """By the names of `levels_of`: from the 5th to the 95th percentile of a typical case."""
    widths: dict[str, list[float]] = {}
    for facts in cases:
        for channel, levels in enumerate(facts.levels):
            if levels != NOTHING:
                name = channel_name(plan, channel, len(facts.levels))
                widths.setdefault(name, []).append(_width(levels, plan, channel))
    return {f"{told} of {name}": float(np.median(found)) for name, found in widths.items() for told in PERCENTILES}


def _width(levels: ChannelLevels, plan: Plan, channel: int) -> float:
    seen = visible_range(plan.prepare.normalisation, channel)
    return visible_level(levels, "p95", seen) - visible_level(levels, "p05", seen)


def _grids(before: Sequence[CaseFacts], after: Sequence[CaseFacts]) -> Iterator[Numbers]:
    old, new = [grid_of(facts) for facts in before], [grid_of(facts) for facts in after]
    for name in _names_of(old):
        known, now = (tuple(values[name] for values in side if name in values) for side in (old, new))
        yield Numbers("input", name, known, now, _SINCE, "mm", 1 + MATTERS, by_factor=True)


def _levels(before: Sequence[CaseFacts], after: Sequence[CaseFacts], plan: Plan) -> Iterator[Numbers]:
    old, new = [levels_of(facts, plan) for facts in before], [levels_of(facts, plan) for facts in after]
    widths = contrast(before, plan)
    for name in _names_of(old):
        known, now = (tuple(values[name] for values in side if name in values) for side in (old, new))
        yield Numbers("input", name, known, now, _SINCE, slack=MATTERS * widths[name])


def _names_of(values: Sequence[dict[str, float]]) -> list[str]:
    """In the order in which they are met."""
    return list(dict.fromkeys(name for one in values for name in one))


def _names(measure: str, known: Sequence[str], now: Sequence[str]) -> Names:
    return Names("input", measure, tuple(known), tuple(now), _SINCE)
