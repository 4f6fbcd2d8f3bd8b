"""One package on the frozen test split of one dataset, kept as an evaluation that others can read."""

from __future__ import annotations

from typing import Final

from models.dataset import Dataset
from models.errors import NothingToDoError
from models.evaluation import Comparison, Subgroup
from models.hashing import content_key
from models.package import WEIGHTS_FILE, ModelPackage
from models.refs import DatasetRef, EvaluationRef, PackageRef
from tasks.evaluate.cost import cost_of
from tasks.evaluate.judging import Judged, comparison_for, figures_for, judge_for
from tasks.evaluate.subgroups import paired_subgroups, subgroups, traits_of
from tasks.imaging.predictor import Predictor
from tasks.progress import stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.stores.tables import EvaluationRow

VERSION: Final = 3
"""Of what an evaluation holds: with a new one the champion is judged anew, so that both can be compared."""


def evaluation_key(package: ModelPackage, dataset: str) -> str:
    """By package, dataset, what the recipe says of judging, and how judging is done."""
    return content_key("evaluation", VERSION, package.key, dataset, package.recipe.evaluate.model_dump(mode="json"))


def evaluate_package(stores: Stores, package: PackageRef, dataset: DatasetRef) -> EvaluationRef:
    """Judge `package` on the test split, unless that was done. Raises NothingToDoError without a test case."""
    folder = stores.packages.local(package.key)
    key = evaluation_key(read_description(folder), dataset.key)
    if stores.catalog.get(EvaluationRow, key):
        return EvaluationRef.to(key)
    described, weights = read_package(folder)
    cases = stores.datasets.read(dataset.key)
    rows = cases.split("test")
    if not rows:
        raise NothingToDoError(
            "the dataset has no test patient",
            where=dataset.key,
            hint="label more patients: the first few go to training",
        )
    predictor = Predictor(described, weights)
    with stage("evaluate", len(rows), "cases") as running:
        judged = judge_for(cases.kind)(stores, described, predictor, cases, rows, running)
    evaluation = judged.evaluation.model_copy(
        update={
            "subgroups": _subgroups(stores, described, cases, judged),
            "cost": cost_of(judged.seconds, folder / WEIGHTS_FILE, predictor.device),
        }
    )
    stores.evaluations.write(key, evaluation, judged.cases, judged.pictures)
    interval = evaluation.primary_interval
    stores.catalog.add(
        EvaluationRow(
            evaluation=key,
            package=package.key,
            dataset=dataset.key,
            metric=evaluation.primary,
            value=interval.value,
            low=interval.low,
            high=interval.high,
        )
    )
    return EvaluationRef.to(key)


def compare(stores: Stores, champion: EvaluationRef, challenger: EvaluationRef) -> Comparison:
    """Paired differences on the same test patients, over all of them and in the subgroups that the challenger's recipe
    asks for.
    """
    store = stores.evaluations
    old, new = store.read(champion.key), store.read(challenger.key)
    before, after = store.cases(champion.key), store.cases(challenger.key)
    found = comparison_for(new.kind)(before, after, old, new)
    figures = figures_for(new.kind)
    if figures is None:
        return found
    asked = read_description(stores.packages.local(new.package)).recipe.evaluate
    traits = traits_of(stores, asked, stores.datasets.read(new.dataset), after)
    groups = paired_subgroups((before, old), (after, new), figures, traits, asked)
    return found.model_copy(update={"subgroups": groups})


def _subgroups(stores: Stores, package: ModelPackage, dataset: Dataset, judged: Judged) -> tuple[Subgroup, ...]:
    figures, asked = figures_for(dataset.kind), package.recipe.evaluate
    if figures is None:
        return ()
    traits = traits_of(stores, asked, dataset, judged.cases)
    return subgroups(judged.cases, judged.evaluation, figures, traits, asked)
