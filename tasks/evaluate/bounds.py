"""Intervals of areas and shares, which end at 0 and 1.

Near its end an area under the ROC curve, or a share of the patients, is skewed, and percentiles of resamples miss the
truth too often: an AUC of 0.92 in 18 of 100 cohorts of 20 patients. On the logit scale the bootstrap's standard error
serves, as it does DeLong's interval: 97 of 100 held it. Where all are right nothing can be resampled, and a closed
interval stands in, of as many independent answers as there are patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from models.evaluation import Interval
from tasks.evaluate.intervals import Floats

Bounds = tuple[float, float]

_Z: Final = 1.959963984540054
_NEAR: Final = 1e-9


def on_logit(interval: Interval | None, resampled: Floats, closed: Bounds | None) -> Interval | None:
    """`interval` with ends from the logit scale, or `closed` where its value is 0 or 1 in all resamples.

    As it was where there is no `closed`, nor ends: of a single patient.
    """
    if interval is None or closed is None or interval.low is None:
        return interval
    known = resampled[np.isfinite(resampled)]
    value, spread = interval.value, float(known.std()) if known.size else 0.0
    low, high = closed
    if 0 < value < 1 and spread > 0:
        reach = _Z * spread / (value * (1 - value))
        low, high = (float(special.expit(special.logit(value) + side * reach)) for side in (-1, 1))
    return interval.model_copy(update={"low": round(low, 12), "high": round(high, 12)})


def wilson(share: float, n: int) -> Bounds:
    """Of a share of `n` independent yes-or-no answers (Wilson, JASA 1927; 95 %)."""
    centre, half = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    whole = 1 + _Z**2 / n
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def mann_whitney(area: float, positives: int, negatives: int) -> Bounds:
    """Of an area under the ROC curve (Newcombe, Statistics in Medicine 2006, method 5; 95 %).

    The ends are those areas from which the one found is 1.96 standard errors away, by the standard error that they
    themselves have.
    """
    spread = (positives + negatives) / 2 - 1

    def gap(other: float) -> float:
        shape = 1 + spread * ((1 - other) / (2 - other) + other / (1 + other))
        return (other - area) ** 2 - _Z**2 * other * (1 - other) * shape / (positives * negatives)

    low = optimize.brentq(gap, 0.0, area - _NEAR) if area > _NEAR else 0.0
    high = optimize.brentq(gap, area + _NEAR, 1.0) if area < 1 - _NEAR else 1.0
    return float(low), float(high)


def mean_bounds(parts: Sequence[Bounds | None]) -> Bounds | None:
    """Of the mean of figures: as if all erred together. None where one is undefined."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    low, high = np.mean(known, axis=0).tolist()
    return low, high


def how_many(patients: Sequence[str], chosen: ArrayLike) -> int:
    """Patients with a case that is `chosen`: cases of one patient are no independent answers."""
    return len(set(np.asarray(patients, dtype=str)[np.asarray(chosen, dtype=bool)]))
