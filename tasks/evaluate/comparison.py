"""Challenger against champion, case by case on the same patients, from their per-case tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from models.errors import LabelError, NothingToDoError
from models.evaluation import PRIMARY, Comparison, Evaluation, Interval, MetricSummary
from tasks.evaluate import detection, intervals
from tasks.evaluate.intervals import SAMPLES, Floats, Statistic

_SEGMENTATION = ("dice", "iou", "surface_dice", "hd95_mm", "volume_absolute_error_ml")


def compare_segmentation(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    *,
    dataset: str,
    champion_key: str,
    challenger_key: str,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `segmentation.cases_frame` tables, over the classes that both know."""
    pairs = champion.merge(challenger, on=["patient", "case", "class_name"], suffixes=("_old", "_new"))
    n_unmatched = _unmatched(champion, challenger)
    if pairs.empty:
        raise NothingToDoError("champion and challenger were not judged on a single common case")
    names: list[str | None] = [None, *dict.fromkeys(pairs["class_name"])]
    found: list[MetricSummary] = []
    for name in names:
        rows = pairs if name is None else pairs[pairs["class_name"] == name]
        means = rows.groupby(["patient", "case"], sort=True).mean(numeric_only=True)
        patients = means.index.get_level_values("patient").to_list()
        gaps = np.stack([means[f"{m}_new"] - means[f"{m}_old"] for m in _SEGMENTATION], axis=1)
        drawn = intervals.mean_intervals(gaps, patients, samples=bootstrap, seed=seed)
        found += _named(_SEGMENTATION, name, drawn)
    return Comparison(
        kind="segmentation",
        dataset=dataset,
        champion=champion_key,
        challenger=challenger_key,
        primary=PRIMARY["segmentation"],
        differences=tuple(found),
        n_patients=pairs["patient"].nunique(),
        n_cases=pairs["case"].nunique(),
        n_unmatched=n_unmatched,
    )


def compare_classification(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    *,
    dataset: str,
    champion_key: str,
    challenger_key: str,
    positive: str | None = None,
    several: bool = False,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `classification.cases_frame` tables: AUC, average precision, accuracy and Brier score.

    `positive` is the positive one of two classes (the last by default). Raises LabelError unless both know the same
    classes.
    """
    names = list(dict.fromkeys(champion["class_name"]))
    if set(names) != set(challenger["class_name"]):
        raise LabelError("champion and challenger know different classes, so their probabilities do not compare")
    n_unmatched = _unmatched(champion, challenger)
    pairs = champion.merge(challenger, on=["patient", "case", "class_name"], suffixes=("_old", "_new"))
    if pairs.empty:
        raise NothingToDoError("champion and challenger were not judged on a single common case")
    focus = names if len(names) > 2 or several else [positive or names[-1]]
    wide = pairs.pivot(index=["patient", "case"], columns="class_name")
    patients = wide.index.get_level_values("patient").to_list()
    metrics = ("auc", "average_precision", "accuracy", "brier")
    statistic = _difference(*(_figures(wide, side, focus, several) for side in ("old", "new")))
    drawn = intervals.bootstrap(statistic, patients, samples=bootstrap, seed=seed)
    return Comparison(
        kind="classification",
        dataset=dataset,
        champion=champion_key,
        challenger=challenger_key,
        primary=PRIMARY["classification"],
        differences=tuple(_named(metrics, None, drawn)),
        n_patients=len(set(patients)),
        n_cases=len(wide),
        n_unmatched=n_unmatched,
    )


def compare_detection(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    old: Evaluation,
    new: Evaluation,
    *,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `detection.lesions_frame` tables over the classes that both know.

    Each is believed from its own evaluation's threshold on.
    """
    names = [name for name in old.class_names if name in new.class_names]
    common = set(champion["case"]) & set(challenger["case"])
    if not common or not names:
        raise NothingToDoError("champion and challenger were not judged on a single common case")
    before, after = (table[table["case"].isin(common)] for table in (champion, challenger))
    first, patients = detection.statistic(before, names, old.threshold or 0.0)
    second, _ = detection.statistic(after, names, new.threshold or 0.0)
    found = intervals.bootstrap(_difference(first, second), patients, samples=bootstrap, seed=seed)
    rows: list[str | None] = [None] if len(names) == 1 else [None, *names]
    size = len(detection.METRICS)
    differences = [
        summary
        for place, name in enumerate(rows)
        for summary in _named(detection.METRICS, name, found[place * size : (place + 1) * size])
        if not summary.metric.startswith("sensitivity_at")
    ]
    return Comparison(
        kind="detection",
        dataset=new.dataset,
        champion=old.package,
        challenger=new.package,
        primary=PRIMARY["detection"],
        differences=tuple(differences),
        n_patients=len(set(patients)),
        n_cases=len(common),
        n_unmatched=_unmatched(champion, challenger),
    )


def _figures(wide: pd.DataFrame, side: str, focus: Sequence[str], several: bool) -> Statistic:
    """AUC and average precision (mean over `focus`), accuracy and Brier score of one side."""

    def column(name: str, class_name: str) -> Floats:
        return wide[(f"{name}_{side}", class_name)].to_numpy(dtype=float)

    truth = {name: column("truth", name) > 0 for name in focus}
    areas = intervals.together(*(intervals.auc(truth[name], column("probability", name)) for name in focus))
    precisions = intervals.together(
        *(intervals.average_precision(truth[name], column("probability", name)) for name in focus)
    )
    real, called, squares = (
        np.asarray(wide[f"{part}_{side}"], dtype=float) for part in ("truth", "predicted", "brier")
    )
    right = (real == called).all(axis=1)
    brier = squares.mean(axis=1) if squares.shape[1] == 2 or several else squares.sum(axis=1)
    means = intervals.weighted_mean(np.stack([right, brier], axis=1))

    def statistic(weights: Floats) -> Floats:
        ranked = [intervals.mean_of_defined(part(weights))[:, None] for part in (areas, precisions)]
        return np.concatenate([*ranked, means(weights)], axis=1)

    return statistic


def _difference(old: Statistic, new: Statistic) -> Statistic:
    return lambda weights: new(weights) - old(weights)


def _named(metrics: Sequence[str], class_name: str | None, found: Sequence[Interval | None]) -> list[MetricSummary]:
    return [
        MetricSummary(metric=m, class_name=class_name, interval=i)
        for m, i in zip(metrics, found, strict=True)
        if i is not None
    ]


def _unmatched(champion: pd.DataFrame, challenger: pd.DataFrame) -> int:
    return len(set(champion["case"]) ^ set(challenger["case"]))
