"""Planning for patients as cases: a case is then several images, in memory and in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from models.dataset import DatasetRow
from models.errors import RecipeError
from models.networks import NETWORKS, Entry
from models.recipe import Recipe
from tasks.preprocess.budget import Budget

DEFAULT = "patient_attention"
"""The network that "auto" means."""


def series_of(recipe: Recipe, rows: Sequence[DatasetRow]) -> tuple[int, ...]:
    """How many series each patient of `rows` has; empty where patients are no cases."""
    return tuple(Counter(row.patient for row in rows).values()) if recipe.labels.of == "patient" else ()


def shared(budget: Budget, series: Sequence[int]) -> Budget:
    """What is left for each image of a patient: memory for the one with the most, time for the average one."""
    if not series:
        return budget
    seconds = None if budget.seconds is None else budget.seconds * len(series) / sum(series)
    return replace(budget, together=max(series), seconds=seconds)


@contextmanager
def sharing(series: Sequence[int]) -> Iterator[None]:
    """A RecipeError about memory says that it is shared."""
    try:
        yield
    except RecipeError as error:
        if not series:
            raise
        what = f"{error.what} (a patient's {max(series)} series are in memory together)"
        raise RecipeError(what, where=error.where, hint=error.hint, reason=error.reason) from None


def told(series: Sequence[int]) -> list[str]:
    """A note for the plan."""
    return [f"{len(series)} patients are cases, of {min(series)} to {max(series)} series"] if series else []


def check(recipe: Recipe, entry: Entry) -> None:
    """Raises RecipeError where patients cannot be cases."""
    if recipe.labels.of != "patient":
        return
    if not entry.sets:
        able = ", ".join(name for name, other in NETWORKS.items() if other.sets)
        raise RecipeError(
            'with labels.of = "patient" the network must take several series as one case',
            where="network.name",
            hint=f'leave it at "auto", or take one of {able}',
        )
