"""Lesions on whole test images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from models.dataset import Dataset, DatasetRow
from models.evaluation import Evaluation, LesionScore
from models.package import ModelPackage
from models.schemas import CASE_METRICS_DETECTION, check
from tasks.evaluate import detection
from tasks.evaluate.comparison import compare_detection
from tasks.evaluate.cost import Stopwatch
from tasks.evaluate.detection import DetectionSample, evaluate_detection
from tasks.evaluate.figures import Figures
from tasks.evaluate.judging import Judged, image_of
from tasks.imaging.detection import component_lesions, least_voxels
from tasks.imaging.detector import believed_from, detect
from tasks.imaging.masks import label_map
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
    """FROC and its kin, lesion by lesion."""
    classes, rule = package.recipe.labels.meaning(dataset.classes), package.plan.detection
    timed = Stopwatch()

    def samples() -> Iterator[DetectionSample]:
        for row in rows:
            volume = image_of(stores, package, row)
            labels = label_map(stores.volumes.open_mask(row.label).read(), classes, package.recipe.labels.fraction)
            truth = component_lesions(labels, len(dataset.classes), least=least_voxels(rule, volume.geometry))
            found = timed(detect, predictor, volume.array, volume.geometry)
            image = volume.array if volume.channels > 1 else volume.array[np.newaxis]
            yield DetectionSample(row.patient, row.volume, image.astype(np.float32), truth, found, volume.geometry)

    def told(scores: list[LesionScore]) -> None:
        counts = {outcome: sum(s.outcome == outcome for s in scores) for outcome in ("found", "missed", "invented")}
        running.advance(note=", ".join(f"{count} {outcome}" for outcome, count in counts.items()))

    asked = package.recipe.evaluate
    evaluation, frame, pictures = evaluate_detection(
        samples(),
        dataset.classes,
        rule,
        believed_from(package),
        package=package.key,
        dataset=dataset.key,
        bootstrap=asked.bootstrap,
        on_case=told,
    )
    table = check(frame, CASE_METRICS_DETECTION, where="evaluation")
    return Judged(evaluation, table, tuple(pictures), tuple(timed.seconds))


def figures(cases: pd.DataFrame, evaluation: Evaluation) -> Figures:
    """Of these rows of the per-lesion table."""
    there = set(cases["class_name"])
    names = [name for name in evaluation.class_names if name in there]
    return detection.figures(cases, names, evaluation.threshold or 0.0)


compare = compare_detection
