"""Several configurations to choose from: each planned by itself, for its part of the minutes."""

from __future__ import annotations

from collections.abc import Callable

from models.errors import RecipeError
from models.plan import Candidate, Plan
from models.recipe import Recipe


def to_choose_from(recipe: Recipe, make: Callable[[Recipe], Plan]) -> Plan:
    """The first candidate's plan, with all of them. Raises RecipeError naming the one that cannot be planned."""
    networks = recipe.network.candidates()
    train, limit = recipe.train, recipe.train.limit_minutes
    if limit is not None:
        train = train.model_copy(update={"minutes": limit / len(networks)})
    plans: dict[str, Plan] = {}
    for name, network in networks.items():
        try:
            plans[name] = make(recipe.model_copy(update={"network": network, "train": train}))
        except RecipeError as error:
            raise RecipeError(
                f"{name} cannot be planned: {error.what}",
                where="network.select",
                hint=f"leave {name} out, or {error.hint}" if error.hint else f"leave {name} out",
                reason=error.reason,
            ) from None
    shared = "each in its part of the minutes" if limit is not None else "each with all of the epochs"
    notes = [
        f"chosen from {', '.join(plans)} by cross-validation over {train.folds} folds, {shared}",
        *(f"{name}: {note}" for name, plan in plans.items() for note in plan.notes),
    ]
    candidates = tuple(Candidate(name=name, plan=plan.model_copy(update={"notes": ()})) for name, plan in plans.items())
    return candidates[0].plan.model_copy(update={"candidates": candidates, "notes": tuple(notes)})
