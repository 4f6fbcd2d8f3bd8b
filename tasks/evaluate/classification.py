"""How good classifications are: figures, curves and intervals from probabilities.

With two classes all figures are the positive class's; with more, those of each class against the rest, and their
plain (macro) mean. Where an image may show several classes, or none, each is called from its own threshold on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from models.errors import LabelError, NothingToDoError, PackageError, RecipeError
from models.evaluation import (
    PRIMARY,
    ConfusionMatrix,
    Curve,
    CurveName,
    Evaluation,
    MetricSummary,
    Picture,
)
from tasks.evaluate import bounds, intervals, pictures
from tasks.evaluate.bounds import Bounds
from tasks.evaluate.delong import delong_interval
from tasks.evaluate.figures import Figures, Label, summaries
from tasks.evaluate.intervals import SAMPLES, Floats, Statistic, mean_of_defined, ratio

PER_CLASS = ("auc", "average_precision", "sensitivity", "specificity", "precision", "f1")
OVERALL = ("accuracy", "balanced_accuracy", "brier")
_POINTS = 400
_BINS = 10


@dataclass(frozen=True, slots=True)
class _Data:
    """Checked input: `truth` and `called` say of each class whether it is there, `probabilities` are its: (n, classes).

    Unless `several`, each row of either has one True.
    """

    patients: list[str]
    cases: list[str]
    truth: NDArray[np.bool_]
    called: NDArray[np.bool_]
    probabilities: Floats
    names: tuple[str, ...]
    focus: tuple[int, ...]  # the positive class, or all of more than two, or of several
    several: bool = False


def evaluate_classification(
    patients: Sequence[str],
    cases: Sequence[str],
    truth: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str],
    threshold: float | None = None,
    *,
    package: str,
    dataset: str,
    positive: str | None = None,
    thresholds: Sequence[float] = (),
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> tuple[Evaluation, pd.DataFrame, list[Picture]]:
    """Judge `probabilities` (n, classes) against the class indices `truth` (n,).

    Two classes: `positive` (the last by default) is called from `threshold` (0.5 by default) on. More: the most
    probable class is called, and a threshold raises RecipeError. Several at once: `truth` is (n, classes) of 0 and 1,
    and each class is called from its own of `thresholds` (0.5 by default) on. Raises LabelError for a truth without a
    name, PackageError for probabilities that are none, NothingToDoError where no class has both positives and
    negatives.
    """
    real = np.asarray(truth, dtype=np.intp)
    if real.ndim == 2:
        data = _checked_several(patients, cases, real, probabilities, class_names, thresholds)
    else:
        data = _checked(patients, cases, real, probabilities, class_names, threshold, positive)
    metrics = _metrics(data, bootstrap, seed)
    if not any(m.metric == PRIMARY["classification"] and m.class_name is None for m in metrics):
        raise NothingToDoError(
            f"all {len(data.truth)} cases are of one class, so there is no AUC",
            hint="the test split needs patients of at least two classes",
        )
    two = len(data.names) == 2 and not data.several
    evaluation = Evaluation(
        kind="classification",
        package=package,
        dataset=dataset,
        class_names=data.names,
        primary=PRIMARY["classification"],
        metrics=metrics,
        curves=_curves(data),
        confusion=_confusion(data),
        threshold=(0.5 if threshold is None else threshold) if two else None,
        thresholds=_thresholds(thresholds, data.names) if data.several else (),
        positive=data.names[data.focus[0]] if two else None,
        n_patients=len(set(data.patients)),
        n_cases=len(data.cases),
    )
    return evaluation, cases_frame(data), _pictures(evaluation, data)


def choose_threshold(truth: ArrayLike, probabilities: ArrayLike, *, positive: int = 1) -> float:
    """The threshold with the highest sensitivity + specificity − 1 (Youden, Cancer 1950), for validation cases.

    `truth` (n,) class indices, `probabilities` (n, 2), or (n,) of the positive class. It lies midway to the next lower
    probability, so that it does not hang on a single case; 0.5 where one class is missing or nothing beats chance.
    """
    score = np.asarray(probabilities, dtype=float)
    score = score[:, positive] if score.ndim == 2 else score
    real = np.asarray(truth) == positive
    if real.all() or not real.any():
        return 0.5
    false_rate, true_rate, steps = roc_curve(real, score, drop_intermediate=False)
    gain = true_rate - false_rate
    best = int(np.argmax(gain))
    if gain[best] <= 0:
        return 0.5
    below = steps[best + 1] if best + 1 < len(steps) else 0.0
    return float((steps[best] + below) / 2)


def cases_frame(data: _Data) -> pd.DataFrame:
    """One row per case and class: patient, case, class_name, truth and predicted (whether it is this class),
    probability, and brier, the class's squared error."""
    size = len(data.names)
    return pd.DataFrame(
        {
            "patient": [patient for patient in data.patients for _ in range(size)],
            "case": [case for case in data.cases for _ in range(size)],
            "class_name": [*data.names] * len(data.cases),
            "truth": data.truth.ravel(),
            "predicted": data.called.ravel(),
            "probability": data.probabilities.ravel(),
            "brier": ((data.probabilities - data.truth) ** 2).ravel(),
        }
    )


def _confusion(data: _Data) -> ConfusionMatrix | None:
    """None where an image may show several classes: it is not one class that another is taken for."""
    if data.several:
        return None
    size = range(len(data.names))
    counts = confusion_matrix(data.truth.argmax(1), data.called.argmax(1), labels=size)
    return ConfusionMatrix(class_names=data.names, counts=tuple(tuple(map(int, row)) for row in counts))


def _thresholds(given: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    return tuple(map(float, given)) or (0.5,) * len(names)


def _checked(
    patients: Sequence[str],
    cases: Sequence[str],
    real: NDArray[np.intp],
    probabilities: ArrayLike,
    class_names: Sequence[str],
    threshold: float | None,
    positive: str | None,
) -> _Data:
    names, chances = tuple(class_names), _chances(patients, cases, real, probabilities, class_names)
    if np.abs(chances.sum(1) - 1).max() > 1e-3:
        raise PackageError("the network's probabilities are not of sum 1")
    chances = chances / chances.sum(1, keepdims=True)  # float32 sums of 1.0000001 would leave [0, 1]
    if real.min() < 0 or real.max() >= len(names):
        raise LabelError(f"class {int(real.max())} has no name among {len(names)} classes")
    if len(names) != 2:
        if threshold is not None:
            raise RecipeError(f"evaluate.threshold: needs two classes, not {len(names)}", hint="leave it out")
        called, focus = chances.argmax(1), tuple(range(len(names)))
    else:
        if positive is not None and positive not in names:
            raise RecipeError(f"evaluate.positive: {positive!r} is none of {', '.join(names)}")
        index = 1 if positive is None else names.index(positive)
        called = np.where(chances[:, index] >= (0.5 if threshold is None else threshold), index, 1 - index)
        focus = (index,)
    one = np.eye(len(names), dtype=bool)
    return _Data(list(patients), list(cases), one[real], one[called], chances, names, focus)


def _checked_several(
    patients: Sequence[str],
    cases: Sequence[str],
    real: NDArray[np.intp],
    probabilities: ArrayLike,
    class_names: Sequence[str],
    thresholds: Sequence[float],
) -> _Data:
    names, chances = tuple(class_names), _chances(patients, cases, real, probabilities, class_names)
    limits = np.asarray(_thresholds(thresholds, names))
    if real.shape != chances.shape or not np.isin(real, (0, 1)).all():
        raise LabelError(f"the truth says of each of {len(names)} classes whether it is there, by 0 or 1")
    if limits.shape != (len(names),) or (chances > 1 + 1e-6).any():
        raise PackageError(f"{len(names)} thresholds, and probabilities up to 1, belong to {len(names)} classes")
    chances = np.minimum(chances, 1)
    focus = tuple(range(len(names)))
    return _Data(list(patients), list(cases), real > 0, chances >= limits, chances, names, focus, several=True)


def _chances(
    patients: Sequence[str],
    cases: Sequence[str],
    real: NDArray[np.intp],
    probabilities: ArrayLike,
    class_names: Sequence[str],
) -> Floats:
    chances = np.asarray(probabilities, dtype=float)
    if not len(real):
        raise NothingToDoError("there is no case to judge", hint="the test split needs at least one labelled patient")
    if chances.shape != (len(real), len(class_names)) or not len(real) == len(patients) == len(cases):
        size = f"{len(real)} cases of {len(class_names)} classes"
        raise PackageError(f"{size}, but probabilities of shape {chances.shape}")
    if not np.isfinite(chances).all() or (chances < 0).any():
        raise PackageError("the network's probabilities are not finite or negative")
    return chances


# -- figures ----------------------------------------------------------------------------------------------------


def _metrics(data: _Data, samples: int, seed: int) -> tuple[MetricSummary, ...]:
    named = _figures(data).summaries(samples=samples, seed=seed)
    drawn = intervals.draw(_calibration_errors(data), data.patients, samples=samples, seed=seed)
    rows = _rows(data)
    named += summaries([("ece", row) for row in rows], drawn.intervals(reflected=True))
    areas = [delong_interval(data.truth[:, k], data.probabilities[:, k], data.patients) for k in data.focus]
    named += summaries([("auc_delong", row) for row in rows[-len(areas) :]], areas)
    return tuple(sorted(named, key=lambda m: m.class_name is not None))


def figures(cases: pd.DataFrame, positive: str | None = None, *, several: bool = False) -> Figures:
    """PER_CLASS and OVERALL from a `cases_frame`, of the classes and cases that are in it.

    `positive` is the positive one of two classes (the last by default).
    """
    names = list(dict.fromkeys(cases["class_name"]))
    wide = cases.pivot(index=["patient", "case"], columns="class_name")
    patients, keys = (wide.index.get_level_values(level).astype(str).to_list() for level in ("patient", "case"))
    truth, called = (wide[part][names].to_numpy(dtype=bool) for part in ("truth", "predicted"))
    focus = (names.index(positive or names[-1]),) if len(names) == 2 and not several else tuple(range(len(names)))
    chances = wide["probability"][names].to_numpy(dtype=float)
    return _figures(_Data(patients, keys, truth, called, chances, tuple(names), focus, several))


def _figures(data: _Data) -> Figures:
    labels: list[Label] = [(m, row) for row in _rows(data) for m in PER_CLASS]
    labels += [(m, None) for m in OVERALL]
    each = np.full((len(data.cases), len(labels)), np.nan)
    for metric, values in zip(("accuracy", "brier"), _right_and_brier(data).T, strict=True):
        each[:, labels.index((metric, None))] = values
    statistic = _statistic(data)
    values = dict(zip(labels, statistic(np.ones((1, len(data.cases))))[0].tolist(), strict=True))
    closed = tuple(_closed(data, label, values) for label in labels)
    return Figures(tuple(labels), statistic, tuple(data.patients), each, closed)


def _closed(data: _Data, label: Label, values: Mapping[Label, float]) -> Bounds | None:
    """Closed intervals of areas (Newcombe) and shares (Wilson); None of others, and of what is undefined."""
    metric, name = label
    if metric == "accuracy":
        return bounds.wilson(values[label], len(set(data.patients)))
    if metric not in PER_CLASS:
        return None
    if name is None and len(data.focus) > 1:
        return bounds.mean_bounds([_closed(data, (metric, each), values) for each in data.names])
    if not math.isfinite(values[label]):
        return None
    index = data.focus[0] if name is None else data.names.index(name)
    real, called = data.truth[:, index], data.called[:, index]
    if metric == "auc":
        return bounds.mann_whitney(values[label], *(bounds.how_many(data.patients, side) for side in (real, ~real)))
    among = {"sensitivity": real, "specificity": ~real, "precision": called}.get(metric)
    if among is None or not among.any():
        return None
    return bounds.wilson(values[label], bounds.how_many(data.patients, among))


def _rows(data: _Data) -> list[str | None]:
    """The mean and each class, or the positive class alone."""
    return [None] if len(data.focus) == 1 else [None, *data.names]


def _right_and_brier(data: _Data) -> Floats:
    """Whether all classes of a case are right, and its Brier score: (cases, 2)."""
    right = (data.truth == data.called).all(axis=1)
    squares = ((data.probabilities - data.truth) ** 2).sum(1)
    # With two classes the sum counts one error twice; halved, it is the usual Brier score.
    brier = squares / len(data.names) if len(data.names) == 2 or data.several else squares
    return np.stack([right, brier], axis=1)


def _calibration_errors(data: _Data) -> Statistic:
    """Expected calibration error of each class (or the positive one), after their mean where there are several.

    Σ over bins (share of the cases in it × |mean probability − share of positives|), in the bins of the calibration
    curve: ten of about equal count (Nixon et al., CVPR Workshops 2019), which stay as they are in a resample.
    """
    parts = [_calibration_error(data.truth[:, k], data.probabilities[:, k]) for k in data.focus]

    def statistic(weights: Floats) -> Floats:
        found = np.stack([part(weights) for part in parts], axis=1)
        return found if len(parts) == 1 else np.concatenate([found.mean(1, keepdims=True), found], axis=1)

    return statistic


def _calibration_error(truth: NDArray[np.bool_], score: Floats) -> Callable[[Floats], Floats]:
    # As scikit-learn's calibration_curve(strategy="quantile") cuts them.
    edges = np.percentile(score, np.linspace(0, 100, _BINS + 1))
    members = np.searchsorted(edges[1:-1], score)[:, None] == np.arange(_BINS)
    gaps = members * (score - truth)[:, None]
    return lambda weights: np.abs(weights @ gaps).sum(1) / weights.sum(1)


def _statistic(data: _Data) -> Statistic:
    """All metrics in the order of `_metrics`: the macro mean and the classes (or the positive class), then overall."""
    size, truth = len(data.names), data.truth
    told = np.concatenate([truth & data.called, truth, data.called], axis=1).astype(float)
    plain = intervals.weighted_mean(_right_and_brier(data))
    areas = intervals.together(*(intervals.auc(truth[:, k], data.probabilities[:, k]) for k in data.focus))
    precisions = intervals.together(
        *(intervals.average_precision(truth[:, k], data.probabilities[:, k]) for k in data.focus)
    )

    def statistic(weights: Floats) -> Floats:
        counts = (weights @ told).reshape(-1, 3, size)
        rates = _rates(counts, weights.sum(1))
        columns = [areas(weights), precisions(weights), *(rate[:, list(data.focus)] for rate in rates)]
        table = np.stack(columns, axis=2)  # (resample, class, metric)
        if len(data.focus) > 1:
            table = np.concatenate([mean_of_defined(table)[:, None], table], axis=1)
        means = plain(weights)
        overall = [means[:, :1], _balanced(rates, several=data.several), means[:, 1:]]
        return np.concatenate([table.reshape(len(weights), -1), *overall], axis=1)

    return statistic


def _rates(counts: Floats, cases: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Sensitivity, specificity, precision and F1 of each class, (resample, class) each.

    `counts` (resample, 3, class): cases rightly called so, cases that are, and that are called so; of `cases` in all.
    A rate over no case is NaN; the precision and F1 of a class that is never called are 0.
    """
    tp, real, called = counts[:, 0], counts[:, 1], counts[:, 2]
    everyone = cases[:, None]
    precision = ratio(tp, called, empty=0.0)
    return (
        ratio(tp, real),
        ratio(everyone - real - called + tp, everyone - real),
        precision,
        ratio(2 * tp, real + called),
    )


def _balanced(rates: tuple[Floats, ...], *, several: bool) -> Floats:
    """Balanced accuracy (resample, 1): mean sensitivity of the classes that occur.

    Of several at once, where each class is a question of two answers, the mean of sensitivities and specificities.
    """
    sensitivity, specificity = rates[:2]
    return mean_of_defined(((sensitivity + specificity) / 2 if several else sensitivity)[:, :, None])


# -- curves and pictures ----------------------------------------------------------------------------------------


def _curves(data: _Data) -> tuple[Curve, ...]:
    found: list[Curve] = []
    for index in data.focus:
        real, score, name = data.truth[:, index], data.probabilities[:, index], data.names[index]
        if real.all() or not real.any():
            continue
        false_rate, true_rate, _ = roc_curve(real, score)
        precision, recall, _ = precision_recall_curve(real, score)
        observed, predicted = calibration_curve(real, score, n_bins=_BINS, strategy="quantile")
        found += [
            _curve("roc", name, false_rate, true_rate),
            _curve("precision-recall", name, recall[::-1], precision[::-1]),
            _curve("calibration", name, predicted, observed),
        ]
    return tuple(found)


def _curve(name: CurveName, class_name: str, x: Floats, y: Floats) -> Curve:
    """At most 400 points, the ends among them."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(int))
    return Curve(name=name, class_name=class_name, x=tuple(x[keep].tolist()), y=tuple(y[keep].tolist()))


def _pictures(evaluation: Evaluation, data: _Data) -> list[Picture]:
    def values(metric: str) -> dict[str, float]:
        # Of two classes the figures over all are the positive one's.
        alone = data.names[data.focus[0]] if len(data.focus) == 1 else None
        named = ((m.class_name or alone, m) for m in evaluation.metrics if m.metric == metric)
        return {name: m.interval.value for name, m in named if name}

    def named(name: CurveName) -> list[Curve]:
        return [c for c in evaluation.curves if c.name == name]

    prevalence = {data.names[k]: float(np.mean(data.truth[:, k])) for k in data.focus}
    shown = [
        pictures.roc(named("roc"), values("auc")),
        pictures.precision_recall(named("precision-recall"), values("average_precision"), prevalence),
        pictures.calibration(named("calibration"), values("ece")),
    ]
    return [*shown, pictures.confusion(evaluation.confusion)] if evaluation.confusion else shown
