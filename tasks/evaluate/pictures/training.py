"""Loss and validation while the model learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.evaluation import Picture
from tasks.evaluate.pictures.style import GRID, INK, MUTED, PANEL, SERIES, label, new_figure, svg


def learning_curve(
    history: Sequence[tuple[int, float, float]], metric: str, champion: Sequence[tuple[int, float, float]] = ()
) -> Picture:
    """Training loss and validation `metric` over (step, loss, metric) rows; the best validation is marked.

    The curves of the `champion`, where they are known, are dashed.
    """
    steps, losses, values = np.asarray(history, dtype=float).reshape(-1, 3).T
    figure = new_figure(6.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    if len(champion):
        then, cost, score = np.asarray(champion, dtype=float).reshape(-1, 3).T
        above.plot(then, cost, color=MUTED, linewidth=1.4, linestyle="--", label="champion")
        below.plot(then, score, color=MUTED, linewidth=1.4, linestyle="--")
    above.plot(steps, losses, color=SERIES[0], linewidth=1.8, marker="o", markersize=3, label="this model")
    label(above, "", "Training loss")
    if len(champion):
        above.legend(loc="upper right", facecolor=PANEL, edgecolor=GRID, labelcolor=INK, fontsize=9)
    below.plot(steps, values, color=SERIES[1], linewidth=1.8, marker="o", markersize=3)
    told = "no validation"
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        told = f"best {values[best]:.3f} at step {steps[best]:.0f}"
        below.plot(steps[best], values[best], marker="o", markersize=9, fillstyle="none", color=INK, linestyle="")
        below.text(0.99, 0.07, told, ha="right", transform=below.transAxes, color=INK)
    label(below, "Step", f"Validation {metric}")
    beside = "; the champion's are dashed" if len(champion) else ""
    return svg(figure, "learning-curve", "Training", f"Training loss and validation {metric} by step: {told}{beside}")
