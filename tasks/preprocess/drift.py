"""How far the training cases have moved from those that a plan was made for.

Spacings are compared by the factor between their medians, which is what planning looks at; intensities and the sizes of
structures by Kolmogorov and Smirnov's distance; shares (of manufacturers, of classes) by the population stability
index. Thresholds rise in small cohorts to what chance alone may do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from models.plan import CaseFacts, Drift, Fingerprint
from tasks.imaging.distributions import Counts, index_by_chance, ks_distance, stability_index
from tasks.imaging.facts import PERCENTILES

SPACING_FACTOR = 1.1
LEAST_KS = 0.2
LEAST_PSI = 0.25
"""The industry's "major shift" (Siddiqi 2006)."""
LEAST_CASES = 5
"""A distribution of fewer is none."""
_KS_AT_1_PERCENT = 1.63
_UNKNOWN = "not recorded"


def measure_drift(
    before: Fingerprint, now: Fingerprint, makers: tuple[Counts, Counts], classes: Sequence[str] = ()
) -> tuple[Drift, ...]:
    """Every measure that both fingerprints allow. `makers` counts manufacturers, before and now."""
    return (
        *_spacings(before.cases, now.cases),
        *_levels(before.cases, now.cases),
        *_sizes(before.cases, now.cases, classes),
        *_shares("manufacturers", *makers),
        *_class_shares(before, now, classes),
    )


def drifted(measures: Sequence[Drift]) -> tuple[Drift, ...]:
    """Those beyond their thresholds, the farthest first."""
    return tuple(sorted((m for m in measures if m.drifted), key=lambda m: -m.value / m.threshold))


def _spacings(before: Sequence[CaseFacts], now: Sequence[CaseFacts]) -> Iterator[Drift]:
    for axis, name in enumerate("zyx"):
        # A single slice has no distance to the next.
        old, new = ([c.spacing[axis] for c in cases if c.shape[axis] > 1] for cases in (before, now))
        if old and new:
            was, is_now = float(np.median(old)), float(np.median(new))
            yield Drift(
                measure=f"spacing {name}",
                how="factor",
                value=_kept(max(was, is_now) / min(was, is_now)),
                threshold=SPACING_FACTOR,
                told=f"median {was:.3g} mm then, {is_now:.3g} mm now",
            )


def _levels(before: Sequence[CaseFacts], now: Sequence[CaseFacts]) -> Iterator[Drift]:
    channels = min((len(case.levels) for case in (*before, *now)), default=0)
    for channel in range(channels):
        of = f" of channel {channel + 1}" if channels > 1 else ""
        for name, key in PERCENTILES.items():
            old, new = ([float(getattr(c.levels[channel], key)) for c in cases] for cases in (before, now))
            yield from _apart(f"{name} of intensities{of}", old, new)


def _sizes(before: Sequence[CaseFacts], now: Sequence[CaseFacts], classes: Sequence[str]) -> Iterator[Drift]:
    several = min((len(case.class_voxels) for case in (*before, *now)), default=0)
    for index in range(several):
        name = classes[index] if index < len(classes) else f"class {index + 1}"
        # Where a structure is not shown it has no size; how often it is shown is another measure.
        old, new = (
            [c.class_voxels[index] * math.prod(c.spacing) / 1000 for c in cases if c.class_voxels[index]]
            for cases in (before, now)
        )
        yield from _apart(f"volume of {name}", old, new, unit="ml")


def _apart(measure: str, old: Sequence[float], new: Sequence[float], unit: str = "") -> Iterator[Drift]:
    n, m = len(old), len(new)
    if min(n, m) < LEAST_CASES:
        return
    after = f" {unit}" if unit else ""
    yield Drift(
        measure=measure,
        how="ks",
        value=_kept(ks_distance(old, new)),
        threshold=_kept(max(LEAST_KS, _KS_AT_1_PERCENT * math.sqrt((n + m) / (n * m)))),
        told=f"median {np.median(old):.4g}{after} then, {np.median(new):.4g}{after} now",
    )


def _shares(measure: str, before: Counts, now: Counts) -> Iterator[Drift]:
    n, m = sum(before.values()), sum(now.values())
    if min(n, m) < LEAST_CASES:
        return
    yield Drift(
        measure=measure,
        how="psi",
        value=_kept(stability_index(before, now)),
        threshold=_kept(max(LEAST_PSI, index_by_chance(before, now, 0.01))),
        told=f"{_mix(before)} then, {_mix(now)} now",
    )


def _class_shares(before: Fingerprint, now: Fingerprint, classes: Sequence[str]) -> Iterator[Drift]:
    if len(before.class_counts) != len(now.class_counts) or len(now.class_counts) < 2:
        return
    names = [classes[i] if i < len(classes) else f"class {i + 1}" for i in range(len(now.class_counts))]
    counts = [dict(zip(names, seen.class_counts, strict=True)) for seen in (before, now)]
    yield from _shares("how often each class is shown", *counts)


def _mix(counts: Counts) -> str:
    total = sum(counts.values())
    common = Counter(dict(counts)).most_common(4)
    return ", ".join(f"{name or _UNKNOWN} {count / total:.0%}" for name, count in common if count)


def _kept(value: float) -> float:
    """Rounded, so that the last bits do not change a plan's key."""
    return float(f"{value:.6g}")
