"""Curves over all thresholds, and how far probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from models.evaluation import Curve, Picture
from tasks.evaluate.pictures.style import (
    DASHES,
    INK,
    MUTED,
    SERIES,
    label,
    legend,
    lines,
    new_square,
    short,
    spoken,
    svg,
)

_LEAST_RATE: Final = 1 / 16


def roc(curves: Sequence[Curve], areas: Mapping[str, float]) -> Picture:
    """ROC curves; `areas` maps class names to their AUC for the legend."""
    figure, axis = new_square()
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="chance")
    lines(axis, curves, {name: f"AUC {value:.3f}" for name, value in areas.items()})
    label(axis, "1 − specificity", "Sensitivity")
    legend(axis, "lower right")
    return svg(figure, "roc", "ROC curve", spoken("ROC curve", "AUC", areas))


def precision_recall(
    curves: Sequence[Curve], precisions: Mapping[str, float], prevalence: Mapping[str, float]
) -> Picture:
    """Precision over recall; `prevalence` by class is what guessing would reach, drawn dotted for a single class."""
    figure, axis = new_square()
    if len(prevalence) == 1:
        axis.axhline(next(iter(prevalence.values())), color=MUTED, linewidth=1, linestyle=":", label="chance")
    lines(axis, curves, {name: f"AP {value:.3f}" for name, value in precisions.items()})
    label(axis, "Recall (sensitivity)", "Precision")
    legend(axis, "lower left")
    return svg(figure, "precision-recall", "Precision and recall", spoken("PR curve", "average precision", precisions))


def calibration(curves: Sequence[Curve], errors: Mapping[str, float] | None = None) -> Picture:
    """Observed share of positives over the mean predicted probability, per bin; `errors` are the expected calibration
    errors (ECE) by class, for the legend.
    """
    figure, axis = new_square()
    axis.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="perfect")
    known = errors or {}
    lines(axis, curves, {name: f"ECE {value:.3f}" for name, value in known.items()}, marker="o")
    label(axis, "Predicted probability", "Observed share")
    legend(axis, "upper left")
    names = ", ".join(c.class_name for c in curves)
    told = f"Observed share over predicted probability for {names}"
    if known:
        told = spoken(told, "expected calibration error", known)
    return svg(figure, "calibration", "Calibration", told)


def froc(curves: Sequence[Curve], scores: Mapping[str, float], point: tuple[float, float]) -> Picture:
    """Sensitivity over false positives an image, by class; `scores` is the mean over the seven rates that are ticked,
    `point` where marks are believed: (false positives an image, sensitivity).
    """
    figure, axis = new_square()
    for index, curve in enumerate(curves):
        note = f", FROC {scores[curve.class_name]:.3f}" if curve.class_name in scores else ""
        # What holds beyond the last mark holds for ever: the line goes on to the edge.
        x, y = np.append(curve.x, max(16.0, curve.x[-1])), np.append(curve.y, curve.y[-1])
        axis.plot(
            np.maximum(x, _LEAST_RATE),
            y,
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index // len(SERIES) % len(DASHES)],
            linewidth=2,
            label=short(curve.class_name) + note,
        )
    axis.plot(
        max(point[0], _LEAST_RATE),
        point[1],
        "o",
        markersize=8,
        fillstyle="none",
        color=INK,
        label="believed from here",
    )
    axis.set_xscale("log", base=2)
    axis.set(xlim=(_LEAST_RATE, 16), ylim=(-0.02, 1.02))
    axis.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axis.minorticks_off()
    label(axis, "False positives an image", "Sensitivity")
    legend(axis, "lower right")
    return svg(figure, "froc", "FROC curve", spoken("FROC curve", "mean sensitivity", scores))
