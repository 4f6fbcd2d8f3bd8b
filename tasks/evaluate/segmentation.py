"""How good segmentations are: per case and class, and over all cases with intervals.

Definitions follow Metrics Reloaded (Maier-Hein et al., Nature Methods 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import GeometryError, LabelError, NothingToDoError
from models.evaluation import (
    PRIMARY,
    ClassScores,
    Evaluation,
    MetricSummary,
    Picture,
    SegmentationCase,
)
from models.geometry import Geometry
from tasks.evaluate import pictures
from tasks.evaluate.agreement import agreements
from tasks.evaluate.figures import Figures
from tasks.evaluate.intervals import SAMPLES, mean_intervals, mean_of_defined, weighted_mean
from tasks.imaging.scores import Labels, score_case

METRICS = tuple(f.name for f in fields(ClassScores) if f.name not in ("class_name", "outcome"))


@dataclass(frozen=True, slots=True)
class SegmentationSample:
    """One case to judge. `image` (c, z, y, x) float32 is only for pictures; labels (z, y, x) uint8, background 0.

    With `regions` a label is a region map (`tasks.imaging.masks`): classes may overlap. `uncertainty` is the model's,
    from 0 to 1 (`tasks.imaging.uncertainty`), where it is known.
    """

    patient: str
    case: str
    image: NDArray[np.float32] | None
    truth: Labels
    prediction: Labels
    geometry: Geometry
    regions: bool = False
    uncertainty: float | None = None


def evaluate_segmentation(
    samples: Iterable[SegmentationSample],
    class_names: Sequence[str],
    *,
    package: str,
    dataset: str,
    surface_tolerance_mm: float = 2.0,
    bootstrap: int = SAMPLES,
    seed: int = 0,
    on_case: Callable[[SegmentationCase], None] | None = None,
) -> tuple[Evaluation, pd.DataFrame, list[Picture]]:
    """Judge `samples` one after the other; label i + 1 (of regions: bit i) is `class_names[i]`.

    Returns the evaluation, the per-case table (`cases_frame`) and the pictures. Of each volume only a small crop of
    one slice is kept. Raises LabelError and GeometryError naming the case, NothingToDoError without one.
    """
    names = tuple(class_names)
    cases: list[SegmentationCase] = []
    crops: list[pictures.Crop] = []
    doubts: list[float] = []
    for sample in samples:
        case = score_sample(sample, names, surface_tolerance_mm)
        cases.append(case)
        crop = pictures.crop_of(
            sample.image, sample.truth, sample.prediction, sample.geometry.spacing, regions=sample.regions
        )
        crops.append(crop)
        if sample.uncertainty is not None:
            doubts.append(sample.uncertainty)
        if on_case:
            on_case(case)
    if not cases:
        raise NothingToDoError("there is no case to judge", hint="the test split needs at least one labelled patient")
    frame = cases_frame(cases)
    evaluation = Evaluation(
        kind="segmentation",
        package=package,
        dataset=dataset,
        class_names=names,
        primary=PRIMARY["segmentation"],
        metrics=summarise(cases, bootstrap=bootstrap, seed=seed),
        surface_tolerance_mm=surface_tolerance_mm,
        n_patients=len({c.patient for c in cases}),
        n_cases=len(cases),
        agreement=agreements(frame, names, samples=bootstrap, seed=seed),
    )
    known = doubts if len(doubts) == len(cases) else ()
    shown = [*pictures.overlays(cases, crops, names, known), pictures.distributions(frame, names, surface_tolerance_mm)]
    return evaluation, frame, shown


def score_sample(sample: SegmentationSample, class_names: Sequence[str], tolerance_mm: float) -> SegmentationCase:
    """`score_case`, after checking that the sample's grids and labels fit."""
    if not sample.truth.shape == sample.prediction.shape == sample.geometry.shape:
        raise GeometryError(
            f"truth {sample.truth.shape}, prediction {sample.prediction.shape} and grid {sample.geometry.shape} differ",
            where=sample.case,
        )
    highest = int(max(sample.truth.max(), sample.prediction.max()))
    if highest >= 2 ** len(class_names) if sample.regions else highest > len(class_names):
        raise LabelError(f"label value {highest} has no name among {len(class_names)} classes", where=sample.case)
    scores, accuracy = score_case(
        sample.truth,
        sample.prediction,
        sample.geometry.spacing,
        class_names,
        tolerance_mm,
        voxel_mm3=sample.geometry.voxel_volume,
        regions=sample.regions,
    )
    return SegmentationCase(sample.patient, sample.case, scores, accuracy)


def cases_frame(cases: Iterable[SegmentationCase]) -> pd.DataFrame:
    """One row per case and class: patient, case, class_name, outcome and the metrics."""
    rows = [{"patient": c.patient, "case": c.case, **asdict(scores)} for c in cases for scores in c.scores]
    return pd.DataFrame(rows).astype(dict.fromkeys(METRICS, "float64"))


def figures(cases: pd.DataFrame, class_names: Sequence[str] | None = None) -> Figures:
    """METRICS from a `cases_frame`: over all of `class_names` (default: all that are there), then of each.

    What is over all of them is the mean of each case's classes.
    """
    names = list(dict.fromkeys(cases["class_name"])) if class_names is None else list(class_names)
    metrics = [m for m in METRICS if m != "pixel_accuracy"]
    rows = cases[cases["class_name"].isin(names)]
    wide = rows.pivot(index=["patient", "case"], columns="class_name", values=metrics)
    table = np.stack([wide[m][names].to_numpy(dtype=float) for m in metrics], axis=2)  # (case, class, metric)
    each = np.concatenate([mean_of_defined(table), table.reshape(len(table), -1)], axis=1)
    labels = tuple((metric, name) for name in (None, *names) for metric in metrics)
    patients = tuple(map(str, wide.index.get_level_values("patient")))
    return Figures(labels, weighted_mean(each), patients, each)


def summarise(
    cases: Sequence[SegmentationCase], *, bootstrap: int = SAMPLES, seed: int = 0
) -> tuple[MetricSummary, ...]:
    """Means over the cases with intervals: first of all classes together (mean over the classes of a case), then each.

    Pixel accuracy of all classes together is the share of voxels with the right label.
    """
    patients = [c.patient for c in cases]
    table = np.array([[[getattr(s, m) for m in METRICS] for s in c.scores] for c in cases])  # (case, class, metric)
    whole = mean_of_defined(table)
    whole[:, METRICS.index("pixel_accuracy")] = [c.pixel_accuracy for c in cases]
    found: list[MetricSummary] = []
    names = [None, *(s.class_name for s in cases[0].scores)]
    for name, values in zip(names, [whole, *np.moveaxis(table, 1, 0)], strict=True):
        intervals = mean_intervals(values, patients, samples=bootstrap, seed=seed)
        found += [
            MetricSummary(metric=m, class_name=name, interval=i)
            for m, i in zip(METRICS, intervals, strict=True)
            if i is not None
        ]
    return tuple(found)
