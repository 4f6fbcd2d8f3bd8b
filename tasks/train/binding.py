"""A model together with the champions of other recipes, in one package that needs none of theirs any more.

Each recipe counts the same, however many networks its package holds, and brings its own temperature. What is chosen by
validation (thresholds, components) is taken from what each of them chose.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.errors import RecipeError
from models.hashing import content_key
from models.plan import Plan
from models.recipe import Recipe
from models.refs import PackageRef, PlanRef
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package, write_package, write_weights
from tasks.stores.tables import PackageRow, PlanRow
from tasks.train.stored import commit_package, train_package
from tasks.train.together import WHERE, bound, check_partner


def train_together(
    stores: Stores,
    recipe: Recipe,
    ref: PlanRef,
    champion: PackageRef | None = None,
    others: Sequence[PackageRef | None] = (),
) -> PackageRef:
    """The package of a plan, and of what serves for the `others` that the recipe names, in its order.

    Raises what `train_package` raises, and RecipeError, before anything is learnt, where they cannot be averaged.
    """
    found = partners(recipe, others)
    if found and (row := stores.catalog.get(PlanRow, ref.key)):
        check_partners(stores, recipe, Plan.model_validate(row.document), found)
    own = train_package(stores, recipe, ref, champion and by_itself(stores, champion))
    return bind_packages(stores, recipe, own, found)


def by_itself(stores: Stores, package: PackageRef) -> PackageRef:
    """The package without the others that it was bound together with."""
    members = read_description(stores.packages.local(package.key)).members
    return PackageRef.to(members[0].package) if members and members[0].package else package


def partners(recipe: Recipe, champions: Sequence[PackageRef | None]) -> tuple[PackageRef, ...]:
    """The packages that `recipe` names, of which `champions` are in the same order. Raises RecipeError: no champion."""
    names = recipe.infer.ensemble
    if recipe.name in names or len(set(names)) < len(names):
        raise RecipeError("a recipe is named twice, or names itself", where=WHERE, hint="name each other recipe once")
    if lacking := [name for name, found in zip(names, champions, strict=True) if found is None]:
        raise RecipeError(
            f"no model serves yet for {', '.join(lacking)}",
            where=WHERE,
            hint="train and register it first, or leave it out",
        )
    return tuple(found for found in champions if found is not None)


def check_partners(stores: Stores, recipe: Recipe, plan: Plan, others: Sequence[PackageRef]) -> None:
    """Raises RecipeError where the model of `plan` and one of `others` do not answer the same question."""
    for ref in others:
        check_partner(recipe, plan, read_description(stores.packages.local(ref.key)))


def bind_packages(stores: Stores, recipe: Recipe, own: PackageRef, others: Sequence[PackageRef]) -> PackageRef:
    """The package of `own` and `others` together, unless it is there; `own` alone where there are no others."""
    own = by_itself(stores, own)
    if not others:
        return own
    key = content_key("ensemble", own.key, [ref.key for ref in others])
    if stores.catalog.get(PackageRow, key) is None:
        if not stores.packages.exists(key):
            loaded = [read_package(stores.packages.local(ref.key)) for ref in (own, *others)]
            package, weights = bound(key, recipe, loaded[0], loaded[1:])
            with stores.packages.staging() as staged:
                digest = write_weights(staged, weights)
                write_package(staged, package.model_copy(update={"weights_sha256": digest}))
                stores.packages.publish(staged, key)
        commit_package(stores, recipe, read_description(stores.packages.local(own.key)).dataset, key)
    return PackageRef.to(key)
