"""Classes of whole test images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.dataset import Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation
from models.package import ModelPackage
from models.schemas import CASE_METRICS_CLASSIFICATION, check
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.comparison import compare_classification
from tasks.evaluate.judging import Judged
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
    """AUC and its kin."""
    probabilities = []
    for row in rows:
        volume = stores.volumes.open(row.volume).read()
        probabilities.append(predictor.classify(volume.array, volume.geometry))
        running.advance()
    asked = package.recipe.evaluate
    evaluation, frame, pictures = evaluate_classification(
        [row.patient for row in rows],
        [row.volume for row in rows],
        [row.target for row in rows],
        np.stack(probabilities),
        dataset.classes,
        package.threshold if asked.threshold == "auto" else asked.threshold,
        package=package.key,
        dataset=dataset.key,
        positive=asked.positive,
        bootstrap=asked.bootstrap,
    )
    return Judged(evaluation, check(frame, CASE_METRICS_CLASSIFICATION, where="evaluation"), tuple(pictures))


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
    )
