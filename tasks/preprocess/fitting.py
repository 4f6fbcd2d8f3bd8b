"""A plan cut to what the minutes can train, by the time that a step of it takes.

Planning reckons with what such devices usually do. A dry run tells what this one does: where too few patches could be
seen then, the plan is cut, first its features, then its patch, then its batch, then its depth, and measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.plan import Plan
from models.recipe import Recipe
from tasks.preprocess.budget import Budget, Sized
from tasks.preprocess.resolution import Planned, PlanStage

Measure = Callable[[Plan], float | None]
"""Seconds that one training step of a plan takes; None where that cannot be told."""

LEAST_MINUTES = 2.0
"""Below this, a dry run would take too much of the time."""
LEAST_PER_CASE = 2
"""Patches of each training case that are to be seen, at least."""
LEAST_STEPS = 100
LEAST_LEVELS = 3
_ROUNDS = 3
"""A smaller network is seldom as much faster as it has fewer operations: it is measured again, so many times."""


@dataclass(frozen=True)
class Fitting:
    """Of the stages that `stage` shapes. Without `measure` nothing is cut."""

    recipe: Recipe
    stage: PlanStage
    measure: Measure | None
    cases: int

    def fit(self, planned: Planned, budget: Budget, *, told: bool = False) -> Planned:
        """The stage with the length of its step, or a smaller one with its own."""
        seconds = self._seconds(planned, budget)
        if seconds is None:
            return planned
        first, before = planned, seconds
        for _ in range(_ROUNDS):
            slower = self._slower(planned, budget, seconds)
            planned, again = self._replanned(slower, planned, told), planned
            if _shape(planned) == _shape(again):
                break
            seconds = self._seconds(planned, budget) or seconds
        planned, seconds = self._shallower(*self._fewer(planned, budget, seconds, told), budget, told)
        return _noted(planned, first, before, seconds, self._wanted(planned), budget)

    def _seconds(self, planned: Planned, budget: Budget) -> float | None:
        recipe, minutes = self.recipe, (budget.seconds or 0) / 60
        # With epochs for a budget the same recipe gives the same plan on every machine.
        timed = recipe.train.epochs is None and minutes >= LEAST_MINUTES
        able = recipe.segments or (recipe.kind == "classification" and recipe.labels.of == "series")
        return self.measure(planned.plan) if self.measure and timed and able else None

    def _slower(self, planned: Planned, budget: Budget, seconds: float) -> Budget:
        """The budget with what was measured, where that is less than was reckoned with: nothing ever grows."""
        measured = planned.sized.flops * planned.sized.batch / seconds
        least = LEAST_PER_CASE * self.cases if self.recipe.segments else 0
        return replace(budget, speed=min(measured, budget.flops_a_second), least=least)

    def _replanned(self, budget: Budget, planned: Planned, told: bool) -> Planned:
        return self.stage(planned.grid, budget, told=told) if told else self.stage(planned.grid, budget)

    def _wanted(self, planned: Planned) -> int:
        return max(planned.sized.wanted, LEAST_PER_CASE * self.cases if self.recipe.segments else 0)

    def _fewer(self, planned: Planned, budget: Budget, seconds: float, told: bool) -> tuple[Planned, float]:
        """Fewer patches a step, where there would be too few steps."""
        batch = planned.plan.train.batch_size
        if self.recipe.train.batch_size != "auto" or _steps(budget, seconds) >= LEAST_STEPS or batch == 1:
            return planned, seconds
        fewer = max(1, batch // 2 ** math.ceil(math.log2(LEAST_STEPS / max(1e-9, _steps(budget, seconds)))))
        plan = planned.plan
        plan = plan.model_copy(update={"train": plan.train.model_copy(update={"batch_size": fewer})})
        planned = replace(planned, plan=plan, sized=replace(planned.sized, batch=fewer))
        return planned, self._seconds(planned, budget) or seconds

    def _shallower(self, planned: Planned, seconds: float, budget: Budget, told: bool) -> tuple[Planned, float]:
        """Fewer levels, where even the smallest patch takes too long."""
        levels, batch = len(planned.plan.network.features), planned.plan.train.batch_size
        if not self.recipe.segments or self.recipe.network.features != "auto":
            return planned, seconds
        while levels > LEAST_LEVELS and _patches(planned.sized, budget, seconds) < self._wanted(planned):
            levels -= 1
            less = self._replanned(replace(self._slower(planned, budget, seconds), levels=levels), planned, told)
            if _shape(less) == _shape(planned):
                break
            train = less.plan.train.model_copy(update={"batch_size": min(batch, less.plan.train.batch_size)})
            planned = replace(
                less,
                plan=less.plan.model_copy(update={"train": train}),
                sized=replace(less.sized, batch=train.batch_size),
            )
            seconds = self._seconds(planned, budget) or seconds
        return planned, seconds


def _steps(budget: Budget, seconds: float) -> float:
    return math.inf if budget.seconds is None else budget.seconds / seconds


def _patches(sized: Sized, budget: Budget, seconds: float) -> float:
    return _steps(budget, seconds) * sized.batch


def _shape(planned: Planned) -> tuple[object, ...]:
    plan = planned.plan
    return plan.network.features, plan.network.strides, plan.train.patch_size, plan.train.batch_size


def _noted(planned: Planned, first: Planned, before: float, seconds: float, wanted: int, budget: Budget) -> Planned:
    plan = planned.plan
    enough = _patches(planned.sized, budget, seconds)
    notes = [
        f"dry run: a step takes {_told(seconds)} on this device, so about {enough:,.0f} patches in training are seen"
    ]
    if _shape(planned) != _shape(first):
        notes.append(
            f"cut to the time (features, patch, batch, depth, in this order) from {_words(first)}: a step of it takes "
            f"{_told(before)}, of which the time allows {_patches(first.sized, budget, before):,.0f} patches"
        )
    if enough < wanted:
        notes.append(f"{wanted:,} patches should be seen: more minutes would help most")
    train = plan.train.model_copy(update={"step_seconds": float(f"{seconds:.4g}")})
    return replace(planned, plan=plan.model_copy(update={"train": train, "notes": (*plan.notes, *notes)}))


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1000 * seconds:.0f} ms"


def _words(planned: Planned) -> str:
    train, features = planned.plan.train, planned.plan.network.features
    return (
        f"features {'-'.join(map(str, features))}, patch {' × '.join(map(str, train.patch_size))}, "
        f"batch {train.batch_size}"
    )
