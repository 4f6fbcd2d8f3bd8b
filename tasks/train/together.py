"""Several packages' networks in one description: each package counts the same, and brings its own temperature."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from models.errors import RecipeError
from models.package import Member, ModelPackage
from models.plan import Plan
from models.recipe import Recipe

Loaded = tuple[ModelPackage, Mapping[str, Tensor]]
WHERE = "infer.ensemble"


def check_partner(recipe: Recipe, plan: Plan, other: ModelPackage) -> None:
    """Raises RecipeError: classes by name and order, kind and images must be the same, and neither holds the other."""
    name = other.recipe.name
    if not (plan.segments or plan.kind == "classification"):
        raise RecipeError(f"models of a {plan.kind} cannot be averaged", where=WHERE, hint="leave it empty")
    asked, given = _question(plan), _question(other.plan)
    for what, mine in asked.items():
        if given[what] != mine:
            raise RecipeError(
                f"the {what} of {name} are {_words(given[what])}, here they are {_words(mine)}",
                where=WHERE,
                hint=f"leave {name} out, or give both recipes the same classes, in the same order, and images",
            )
    told = {variable.name for variable in plan.variables}
    if unknown := [variable.name for variable in other.plan.variables if variable.name not in told]:
        raise RecipeError(
            f"{name} is told {', '.join(unknown)} beside the image, which this recipe does not know",
            where=WHERE,
            hint="add them to clinical.variables here, or leave them out there",
        )
    if recipe.name in {member.recipe for member in other.members}:
        raise RecipeError(
            f"the champion of {name} holds a model of {recipe.name} itself",
            where=WHERE,
            hint=f"let {name} or {recipe.name} name the other, not both",
        )


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
