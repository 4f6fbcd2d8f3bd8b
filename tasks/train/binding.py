"""A model together with the champions of other recipes, in one package that needs none of theirs any more.

Each recipe counts the same, however many networks its package holds, and brings its own temperature. What is chosen by
validation (thresholds, components) is taken from what each of them chose.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from models.errors import RecipeError
from models.hashing import content_key
from models.package import Member, ModelPackage
from models.plan import Plan
from models.recipe import Recipe
from models.refs import PackageRef, PlanRef
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package, write_package, write_weights
from tasks.stores.tables import PackageRow, PlanRow
from tasks.train.stored import commit_package, train_package

Loaded = tuple[ModelPackage, Mapping[str, Tensor]]
_WHERE = "infer.ensemble"


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
        raise RecipeError("a recipe is named twice, or names itself", where=_WHERE, hint="name each other recipe once")
    if lacking := [name for name, found in zip(names, champions, strict=True) if found is None]:
        raise RecipeError(
            f"no model serves yet for {', '.join(lacking)}",
            where=_WHERE,
            hint="train and register it first, or leave it out",
        )
    return tuple(found for found in champions if found is not None)


def check_partners(stores: Stores, recipe: Recipe, plan: Plan, others: Sequence[PackageRef]) -> None:
    """Raises RecipeError where the model of `plan` and one of `others` do not answer the same question."""
    for ref in others:
        check_partner(recipe, plan, read_description(stores.packages.local(ref.key)))


def check_partner(recipe: Recipe, plan: Plan, other: ModelPackage) -> None:
    """Raises RecipeError: classes by name and order, kind and images must be the same, and neither holds the other."""
    name = other.recipe.name
    if not (plan.segments or plan.kind == "classification"):
        raise RecipeError(f"models of a {plan.kind} cannot be averaged", where=_WHERE, hint="leave it empty")
    asked, given = _question(plan), _question(other.plan)
    for what, mine in asked.items():
        if given[what] != mine:
            raise RecipeError(
                f"the {what} of {name} are {_words(given[what])}, here they are {_words(mine)}",
                where=_WHERE,
                hint=f"leave {name} out, or give both recipes the same classes, in the same order, and images",
            )
    told = {variable.name for variable in plan.variables}
    if unknown := [variable.name for variable in other.plan.variables if variable.name not in told]:
        raise RecipeError(
            f"{name} is told {', '.join(unknown)} beside the image, which this recipe does not know",
            where=_WHERE,
            hint="add them to clinical.variables here, or leave them out there",
        )
    if recipe.name in {member.recipe for member in other.members}:
        raise RecipeError(
            f"the champion of {name} holds a model of {recipe.name} itself",
            where=_WHERE,
            hint=f"let {name} or {recipe.name} name the other, not both",
        )


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


def bound(key: str, recipe: Recipe, own: Loaded, others: Sequence[Loaded]) -> tuple[ModelPackage, dict[str, Tensor]]:
    """The description (whose digest is still `own`'s) and the weights of all. Raises RecipeError as `check_partner`."""
    first = own[0]
    members: list[Member] = []
    weights: dict[str, Tensor] = {}
    for number, (package, tensors) in enumerate((own, *others)):
        if number:
            check_partner(recipe, first.plan, package)
        for prefix, member in _brought(number, package):
            members.append(member)
            weights |= {
                f"{member.name}.{n.removeprefix(prefix)}": t for n, t in tensors.items() if n.startswith(prefix)
            }
    every = [package for package, _ in (own, *others)]
    note = "together with " + ", ".join(f"{package.recipe.name} ({package.key[:12]})" for package, _ in others)
    return first.model_copy(
        update={
            "key": key,
            "recipe": recipe,
            "members": tuple(members),
            "temperature": 1.0,
            "threshold": _mean([package.threshold for package in every]),
            "thresholds": tuple(statistics.fmean(each) for each in zip(*(p.thresholds for p in every), strict=True)),
            "keep_largest": tuple(
                name for name in first.plan.classes if 2 * sum(name in p.keep_largest for p in every) > len(every)
            ),
            "training": first.training.model_copy(update={"notes": (*first.training.notes, note)}),
        }
    ), weights


def _brought(number: int, package: ModelPackage) -> list[tuple[str, Member]]:
    """(the prefix of its weights there, itself here) of each network of a package; their weights add up to 1."""
    name = f"{number}-{package.recipe.name}"
    if not package.members:
        own = Member(
            name=name, plan=package.plan, temperature=package.temperature, package=package.key,
            recipe=package.recipe.name,
        )  # fmt: skip
        return [("", own)]
    whole = sum(member.weight for member in package.answering)
    return [
        (
            f"{member.name}.",
            Member(
                name=f"{name}-{member.name}",
                plan=member.plan or package.plan,
                weight=member.weight / whole,
                # What a first stage finds is no probability any more when it is told.
                temperature=member.temperature * (package.temperature if member in package.answering else 1),
                package=package.key,
                recipe=member.recipe or package.recipe.name,
                low=tuple(f"{name}-{other}" for other in member.low),
            ),
        )
        for member in package.members
    ]


def _question(plan: Plan) -> dict[str, object]:
    """What two models must have in common, in the words of a message."""
    return {
        "kinds": plan.kind,
        "classes": plan.classes,
        "activations": plan.activation,
        "cases": plan.of,
        "channels": plan.channels or plan.prepare.channels,
    }


def _words(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
