"""Masks on whole test images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from models.dataset import Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation, Picture, SegmentationCase
from models.package import ModelPackage
from models.schemas import CASE_METRICS_SEGMENTATION, check
from tasks.evaluate import pictures, segmentation
from tasks.evaluate.comparison import compare_segmentation
from tasks.evaluate.cost import Stopwatch
from tasks.evaluate.explaining import Doubtful, uncertainty_picture
from tasks.evaluate.figures import Figures
from tasks.evaluate.judging import Judged, image_of
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation
from tasks.imaging.masks import map_of
from tasks.imaging.predictor import Predictor
from tasks.imaging.uncertainty import case_uncertainty
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
    """Dice and its kin, case by case."""
    asked, regions = package.recipe.labels, package.plan.regions
    classes, timed = asked.meaning(dataset.classes), Stopwatch()
    doubtful: list[Doubtful] = []

    def samples() -> Iterator[SegmentationSample]:
        for row in rows:
            volume = image_of(stores, package, row)
            truth = map_of(stores.volumes.open_mask(row.label).read(), classes, asked.fraction, regions=regions)
            found = timed(predictor.segment, volume.array, volume.geometry)
            unsure = case_uncertainty(package.plan, found.confidence, nearest=found.nearest)
            if package.recipe.evaluate.explained and (not doubtful or unsure > doubtful[0].uncertainty):
                doubtful[:] = [Doubtful(row.patient, volume, truth, found.labels, unsure)]
            image = volume.array if volume.channels > 1 else volume.array[np.newaxis]
            yield SegmentationSample(
                row.patient, row.volume, image.astype(np.float32), truth, found.labels, volume.geometry, regions, unsure
            )

    def told(case: SegmentationCase) -> None:
        running.advance(note=f"Dice {case.dice:.3f}")

    judging = package.recipe.evaluate
    evaluation, frame, shown = evaluate_segmentation(
        samples(),
        dataset.classes,
        package=package.key,
        dataset=dataset.key,
        surface_tolerance_mm=judging.surface_tolerance_mm,
        bootstrap=judging.bootstrap,
        on_case=told,
    )
    table = check(frame, CASE_METRICS_SEGMENTATION, where="evaluation")
    more: list[Picture] = [pictures.bland_altman(agreement) for agreement in evaluation.agreement]
    for case in doubtful:
        more += uncertainty_picture(predictor, case, dataset.classes)
    return Judged(evaluation, table, (*shown, *more), tuple(timed.seconds))


def figures(cases: pd.DataFrame, _: Evaluation) -> Figures:
    """Of these rows of the per-case table."""
    return segmentation.figures(cases)


def compare(
    champion_cases: pd.DataFrame, challenger_cases: pd.DataFrame, champion: Evaluation, challenger: Evaluation
) -> Comparison:
    """Paired differences on the same test patients."""
    return compare_segmentation(
        champion_cases,
        challenger_cases,
        dataset=challenger.dataset,
        champion_key=champion.package,
        challenger_key=challenger.package,
    )
