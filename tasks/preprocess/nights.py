"""What a night keeps of the champion: its plan, for as long as the data has not moved away from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from models.dataset import Dataset
from models.errors import NotFoundError
from models.package import ModelPackage
from models.plan import Drift, Fingerprint, Plan
from models.recipe import Recipe
from models.refs import PackageRef
from tasks.preprocess.drift import drifted, measure_drift
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import PlanRow

_NOTE = "nights: "


@dataclass(frozen=True, slots=True)
class Before:
    """The champion, and the data that its plan was made for."""

    package: ModelPackage
    fingerprint: Fingerprint | None
    dataset: Dataset | None


def read_before(stores: Stores, champion: PackageRef) -> Before:
    """The champion as planning needs it. Data that are no longer kept are told from the package, or not at all."""
    package = read_description(stores.packages.local(champion.key))
    # A plan that was kept before was made for older data than its package has learnt from: drift adds up from there.
    made_for = package.plan.made_for or package.dataset
    rows = stores.catalog.find(PlanRow, PlanRow.dataset == made_for, order_by=PlanRow.created_at, limit=1)
    document = rows[0].fingerprint if rows else package.fingerprint
    try:
        dataset = stores.datasets.read(made_for)
    except NotFoundError:
        dataset = None
    return Before(package, Fingerprint.model_validate(document) if document else None, dataset)


def plan_of_the_night(
    recipe: Recipe, dataset: Dataset, seen: Fingerprint, before: Before | None, anew: Callable[[], Plan]
) -> Plan:
    """The champion's plan or a new one, as the recipe's `nights.plan` says; notes tell which and why."""
    if recipe.nights.plan == "every-night":
        return anew()
    if before is None:
        return _noted(anew(), "there is no champion whose plan could be kept")
    measures = _drift(before, dataset, seen)
    if (why := _unfit(recipe, dataset, before.package)) is not None:
        return _noted(anew(), why, measures)
    far = drifted(measures)
    if recipe.nights.plan == "on-drift" and (far or before.fingerprint is None):
        told = "; ".join(f"{m.measure}: {m.told}" for m in far[:3]) or "what the champion's was made for is not known"
        return _noted(anew(), f"planned anew, as the data has drifted: {told}", measures)
    kept = before.package.plan
    own = {
        "train": kept.train.model_copy(update={"start": recipe.start}),
        "made_for": kept.made_for or before.package.dataset,
        "low": kept.low
        and kept.low.model_copy(update={"train": kept.low.train.model_copy(update={"start": recipe.start})}),
    }
    drift = f"though the data has drifted ({', '.join(m.measure for m in far[:3])})" if far else "no drift of the data"
    return _noted(
        kept.model_copy(update=own), f"the plan of package {before.package.key[:12]} is kept: {drift}", measures
    )


def _unfit(recipe: Recipe, dataset: Dataset, champion: ModelPackage) -> str | None:
    """Why the champion's plan cannot be kept, or None."""
    if recipe.planning_key != champion.recipe.planning_key:
        return "planned anew: the recipe has changed since the champion's plan"
    if dataset.classes != champion.plan.classes:
        return "planned anew: the classes are others than the champion's"
    return None


def _drift(before: Before, dataset: Dataset, seen: Fingerprint) -> tuple[Drift, ...]:
    if before.fingerprint is None:
        return ()
    makers = (_makers(before.dataset) if before.dataset else Counter(), _makers(dataset))
    return measure_drift(before.fingerprint, seen, makers, dataset.classes)


def _makers(dataset: Dataset) -> Counter[str]:
    return Counter(row.manufacturer for row in dataset.split("train") if not row.synthetic)


def _noted(plan: Plan, note: str, drift: tuple[Drift, ...] = ()) -> Plan:
    notes = (*(n for n in plan.notes if not n.startswith(_NOTE)), _NOTE + note)
    return plan.model_copy(update={"notes": notes, "drift": drift})
