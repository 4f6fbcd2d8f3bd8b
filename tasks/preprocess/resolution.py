"""At which resolution a cohort is learnt: the full one, a coarser one, or both as a cascade (nnU-Net's rules).

Isensee et al. 2021, as in `default_experiment_planner.py` of nnU-Net v2: where the patch shows less than a quarter of
the median case, the spacing is coarsened, the finest axes first, until it shows a quarter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from models.errors import RecipeError
from models.hashing import content_key
from models.plan import Fingerprint, FloatTriple, Plan, TrainPlan
from models.recipe import Recipe
from tasks.preprocess.budget import Budget, Sized
from tasks.preprocess.grids import Grid, median_shape

COVERED = 0.25
LEAST_COARSER = 2.0
"""Times fewer voxels that a coarser grid has at least: it would be the same otherwise."""
GROWTH = 1.03
APART = 2.0
"""Axes finer than the coarsest by more than this are coarsened first."""
_ROUNDS = 10
_TOO_SHORT = (
    "no cascade: the time is too short for two stages with the patch that memory holds; "
    'network.resolution = "cascade" or "low" decides otherwise'
)
_DIGITS = 7  # of a content key, for a seed that every generator takes


@dataclass(frozen=True, slots=True)
class Planned:
    """One stage, how it was sized, and on which grid."""

    plan: Plan
    sized: Sized
    grid: Grid

    @property
    def covered(self) -> float:
        """Share of the median case that a patch shows."""
        return math.prod(self.sized.topology.patch) / math.prod(self.grid.median)


class PlanStage(Protocol):
    """Plans on a grid with a budget."""

    def __call__(self, grid: Grid, budget: Budget, *, told: bool = False) -> Planned:
        """A stage whose network is told a coarser segmentation, or not."""
        ...


class FitStage(Protocol):
    """Cuts a stage to what its budget can train."""

    def __call__(self, planned: Planned, budget: Budget, *, told: bool = False) -> Planned:
        """The stage, or a smaller one."""
        ...


def resolved(
    recipe: Recipe, fingerprint: Fingerprint, grid: Grid, budget: Budget, stage: PlanStage, fit: FitStage
) -> Plan:
    """The plan at the resolution that the recipe asks for, or that the cases need. Raises RecipeError.

    Its stages are shaped by `stage`, and once they are settled cut by `fit`.
    """
    wish = recipe.network.resolution
    able = recipe.segments and grid.dimensions == 3
    if not able and wish in ("low", "cascade"):
        raise RecipeError(
            f'"{wish}" is for volumes, and these are learnt slice by slice',
            where="network.resolution",
            hint='write "auto", or network.dimensions = 3 where the images are volumes',
        )
    half = budget if budget.seconds is None else replace(budget, seconds=budget.seconds / 2)
    if wish == "cascade":
        second = stage(grid, half, told=True)
        first = coarser(fingerprint, second, half, stage)
        return _cascade(fit(first, half), fit(second, half, told=True))
    full = stage(grid, budget)
    if wish == "low":
        coarse = fit(coarser(fingerprint, full, budget, stage), budget)
        notes = (*coarse.plan.notes, _coarsened(coarse, full))
        return coarse.plan.model_copy(update={"resolution": "low", "notes": notes})
    # Who gives a patch has decided what it shows; a cascade is for patches that memory limits.
    settled = recipe.train.patch_size != "auto" or recipe.start.source == "pretraining"
    if not able or wish == "full" or full.covered >= COVERED or settled:
        return fit(full, budget).plan
    stages = None if full.sized.hurried else _both(fingerprint, full, half, stage)
    if stages is None:
        plan = fit(full, budget).plan
        return plan.model_copy(update={"notes": (*plan.notes, _TOO_SHORT)})
    return _cascade(fit(stages[0], half), fit(stages[1], half, told=True))


def coarser(fingerprint: Fingerprint, full: Planned, budget: Budget, stage: PlanStage) -> Planned:
    """A stage of which a patch shows enough of the median case, and at most half of the voxels."""
    spacing, patch, voxels = full.grid.spacing, math.prod(full.sized.topology.patch), math.prod(full.grid.median)
    found = full
    for _ in range(_ROUNDS):
        # The patch of a coarser grid may be another: smaller than a small median case, say.
        most = min(patch / COVERED, voxels / LEAST_COARSER)
        while math.prod(median_shape(fingerprint, spacing)) > most and not _single(median_shape(fingerprint, spacing)):
            spacing = _grown(spacing)
        steady = _steady(spacing)
        grid = replace(full.grid, spacing=steady, median=median_shape(fingerprint, steady), notes=())
        found = stage(grid, budget)
        if found.covered >= COVERED or _single(grid.median):
            break
        patch = min(patch - 1, math.prod(found.sized.topology.patch))
    return found


def _both(fingerprint: Fingerprint, full: Planned, half: Budget, stage: PlanStage) -> tuple[Planned, Planned] | None:
    """Both stages, where each can have what `full` has in half of its time."""
    second = stage(full.grid, half, told=True)
    if second.sized.hurried or second.plan.network.features[0] < full.plan.network.features[0]:
        return None
    first = coarser(fingerprint, full, half, stage)
    return None if first.sized.hurried else (first, second)


def _cascade(first: Planned, second: Planned) -> Plan:
    full = second.plan
    low = first.plan.model_copy(
        update={
            "resolution": "low",
            "seed": int(content_key("low", full.seed)[:_DIGITS], 16),
            "train": _halved(first.plan.train),
            "notes": (),
        }
    )
    told = [note for note in first.plan.notes if note not in full.notes]
    notes = (
        "a cascade: first at low resolution, then at full resolution, told what the first stage found",
        *full.notes,
        _coarsened(first, second),
        *(f"low resolution: {note}" for note in told),
    )
    return full.model_copy(update={"low": low, "train": _halved(full.train), "notes": notes})


def _halved(train: TrainPlan) -> TrainPlan:
    return train if train.minutes is None else train.model_copy(update={"minutes": train.minutes / 2})


def _coarsened(coarse: Planned, full: Planned) -> str:
    spacing, median = coarse.grid.spacing, coarse.grid.median
    return (
        f"low resolution: {' × '.join(f'{s:g}' for s in spacing)} mm, of which a patch shows {coarse.covered:.0%} of "
        f"the median case ({' × '.join(map(str, median))} voxels), {full.covered:.0%} at full resolution"
    )


def _grown(spacing: FloatTriple) -> FloatTriple:
    grown = np.array(spacing)
    fine = grown.max() / grown > APART
    grown[fine if fine.any() else slice(None)] *= GROWTH
    return float(grown[0]), float(grown[1]), float(grown[2])


def _single(shape: tuple[int, int, int]) -> bool:
    """Whether nothing is left to coarsen."""
    return max(shape) <= 1


def _steady(spacing: FloatTriple) -> FloatTriple:
    """Three digits, so that a night's new cases seldom move it and prepared arrays stay valid."""
    z, y, x = (float(f"{s:.3g}") for s in spacing)
    return z, y, x
