"""One package on the frozen test split of one dataset, kept as an evaluation that others can read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.dataset import Dataset, DatasetRow
from models.errors import NothingToDoError
from models.evaluation import Comparison, Evaluation, Picture, SegmentationCase
from models.hashing import content_key
from models.package import ModelPackage
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.schemas import CASE_METRICS_CLASSIFICATION, CASE_METRICS_SEGMENTATION, check
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.comparison import compare_classification, compare_segmentation
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation
from tasks.imaging.masks import label_map
from tasks.imaging.predictor import Predictor
from tasks.progress import Stage, stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.stores.tables import EvaluationRow


@dataclass(frozen=True, slots=True)
class Judged:
    """Figures, per-case table and pictures of one run."""

    evaluation: Evaluation
    cases: pd.DataFrame
    pictures: tuple[Picture, ...]


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
        judge = _segmentation if cases.kind == "segmentation" else _classification
        judged = judge(stores, described, predictor, cases, rows, running)
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
    if new.kind == "segmentation":
        return compare_segmentation(*cases, dataset=new.dataset, champion_key=old.package, challenger_key=new.package)
    return compare_classification(
        *cases, dataset=new.dataset, champion_key=old.package, challenger_key=new.package, positive=new.positive
    )


def _segmentation(
    stores: Stores,
    package: ModelPackage,
    predictor: Predictor,
    dataset: Dataset,
    rows: tuple[DatasetRow, ...],
    running: Stage,
) -> Judged:
    classes = package.recipe.labels.meaning(dataset.classes)

    def samples() -> Iterator[SegmentationSample]:
        for row in rows:
            volume = stores.volumes.open(row.volume).read()
            truth = label_map(stores.volumes.open_mask(row.label).read(), classes, package.recipe.labels.fraction)
            found = predictor.segment(volume.array, volume.geometry)
            image = volume.array if volume.channels > 1 else volume.array[np.newaxis]
            yield SegmentationSample(
                row.patient, row.volume, image.astype(np.float32), truth, found.labels, volume.geometry
            )

    def told(case: SegmentationCase) -> None:
        running.advance(note=f"Dice {case.dice:.3f}")

    asked = package.recipe.evaluate
    evaluation, frame, pictures = evaluate_segmentation(
        samples(),
        dataset.classes,
        package=package.key,
        dataset=dataset.key,
        surface_tolerance_mm=asked.surface_tolerance_mm,
        bootstrap=asked.bootstrap,
        on_case=told,
    )
    return Judged(evaluation, check(frame, CASE_METRICS_SEGMENTATION, where="evaluation"), tuple(pictures))


def _classification(
    stores: Stores,
    package: ModelPackage,
    predictor: Predictor,
    dataset: Dataset,
    rows: tuple[DatasetRow, ...],
    running: Stage,
) -> Judged:
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
