"""Classes of whole test images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.dataset import Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation
from models.package import ModelPackage
from models.schemas import CASE_METRICS_CLASSIFICATION, check
from tasks.evaluate import classification, pictures
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.comparison import compare_classification
from tasks.evaluate.cost import Stopwatch
from tasks.evaluate.explaining import Images, chosen, saliency_pictures
from tasks.evaluate.figures import Figures
from tasks.evaluate.judging import Judged, image_of
from tasks.imaging.predictor import Predictor
from tasks.progress import Stage
from tasks.stores.house import Stores


def judge(
    stores: Stores,
    package: ModelPackage,
    predictor: Predictor,
    dataset: Dataset,
    rows: tuple[DatasetRow, ...],
    running: Stage,
) -> Judged:
    """AUC and its kin. Where patients are the cases, each goes by its first volume."""
    cases, probabilities, timed = _cases(package, rows), [], Stopwatch()
    for series in cases:
        probabilities.append(_said(stores, predictor, series, timed))
        running.advance(len(series))
    first = [series[0] for series in cases]
    asked, several = package.recipe.evaluate, package.plan.several
    given = None if asked.threshold == "auto" else float(asked.threshold)
    evaluation, frame, shown = evaluate_classification(
        [row.patient for row in first],
        [row.volume for row in first],
        [row.classes if several else row.target for row in first],
        np.stack(probabilities),
        dataset.classes,
        None if several else package.threshold if given is None else given,
        package=package.key,
        dataset=dataset.key,
        positive=asked.positive,
        thresholds=package.thresholds if given is None else (given,) * len(dataset.classes),
        bootstrap=asked.bootstrap,
    )
    table = check(frame, CASE_METRICS_CLASSIFICATION, where="evaluation")

    def images(place: int) -> tuple[Images, Sequence[str]]:
        volumes = [image_of(stores, package, row) for row in cases[place]]
        return [(volume.array, volume.geometry) for volume in volumes], cases[place][0].clinical

    explained = chosen(table, package.plan, dataset.classes, asked.explained)
    more = [pictures.probabilities(table, dataset.classes), *saliency_pictures(predictor, explained, images)]
    return Judged(evaluation, table, (*shown, *more), tuple(timed.seconds))


def figures(cases: pd.DataFrame, evaluation: Evaluation) -> Figures:
    """Of these rows of the per-case table."""
    return classification.figures(cases, evaluation.positive, several=bool(evaluation.thresholds))


def _cases(package: ModelPackage, rows: Sequence[DatasetRow]) -> list[list[DatasetRow]]:
    """The rows of each case: one, or all of a patient."""
    found: dict[str, list[DatasetRow]] = defaultdict(list)
    for row in rows:
        found[row.patient if package.plan.of == "patient" else row.volume].append(row)
    return list(found.values())


def _said(stores: Stores, predictor: Predictor, series: Sequence[DatasetRow], timed: Stopwatch) -> NDArray[np.float32]:
    """A case's probabilities. The images of a patient are read as they are asked for: that is within the time."""
    package, clinical = predictor.package, series[0].clinical
    volumes = (image_of(stores, package, row) for row in series)
    images = ((volume.array, volume.geometry) for volume in volumes)
    if package.plan.of == "patient":
        return timed(predictor.classify_many, images, clinical)
    return timed(predictor.classify, *next(images), clinical)


def compare(
    champion_cases: pd.DataFrame, challenger_cases: pd.DataFrame, champion: Evaluation, challenger: Evaluation
) -> Comparison:
    """Paired differences on the same test patients."""
    return compare_classification(
        champion_cases,
        challenger_cases,
        dataset=challenger.dataset,
        champion_key=champion.package,
        challenger_key=challenger.package,
        positive=challenger.positive,
        several=bool(challenger.thresholds),
    )
