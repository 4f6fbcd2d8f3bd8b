"""What a recipe's `start` means tonight: which weights, and whether there is anything new to learn from."""

from __future__ import annotations

from pathlib import Path

from models.dataset import Dataset, DatasetRow
from models.errors import NotFoundError
from models.hashing import content_key
from models.package import ModelPackage
from models.plan import Plan
from models.recipe import Recipe
from models.refs import PackageRef
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.train.transfer.course import CaseKey, Origin
from tasks.train.transfer.reading import read_weights


def start_key(recipe: Recipe, plan: Plan, champion: PackageRef | None) -> list[str]:
    """What a package's key must hold of its start, besides the recipe: nothing for one from scratch.

    A file's digest is in the recipe.
    """
    parts = [] if recipe.nights.plan == "every-night" else [plan.course_key]
    if recipe.start.source == "champion" and champion is not None:
        parts.append(champion.key)
    if recipe.start.source == "pretraining":
        parts.append(content_key("unlabelled", plan.unlabelled))
    return parts


def nothing_new(stores: Stores, recipe: Recipe, dataset: Dataset, champion: PackageRef) -> bool:
    """Whether the champion, by the same recipe, has learnt from every training case already."""
    described = read_description(stores.packages.local(champion.key))
    if described.recipe.learning_key != recipe.learning_key:
        return False
    return {_case(row) for row in dataset.split("train")} <= _known(stores, described)


def origin_of(stores: Stores, recipe: Recipe, champion: PackageRef | None) -> Origin | None:
    """The weights that the recipe starts from; None from scratch, without a champion, and before a pretraining.

    Raises RecipeError, IntegrityError, PackageError.
    """
    start = recipe.start
    if start.source == "weights" and start.weights and start.sha256:
        weights = read_weights(Path(start.weights).expanduser(), start.sha256)
        return Origin(weights, start.sha256, f"the file of weights {start.sha256[:12]}")
    if start.source != "champion" or champion is None:
        return None
    described, weights = read_package(stores.packages.local(champion.key))
    members = tuple(member.name for member in described.members if not member.package)
    return Origin(weights, champion.key, f"the champion {champion.key[:12]}", _known(stores, described), members)


def _known(stores: Stores, package: ModelPackage) -> frozenset[CaseKey]:
    """The cases that a package has learnt from; none are known where its dataset is no longer kept."""
    try:
        dataset = stores.datasets.read(package.dataset)
    except NotFoundError:
        return frozenset()
    rows = [*dataset.split("train"), *(dataset.split("validation") if package.plan.train.folds > 1 else ())]
    return frozenset(map(_case, rows))


def _case(row: DatasetRow) -> CaseKey:
    return row.volume, row.label
