"""DeLong's interval for the area under the ROC curve, without resampling.

The variance follows from each case's placement among the cases of the other class (DeLong, DeLong and Clarke-Pearson,
Biometrics 1988), found through midranks (Sun and Xu, IEEE Signal Processing Letters 2014). Several cases of one patient
are summed first (Obuchowski, Biometrics 1997); with one case a patient that is DeLong's own variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from models.evaluation import Interval
from tasks.evaluate.intervals import Floats


def delong_interval(
    truth: ArrayLike, score: ArrayLike, patients: Sequence[str], *, level: float = 0.95
) -> Interval | None:
    """The AUC of `score` for boolean `truth`, and its interval on the logit scale, which stays within 0 and 1.

    None where it is undefined: without both classes, each in two patients or more, and where no case is out of order,
    or all are, so that the variance is 0 and says nothing.
    """
    positive, owner = np.asarray(truth, dtype=bool), np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    if any(np.unique(owner[side]).size < 2 for side in (positive, ~positive)):
        return None
    area, variance = delong(positive, score, owner)
    if not 0 < area < 1 or variance <= 0:
        return None
    centre = math.log(area / (1 - area))
    reach = float(stats.norm.isf((1 - level) / 2)) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(centre + side * reach))) for side in (-1, 1))
    return Interval(value=round(area, 12), low=round(low, 12), high=round(high, 12), n=int(owner.max()) + 1)


def delong(truth: ArrayLike, score: ArrayLike, owner: ArrayLike) -> tuple[float, float]:
    """The area and its variance; `owner` numbers the patients from 0 on."""
    positive, owners = np.asarray(truth, dtype=bool), np.asarray(owner, dtype=np.intp)
    hits, others = placements(positive, np.asarray(score, dtype=float))
    area = float(hits.mean())
    above, below = _by_patient(hits - area, owners[positive]), _by_patient(others - area, owners[~positive])
    size = int(owners.max()) + 1
    shared = np.zeros((2, size))
    for row, (places, sums) in zip(shared, (above, below), strict=True):
        row[places] = sums
    m, n = len(hits), len(others)
    variance = _spread(above[1]) / m**2 + _spread(below[1]) / n**2
    # With both classes in one patient the two parts go together.
    variance += 2 * size / (size - 1) * float(shared[0] @ shared[1]) / (m * n)
    return area, variance


def placements(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Of each positive the share of negatives below it, of each negative the share of positives above it; ties half."""
    above, below = score[positive], score[~positive]
    together = stats.rankdata(np.concatenate([above, below]))
    m, n = len(above), len(below)
    return (together[:m] - stats.rankdata(above)) / n, 1 - (together[m:] - stats.rankdata(below)) / m


def _by_patient(values: Floats, owner: NDArray[np.intp]) -> tuple[NDArray[np.intp], Floats]:
    """Whose they are, and each one's sum."""
    places, inverse = np.unique(owner, return_inverse=True)
    return places, np.asarray(np.bincount(inverse, values))


def _spread(sums: Floats) -> float:
    """Of sums around 0, so that it is DeLong's variance times the cases where each patient has one."""
    return float(sums @ sums) * len(sums) / (len(sums) - 1)
