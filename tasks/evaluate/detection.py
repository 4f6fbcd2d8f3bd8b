"""How good detections are: lesion by lesion, FROC and average precision, and what holds at the operating point.

A case without a lesion counts as an image: marks on it are false positives. A class without a true lesion in any case
has no figure, and does not enter the mean over the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import LabelError, NothingToDoError
from models.evaluation import PRIMARY, Curve, Evaluation, LesionScore, MetricSummary, Picture
from models.geometry import Geometry
from models.recipe import Detection
from tasks.evaluate import bounds, pictures
from tasks.evaluate.bounds import Bounds
from tasks.evaluate.figures import Figures, Label
from tasks.evaluate.intervals import SAMPLES, Floats, Statistic, mean_of_defined
from tasks.imaging.detection import Lesions, box_iou, distances, match
from tasks.imaging.froc import RATES, Marks, average_precision, curve, froc, from_confidence

SMALL_MM, LARGE_MM = 10.0, 30.0
"""Diameters between which a lesion is of medium size: RECIST measures from 10 mm on; beyond 30 mm a lung nodule is a
mass (Fleischner Society)."""
STRATA: Final = ("small", "medium", "large")
METRICS: Final = (
    "froc",
    "average_precision",
    "sensitivity",
    "precision",
    "false_positives",
    *(f"sensitivity_{size}" for size in STRATA),
    *(f"sensitivity_at_{rate:g}" for rate in RATES),
)
_POINTS = 400
_NUMBERS = tuple(f.name for f in fields(LesionScore) if f.type == "float")


@dataclass(frozen=True, slots=True)
class DetectionSample:
    """One case to judge: all that was marked, however unsure, and what is there. `image` (c, z, y, x) float32 is only
    for pictures.
    """

    patient: str
    case: str
    image: NDArray[np.float32] | None
    truth: Lesions
    found: Lesions
    geometry: Geometry


def evaluate_detection(
    samples: Iterable[DetectionSample],
    class_names: Sequence[str],
    rule: Detection,
    threshold: float,
    *,
    package: str,
    dataset: str,
    bootstrap: int = SAMPLES,
    seed: int = 0,
    on_case: Callable[[list[LesionScore]], None] | None = None,
) -> tuple[Evaluation, pd.DataFrame, list[Picture]]:
    """Judge `samples` one after the other; a mark is believed from `threshold` on.

    Returns the evaluation, the per-lesion table (`lesions_frame`) and the pictures. Raises LabelError for a class
    without a name, NothingToDoError without a case, or where no case has a lesion.
    """
    names = tuple(class_names)
    rows: list[LesionScore] = []
    crops: list[pictures.Crop] = []
    patients: dict[str, str] = {}
    for sample in samples:
        scores = score_case(sample, names, rule)
        rows += scores
        patients[sample.case] = sample.patient
        crops.append(
            pictures.lesions_crop(sample.image, sample.truth, sample.found.from_confidence(threshold), sample.geometry)
        )
        if on_case:
            on_case(scores)
    if not patients:
        raise NothingToDoError("there is no case to judge", hint="the test split needs at least one labelled patient")
    frame = lesions_frame(rows)
    data = _Data.of(frame, names)
    metrics = _metrics(data, threshold, bootstrap, seed)
    if not any(m.metric == PRIMARY["detection"] and m.class_name is None for m in metrics):
        raise NothingToDoError(
            f"none of the {len(patients)} test cases has a lesion, so there is no FROC",
            hint="the test split needs patients with lesions; see detection.min_volume_ml",
        )
    evaluation = Evaluation(
        kind="detection",
        package=package,
        dataset=dataset,
        class_names=names,
        primary=PRIMARY["detection"],
        metrics=metrics,
        curves=tuple(_curve(name, marks) for name, marks in data.marks.items() if marks.lesions.any()),
        threshold=threshold,
        n_patients=len(set(patients.values())),
        n_cases=len(patients),
    )
    return evaluation, frame, _pictures(evaluation, frame, crops, list(patients), threshold)


def score_case(sample: DetectionSample, names: Sequence[str], rule: Detection) -> list[LesionScore]:
    """A row for each lesion and each mark that finds none; one for each class that has neither."""
    found, truth = sample.found, sample.truth
    highest = int(max(found.classes.max(initial=-1), truth.classes.max(initial=-1)))
    if highest >= len(names):
        raise LabelError(f"class {highest} has no name among {len(names)} classes", where=sample.case)
    hits = match(found, truth, rule, sample.geometry)
    by_lesion = {int(lesion): mark for mark, lesion in enumerate(hits) if lesion >= 0}
    apart, overlap = distances(found, truth, sample.geometry), box_iou(found.boxes, truth.boxes)
    millilitres = sample.geometry.voxel_volume / 1000
    diameters = 2 * truth.radii(sample.geometry.voxel_volume)
    rows: list[LesionScore] = []
    for index, name in enumerate(names):
        pairs = [(lesion, by_lesion.get(int(lesion))) for lesion in truth.of_class(index)]
        pairs += [(None, mark) for mark in found.of_class(index) if hits[mark] < 0]
        for number, (lesion, mark) in enumerate(pairs or [(None, None)]):
            known, marked = lesion is not None, mark is not None
            both = known and marked
            rows.append(
                LesionScore(
                    patient=sample.patient,
                    case=sample.case,
                    class_name=name,
                    number=number,
                    outcome="found" if both else "missed" if known else "invented" if marked else "absent",
                    confidence=float(found.confidence[mark]) if marked else np.nan,
                    volume_truth_ml=float(truth.sizes[lesion] * millilitres) if known else np.nan,
                    volume_prediction_ml=float(found.sizes[mark] * millilitres) if marked else np.nan,
                    diameter_mm=float(diameters[lesion]) if known else np.nan,
                    distance_mm=float(apart[mark, lesion]) if both else np.nan,
                    box_iou=float(overlap[mark, lesion]) if both else np.nan,
                )
            )
    return rows


def lesions_frame(rows: Iterable[LesionScore]) -> pd.DataFrame:
    """One row per lesion or mark: the fields of LesionScore."""
    return pd.DataFrame([asdict(row) for row in rows]).astype(dict.fromkeys(_NUMBERS, "float64"))


# -- figures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Data:
    """The table as marks over cases: of each class, and of its lesions by size with the marks that found them."""

    patients: list[str]
    marks: dict[str, Marks]
    strata: dict[str, tuple[Marks, ...]]

    @classmethod
    def of(cls, frame: pd.DataFrame, names: Sequence[str]) -> _Data:
        owner = dict(zip(frame["case"], frame["patient"], strict=True))
        places = {case: place for place, case in enumerate(sorted(owner))}
        marks, strata = {}, {}
        for name in names:
            rows = frame[frame["class_name"] == name]
            marks[name] = _marks(rows, places)
            size = np.digitize(rows["diameter_mm"], (SMALL_MM, LARGE_MM))
            known = rows["diameter_mm"].notna()
            strata[name] = tuple(_marks(rows[known & (size == number)], places) for number in range(len(STRATA)))
        return cls([owner[case] for case in places], marks, strata)


def figures(frame: pd.DataFrame, names: Sequence[str], threshold: float) -> Figures:
    """All METRICS of the mean over `names`, then (where there are several) of each, from a `lesions_frame`."""
    return _figures(_Data.of(frame, names), threshold)


def _figures(data: _Data, threshold: float) -> Figures:
    rows: list[str | None] = [None] if len(data.marks) == 1 else [None, *data.marks]
    labels = tuple((metric, row) for row in rows for metric in METRICS)
    none_each = np.full((len(data.patients), len(labels)), np.nan)
    statistic = _statistic(data, threshold)
    values = dict(zip(labels, statistic(np.ones((1, len(data.patients))))[0].tolist(), strict=True))
    closed = tuple(_closed(data, label, values) for label in labels)
    return Figures(labels, statistic, tuple(data.patients), none_each, closed)


def _closed(data: _Data, label: Label, values: Mapping[Label, float]) -> Bounds | None:
    """Wilson's interval of sensitivities, of as many patients as have lesions; None of others."""
    metric, name = label
    if metric not in ("froc", "sensitivity"):
        return None
    if name is None and len(data.marks) > 1:
        return bounds.mean_bounds([_closed(data, (metric, each), values) for each in data.marks])
    there = data.marks[name or next(iter(data.marks))].lesions > 0
    return bounds.wilson(values[label], bounds.how_many(data.patients, there)) if there.any() else None


def _statistic(data: _Data, threshold: float) -> Statistic:
    every = [_class_figures(data.marks[name], data.strata[name], threshold) for name in data.marks]

    def of(weights: Floats) -> Floats:
        table = np.stack([one(weights) for one in every], axis=1)  # (resample, class, metric)
        if len(every) > 1:
            table = np.concatenate([mean_of_defined(table)[:, None], table], axis=1)
        return table.reshape(len(weights), -1)

    return of


def _class_figures(marks: Marks, strata: Sequence[Marks], threshold: float) -> Statistic:
    """METRICS of one class. All of them are undefined without a true lesion among the resample's cases."""
    rates, precision, believed = froc(marks), average_precision(marks), from_confidence(marks, threshold)
    sized = [from_confidence(stratum, threshold) for stratum in strata]

    def of(weights: Floats) -> Floats:
        read = rates(weights)
        parts = [read[:, -1:], precision(weights), believed(weights)]
        parts += [one(weights)[:, :1] for one in sized]
        found = np.concatenate([*parts, read[:, :-1]], axis=1)
        found[(weights @ marks.lesions) == 0] = np.nan
        return found

    return of


def _metrics(data: _Data, threshold: float, samples: int, seed: int) -> tuple[MetricSummary, ...]:
    return _figures(data, threshold).summaries(samples=samples, seed=seed)


def _marks(rows: pd.DataFrame, places: dict[str, int]) -> Marks:
    marked = rows[rows["confidence"].notna()]
    real = rows.loc[rows["diameter_mm"].notna(), "case"].map(places)
    return Marks.of(
        marked["case"].map(places).tolist(),
        marked["confidence"].tolist(),
        (marked["outcome"] == "found").tolist(),
        np.bincount(real.to_numpy(dtype=np.intp), minlength=len(places)).tolist(),
    )


def _curve(name: str, marks: Marks) -> Curve:
    """At most 400 points, the ends among them."""
    x, y = curve(marks)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return Curve(name="froc", class_name=name, x=tuple(x[keep].tolist()), y=tuple(y[keep].tolist()))


def _pictures(
    evaluation: Evaluation, frame: pd.DataFrame, crops: Sequence[pictures.Crop], cases: Sequence[str], threshold: float
) -> list[Picture]:
    names = evaluation.class_names
    overall = {names[0]: evaluation.of("froc").value}
    scores = (
        overall
        if len(names) == 1
        else {m.class_name: m.interval.value for m in evaluation.metrics if m.metric == "froc" and m.class_name}
    )
    point = evaluation.of("false_positives").value, evaluation.of("sensitivity").value
    return [
        *pictures.lesion_overlays(frame, crops, cases, names, threshold),
        pictures.froc(evaluation.curves, scores, point),
    ]
