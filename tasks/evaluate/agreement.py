"""How well predicted volumes agree with true ones: Bland and Altman's bias and limits of agreement (Lancet 1986)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from models.evaluation import Agreement
from tasks.evaluate.intervals import SAMPLES, Floats, Statistic, bootstrap

WITHIN: Final = 1.959963984540054
"""Standard deviations on either side of the mean between which 95 % of normal differences lie."""


def agreements(
    cases: pd.DataFrame, class_names: Sequence[str], *, samples: int = SAMPLES, seed: int = 0
) -> tuple[Agreement, ...]:
    """Of each class with two cases or more, from `segmentation.cases_frame`. A case that neither shows the class, nor
    was said to, is left out: two zeros agree about nothing and would draw the limits together.
    """
    found = []
    for name in class_names:
        rows = cases[(cases["class_name"] == name) & (cases["outcome"] != "absent")]
        if len(rows) < 2:
            continue
        truth, guess = (rows[f"volume_{part}_ml"].to_numpy(dtype=float) for part in ("truth", "prediction"))
        bias, lower, upper = bootstrap(limits(guess - truth), rows["patient"].tolist(), samples=samples, seed=seed)
        if bias and lower and upper:
            points = tuple(zip(((guess + truth) / 2).tolist(), (guess - truth).tolist(), strict=True))
            found.append(Agreement(class_name=name, bias=bias, lower=lower, upper=upper, points=points))
    return tuple(found)


def limits(differences: Floats) -> Statistic:
    """Mean difference, and the limits of agreement: `WITHIN` standard deviations (of n − 1) below and above it."""
    centre = differences.mean()
    apart = differences - centre  # so that squares lose no digits

    def statistic(weights: Floats) -> Floats:
        count = weights.sum(1)
        mean = weights @ apart / count
        spread = WITHIN * np.sqrt(np.maximum(weights @ apart**2 - count * mean**2, 0) / (count - 1))
        return np.stack([mean, mean - spread, mean + spread], axis=1) + centre

    return statistic
