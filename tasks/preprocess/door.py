"""The door of the preprocess room."""

from __future__ import annotations

from models.recipe import Recipe
from models.refs import DatasetRef, PackageRef, PlanRef, PreparedRef
from tasks.door import door
from tasks.preprocess import stored
from tasks.stores.house import Stores


@door("plan", run_name="plan {recipe.name} on {dataset}")
def plan(stores: Stores, recipe: Recipe, dataset: DatasetRef, champion: PackageRef | None = None) -> PlanRef:
    """What the recipe becomes, once the training split has been looked at; or the champion's plan, kept."""
    return stored.plan_training(stores, recipe, dataset, champion)


@door("prepare", run_name="prepare by plan {plan}", minutes=6 * 60)
def prepare(stores: Stores, recipe: Recipe, plan: PlanRef) -> PreparedRef:
    """Prepared arrays of all training and validation cases; only what is new is computed."""
    return stored.prepare_planned(stores, recipe, plan)
