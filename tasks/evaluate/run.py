"""One package on the frozen test split of one dataset, kept as an evaluation that others can read."""

from __future__ import annotations

from models.errors import NothingToDoError
from models.evaluation import Comparison
from models.hashing import content_key
from models.package import ModelPackage
from models.refs import DatasetRef, EvaluationRef, PackageRef
from tasks.evaluate.judging import comparison_for, judge_for
from tasks.imaging.predictor import Predictor
from tasks.progress import stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.stores.tables import EvaluationRow


def evaluation_key(package: ModelPackage, dataset: str) -> str:
    """By package, dataset and what the recipe says of judging."""
    return content_key("evaluation", package.key, dataset, package.recipe.evaluate.model_dump(mode="json"))


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
    stores.evaluations.write(key, judged.evaluation, judged.cases, judged.pictures)
    interval = judged.evaluation.primary_interval
    stores.catalog.add(
        EvaluationRow(
            evaluation=key,
            package=package.key,
            dataset=dataset.key,
            metric=judged.evaluation.primary,
            value=interval.value,
            low=interval.low,
            high=interval.high,
        )
    )
    return EvaluationRef.to(key)


def compare(stores: Stores, champion: EvaluationRef, challenger: EvaluationRef) -> Comparison:
    """Paired differences on the same test patients."""
    store = stores.evaluations
    old, new = store.read(champion.key), store.read(challenger.key)
    cases = store.cases(champion.key), store.cases(challenger.key)
    return comparison_for(new.kind)(*cases, old, new)
