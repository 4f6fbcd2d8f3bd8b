"""Which of several configurations is the best, or which two together: by cross-validation, as nnU-Net does.

Isensee et al. 2021: each configuration's folds judge every patient once, by a network that has not seen it; the mean
decides, and two configurations are considered together by the mean of their probabilities.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.errors import TrainingError
from models.geometry import Geometry
from models.package import Configuration
from models.plan import Plan
from tasks.imaging.resample import resample_to_grid
from tasks.progress import stage
from tasks.train.cascade import PlacedCase
from tasks.train.learning import Learnt
from tasks.train.school import Taught
from tasks.train.validate import (
    ImageValidation,
    MaskValidation,
    class_means,
    dice,
    labels_of,
    mean_auc,
    mean_of,
)

Names = tuple[str, ...]
Cancelled = Callable[[], bool]


def compared(taught: Mapping[str, Taught], cancelled: Cancelled) -> tuple[Configuration, ...]:
    """Every configuration and every pair, the best first, which is `chosen`; of equals the one that costs less.

    Raises TrainingError where there is nothing to judge by, InterruptedError once `cancelled`.
    """
    groups: list[Names] = [(name,) for name in taught] + list(itertools.combinations(taught, 2))
    rounds = list(zip(*(one.learnt for one in taught.values()), strict=True))
    figures: list[dict[Names, float]] = []
    with stage("selection", len(rounds), "folds") as progress:
        for networks in rounds:
            figures.append(_of_a_fold(dict(zip(taught, networks, strict=True)), groups, taught, cancelled))
            progress.advance(1)
    metric = next(one.validation.name for one in rounds[0] if one.validation)
    table = [
        Configuration(
            names=names,
            metric=metric,
            figure=statistics.fmean(fold[names] for fold in figures),
            folds=tuple(fold[names] for fold in figures),
            seconds=sum(taught[name].seconds for name in names),
        )
        for names in groups
    ]
    # Sorting is stable: single configurations stand before pairs, and in the recipe's order.
    first, *others = sorted(table, key=lambda one: -one.figure)
    return first.model_copy(update={"chosen": True}), *others


def told(table: Sequence[Configuration]) -> tuple[str, ...]:
    """A note for each configuration, the best first."""
    return tuple(
        f"{'chosen' if one.chosen else 'not chosen'}: {' with '.join(one.names)}: {one.metric} {one.figure:.4f} "
        f"({', '.join(f'{fold:.3f}' for fold in one.folds)})"
        for one in table
    )


def _of_a_fold(
    networks: Mapping[str, Learnt], groups: Sequence[Names], taught: Mapping[str, Taught], cancelled: Cancelled
) -> dict[Names, float]:
    judges = {name: one.validation for name, one in networks.items()}
    plan = next(iter(taught.values())).plan
    if all(isinstance(judge, MaskValidation) for judge in judges.values()):
        return _dice(networks, cast(Mapping[str, MaskValidation], judges), groups, plan, cancelled)
    if all(isinstance(judge, ImageValidation) for judge in judges.values()):
        return _auc(networks, cast(Mapping[str, ImageValidation], judges), groups, cancelled)
    raise TrainingError("there is no case to judge configurations by", where="network.select")


def _auc(
    networks: Mapping[str, Learnt],
    judges: Mapping[str, ImageValidation],
    groups: Sequence[Names],
    cancelled: Cancelled,
) -> dict[Names, float]:
    said = {n: judges[n].probabilities(one.network, one.precision, cancelled) for n, one in networks.items()}
    targets = np.asarray(next(iter(judges.values())).targets)
    return {names: mean_auc(_mean([said[name] for name in names]), targets) for names in groups}


def _dice(
    networks: Mapping[str, Learnt],
    judges: Mapping[str, MaskValidation],
    groups: Sequence[Names],
    plan: Plan,
    cancelled: Cancelled,
) -> dict[Names, float]:
    scores: dict[Names, list[NDArray[np.float64]]] = {names: [] for names in groups}
    for said, mask in _on_one_grid(networks, judges, cancelled):
        for names in groups:
            labels = labels_of(_mean([said[name] for name in names]), regions=plan.regions)
            scores[names].append(dice(labels, mask, len(plan.classes), regions=plan.regions))
    return {names: mean_of(class_means(several)) for names, several in scores.items()}


def _on_one_grid(
    networks: Mapping[str, Learnt], judges: Mapping[str, MaskValidation], cancelled: Cancelled
) -> Iterator[tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8]]]:
    """Of each case, every configuration's probabilities (k, z, y, x) and the truth, on the finest of their grids."""
    every = zip(
        *(judges[name].predicted(one.network, one.precision, cancelled) for name, one in networks.items()), strict=True
    )
    for index, answers in enumerate(every):
        grids = [cast(PlacedCase, judge.cases[index]).about.geometry for judge in judges.values()]
        finest = max(range(len(grids)), key=lambda n: (np.prod(grids[n].shape), -n))
        said = {
            name: _brought(probabilities, grid, grids[finest])
            for name, (probabilities, _), grid in zip(networks, answers, grids, strict=True)
        }
        yield said, answers[finest][1]


def _brought(probabilities: NDArray[np.float32], source: Geometry, target: Geometry) -> NDArray[np.float32]:
    if source.same_grid(target):
        return probabilities
    return np.stack([resample_to_grid(channel, source, target, order=1) for channel in probabilities])


def _mean(several: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    return np.asarray(sum(several[1:], several[0]) / len(several), np.float32)
