"""Whether two versions differ, patient by patient: Wilcoxon's signed-rank test and the paired bootstrap.

The cases of a patient are no independent witnesses: the test sees the mean difference of each patient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from models.evaluation import PairedTest
from tasks.evaluate.figures import Figures, Label
from tasks.evaluate.intervals import Drawn
from tasks.imaging.distributions import holm

_FEW: Final = 12


def paired_tests(differences: Figures, drawn: Drawn) -> tuple[PairedTest, ...]:
    """One of each metric and class that is defined; none with a single patient.

    Holm's correction is over the classes of a metric; the figure over all classes is not one of them.
    """
    found: dict[Label, tuple[float | None, float]] = {}
    for index, (label, p) in enumerate(zip(differences.labels, drawn.p_values(), strict=True)):
        if math.isfinite(p) and math.isfinite(drawn.point[index]):
            found[label] = wilcoxon(differences.each[:, index], differences.patients), float(p)
    families: defaultdict[tuple[str, bool], list[Label]] = defaultdict(list)
    for metric, name in found:
        families[metric, name is None].append((metric, name))
    adjusted: dict[Label, float] = {}
    for members in families.values():
        adjusted |= zip(members, holm([_worse(*found[label]) for label in members]), strict=True)
    return tuple(
        PairedTest(metric=metric, class_name=name, wilcoxon=w, bootstrap=p, adjusted=adjusted[metric, name])
        for (metric, name), (w, p) in found.items()
    )


def wilcoxon(differences: ArrayLike, patients: Sequence[str]) -> float | None:
    """Two-sided p value of the patients' mean differences (Wilcoxon, Biometrics Bulletin 1945).

    Patients without a difference are left out, as Wilcoxon did; None where no one is left. NaN: not defined there.
    """
    values = np.asarray(differences, dtype=float)
    known = np.isfinite(values)
    if not known.any():
        return None
    _, owner = np.unique(np.asarray(patients, dtype=str)[known], return_inverse=True)
    means = np.round(np.bincount(owner, values[known]) / np.bincount(owner), 12)
    means = means[means != 0]
    if not means.size:
        return None
    tied = np.unique(np.abs(means)).size < means.size
    # SciPy approximates where there are ties; of few patients all signs can be gone through instead.
    through = stats.PermutationMethod(n_resamples=2**means.size) if tied and means.size <= _FEW else "auto"
    return float(min(1.0, stats.wilcoxon(means, method=through).pvalue))


def _worse(one: float | None, other: float) -> float:
    return other if one is None else max(one, other)
