"""The door of the train room."""

from __future__ import annotations

from models.recipe import Recipe
from models.refs import PackageRef, PlanRef, PreparedRef
from tasks.door import door
from tasks.stores.house import Stores
from tasks.train.binding import train_together


@door("train", run_name="train {recipe.name} by plan {plan}", minutes=24 * 60)
def train(
    stores: Stores,
    recipe: Recipe,
    plan: PlanRef,
    prepared: PreparedRef,
    champion: PackageRef | None = None,
    others: tuple[PackageRef | None, ...] = (),
) -> PackageRef:
    """Learn by the plan from the prepared cases; goes on from the newest checkpoint. Needs `prepared` done.

    Where the recipe says so, learning starts from the `champion`, and what serves for `others` is applied together
    with what was learnt.
    """
    return train_together(stores, recipe, plan, champion, others)
