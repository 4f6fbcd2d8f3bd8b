"""Which class was taken for which."""

from __future__ import annotations

import numpy as np

from models.evaluation import ConfusionMatrix, Picture
from tasks.evaluate.pictures.style import GRID, INK, SERIES, label, new_figure, short, svg


def confusion(matrix: ConfusionMatrix) -> Picture:
    """Counts, shaded and annotated by the share of the row (of the class's true cases)."""
    size = len(matrix.class_names)
    figure = new_figure(max(4.4, 1.6 + 0.9 * size), max(3.8, 1.2 + 0.75 * size))
    axis = figure.subplots()
    counts = np.asarray(matrix.counts, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for (i, j), share in np.ndenumerate(shares):
        axis.axvspan(j - 0.5, j + 0.5, 1 - (i + 1) / size, 1 - i / size, color=SERIES[0], alpha=0.62 * share, lw=0)
        axis.text(j, i - 0.12, f"{counts[i, j]:.0f}", ha="center", va="center", color=INK, fontsize=12)
        axis.text(j, i + 0.22, f"{share:.0%}", ha="center", va="center", color=INK, fontsize=9)
    names = [short(n) for n in matrix.class_names]
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axis.set_xticks(range(size), names)
    axis.set_yticks(range(size), names, rotation=90 if size < 5 else 0, va="center")
    axis.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axis.grid(which="minor", color=GRID)
    axis.tick_params(which="both", length=0)
    label(axis, "Predicted", "Truth", grid=False)
    right = int(np.trace(counts))
    return svg(figure, "confusion", "Confusion matrix", f"{right} of {int(counts.sum())} cases called rightly")
