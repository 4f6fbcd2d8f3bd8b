"""How a metric's values are spread over the cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation import Picture
from tasks.evaluate.pictures.style import INK, MUTED, SERIES, label, new_figure, short, svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_SHARES: Final = {"dice": "Dice", "iou": "IoU", "surface_dice": "Surface Dice at {tolerance:g} mm"}
_WHERE_FOUND: Final = {
    "hd95_mm": "HD95 (mm), where found",
    "assd_mm": "Average surface distance (mm), where found",
    "volume_error_ml": "Volume error (mL), where found",
}
_ACROSS: Final = 3


def distributions(frame: pd.DataFrame, class_names: Sequence[str], tolerance_mm: float) -> Picture:
    """Every metric of every case, by class: a point per case; boxes hold the middle half, whiskers 90 %.

    Distances and volumes are shown where the class was found: elsewhere a distance is only the penalty, which would
    squeeze the rest.
    """
    panels = {column: told for column, told in (_SHARES | _WHERE_FOUND).items() if column in frame}
    rows = -(-len(panels) // _ACROSS)
    figure = new_figure(9.6, rows * (1.3 + 0.45 * len(class_names)) + 0.4)
    axes = figure.subplots(rows, min(_ACROSS, len(panels)), sharey=True, squeeze=False)
    jitter = np.random.default_rng(0)
    for axis, (column, told) in zip(axes.flat, panels.items(), strict=False):
        shown = frame[frame["outcome"] == "found"] if column in _WHERE_FOUND else frame
        groups = [shown.loc[shown["class_name"] == name, column].to_numpy(float) for name in class_names]
        _boxes(axis, groups, jitter)
        axis.set_xlabel(told.format(tolerance=tolerance_mm), color=INK)
        _reach(axis, groups, share=column in _SHARES)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(class_names)), [short(n) for n in class_names])
    axes[0, 0].invert_yaxis()
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    names = [told.split(" at ")[0].split(",")[0] for told in panels.values()]
    alt = f"Box plots of {', '.join(names)} by class, a point a case"
    return svg(figure, "distributions", "Cases by class", alt)


def probabilities(frame: pd.DataFrame, class_names: Sequence[str]) -> Picture:
    """The probability of each class, of the cases that show it and of those that do not: a point per case.

    `frame` has `class_name`, `probability` and `truth`.
    """
    figure = new_figure(6.8, 1.3 + 0.75 * len(class_names))
    axis = figure.subplots()
    jitter = np.random.default_rng(0)
    groups = []
    for name in class_names:
        of_class = frame[frame["class_name"] == name]
        groups += [of_class.loc[of_class["truth"] == shown, "probability"].to_numpy(float) for shown in (True, False)]
    _boxes(axis, groups, jitter, colours=(SERIES[0], SERIES[1]))
    told = [part for name in class_names for part in (short(name), f"not {short(name)}")]
    axis.set_yticks(range(len(groups)), [f"{t} (n = {len(g)})" for t, g in zip(told, groups, strict=True)])
    axis.invert_yaxis()
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("Predicted probability of the class", color=INK)
    alt = f"Predicted probabilities of {', '.join(class_names)}, of cases that show the class and of those that do not"
    return svg(figure, "distributions", "Probabilities by class", alt)


def _reach(axis: Axes, groups: Sequence[NDArray[np.float64]], *, share: bool) -> None:
    """Shares from 0 to 1, distances from 0, differences on both sides of it."""
    finite = np.concatenate([np.r_[0.0, g[np.isfinite(g)]] for g in groups])
    low, high = (0.0, 1.0) if share else (float(finite.min()), float(finite.max()) or 1.0)
    margin = 0.03 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    if low < 0:
        axis.axvline(0, color=MUTED, linewidth=1, linestyle=":")


def _boxes(
    axis: Axes,
    groups: Sequence[NDArray[np.float64]],
    jitter: np.random.Generator,
    colours: Sequence[str] = SERIES,
) -> None:
    for row, values in enumerate(groups):
        finite = values[np.isfinite(values)]
        colour = colours[row % len(colours)]
        heights = row + jitter.uniform(-0.17, 0.17, finite.size)
        axis.plot(finite, heights, "o", color=colour, alpha=0.75, markersize=4, mew=0, zorder=3)
        if finite.size > 2:
            low, first, middle, third, high = np.percentile(finite, [5, 25, 50, 75, 95])
            axis.hlines([row, row], [low, third], [first, high], color=MUTED, linewidth=1)
            axis.barh(row, third - first, left=first, height=0.55, fill=False, edgecolor=MUTED, linewidth=1)
            axis.vlines(middle, row - 0.275, row + 0.275, color=INK, linewidth=2)
    label(axis, "", "")
