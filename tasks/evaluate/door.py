"""The door of the evaluate room."""

from __future__ import annotations

from pathlib import Path

from models.evaluation import Comparison
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.registration import Registered
from tasks.door import door
from tasks.evaluate import run, summary
from tasks.stores.house import Stores


@door("evaluate", run_name="evaluate {package} on {dataset}", minutes=360)
def evaluate(stores: Stores, package: PackageRef, dataset: DatasetRef) -> EvaluationRef:
    """The package on the dataset's frozen test patients."""
    return run.evaluate_package(stores, package, dataset)


@door("compare", run_name="compare {challenger} with {champion}", minutes=30)
def compare(stores: Stores, champion: EvaluationRef, challenger: EvaluationRef) -> Comparison:
    """Paired differences on the same test patients."""
    return run.compare(stores, champion, challenger)


@door("report", run_name="report on {evaluation}", minutes=30)
def report(
    stores: Stores,
    evaluation: EvaluationRef,
    champion: EvaluationRef | None,
    registered: Registered,
    without: EvaluationRef | None = None,
    comparison: Comparison | None = None,
) -> Path:
    """One self-contained HTML file on what was learnt, how good it is, and what was decided.

    `without` is of the same recipe without made images; `comparison` with the champion, where it was made before.
    """
    return summary.write(stores, evaluation, champion, registered, without, comparison)
