"""How good made images are: alike to real ones that the generator never saw, and no copies of those it learnt from.

Each test image has a partner that was made of its class, and one of its class from the training split. `distance` is
Fréchet's between made and test images, `fidelity` the share of it that is unavoidable: training images lie at a
distance from test images too. `copied` is the share of made images that lie nearer to a training image than nearly
all test images do: what lies so near was learnt by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from models.errors import NothingToDoError
from models.evaluation import PRIMARY, Comparison, Evaluation, Interval, MetricSummary
from tasks.evaluate import intervals
from tasks.evaluate.intervals import Floats, Statistic
from tasks.imaging.likeness import Spread, fixed_features, nearest

Images = NDArray[np.float32]

METRICS = ("fidelity", "distance", "copied")
RESAMPLES = 400
"""At most: each needs a few eigenvalue problems."""
COPY_QUANTILE = 0.01
"""Of the test images' distances to training images: nearer than this is a copy."""


@dataclass(frozen=True, slots=True)
class MadeImages:
    """Test images with their partners, all (n, c, …) on the prepared grid, and all training images (m, c, …)."""

    patients: tuple[str, ...]
    cases: tuple[str, ...]
    classes: tuple[int, ...]
    real: Images
    made: Images
    partners: Images
    training: Images


def evaluate_synthesis(
    images: MadeImages, class_names: Sequence[str], *, package: str, dataset: str, bootstrap: int, seed: int = 0
) -> tuple[Evaluation, pd.DataFrame]:
    """The figures, over all classes and for each with three images or more, and a row per made image.

    Raises NothingToDoError where the test split has fewer than three images.
    """
    if len(images.cases) < 3:
        raise NothingToDoError(
            f"{len(images.cases)} test images are too few to compare with", hint="label more patients"
        )
    sets = [fixed_features(torch.from_numpy(x)) for x in (images.real, images.made, images.partners)]
    gaps, _ = nearest(images.made, images.training)
    limit = float(np.quantile(nearest(images.real, images.training)[0], COPY_QUANTILE))
    copied = gaps < limit
    found: list[MetricSummary] = []
    classes = np.asarray(images.classes)
    for index, name in [(None, None), *enumerate(class_names)]:
        chosen = np.ones(len(classes), bool) if index is None else classes == index
        if chosen.sum() < 3:
            continue
        owners = [p for p, kept in zip(images.patients, chosen, strict=True) if kept]
        statistic = _statistic([part[chosen] for part in sets], copied[chosen])
        drawn = intervals.bootstrap(statistic, owners, samples=min(bootstrap, RESAMPLES), seed=seed)
        found += [
            MetricSummary(metric=metric, class_name=name, interval=interval)
            for metric, interval in zip(METRICS, drawn, strict=True)
            if interval is not None
        ]
    evaluation = Evaluation(
        kind="synthesis",
        package=package,
        dataset=dataset,
        class_names=tuple(class_names),
        primary=PRIMARY["synthesis"],
        metrics=tuple(found),
        n_patients=len(set(images.patients)),
        n_cases=len(images.cases),
    )
    return evaluation, _frame(images, class_names, gaps, copied)


def _statistic(sets: Sequence[Floats], copied: NDArray[np.bool_]) -> Statistic:
    real, made, partners = sets

    def of(weights: Floats) -> Floats:
        rows = []
        for row in weights:
            truth = Spread.of(real, row)
            distance = Spread.of(made, row).distance(truth)
            unavoidable = Spread.of(partners, row).distance(truth)
            fidelity = min(1.0, unavoidable / distance) if distance > 0 else 1.0
            rows.append((fidelity, distance, float(row @ copied / row.sum())))
        return np.array(rows)

    return of


def _frame(images: MadeImages, class_names: Sequence[str], gaps: Floats, copied: NDArray[np.bool_]) -> pd.DataFrame:
    """One row per made image: its partner, its class, how near the nearest training image is, whether it is a copy."""
    return pd.DataFrame(
        {
            "patient": images.patients,
            "case": images.cases,
            "class_name": [class_names[c] for c in images.classes],
            "nearest_training": gaps,
            "copied": copied,
        }
    )


def compare_synthesis(champion: Evaluation, challenger: Evaluation) -> Comparison:
    """Differences of two evaluations on the same test images.

    Their intervals are combined as those of independent figures (MOVER, Zou and Donner 2008): each version makes its
    own images, so nothing is paired.
    """
    common = [m for m in METRICS if any(s.metric == m and s.class_name is None for s in champion.metrics)]
    return Comparison(
        kind="synthesis",
        dataset=challenger.dataset,
        champion=champion.package,
        challenger=challenger.package,
        primary=PRIMARY["synthesis"],
        differences=tuple(
            MetricSummary(metric=m, interval=_difference(champion.of(m), challenger.of(m))) for m in common
        ),
        n_patients=challenger.n_patients,
        n_cases=challenger.n_cases,
    )


def _difference(old: Interval, new: Interval) -> Interval:
    value, n = new.value - old.value, min(old.n, new.n)
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return Interval(value=value, low=None, high=None, n=n)
    below = math.hypot(new.value - new.low, old.high - old.value)
    above = math.hypot(new.high - new.value, old.value - old.low)
    return Interval(value=value, low=value - below, high=value + above, n=n)
