"""Predicted beside true volumes (Bland and Altman, Lancet 1986)."""

from __future__ import annotations

import re

import numpy as np

from models.evaluation import Agreement, Interval, Picture
from tasks.evaluate.pictures.style import INK, MUTED, PANEL, SERIES, label, legend, new_figure, short, svg


def bland_altman(agreement: Agreement) -> Picture:
    """The difference of volumes over their mean, in millilitres: a point a case, the mean difference, and the limits
    between which 95 % of differences lie, each with its interval.
    """
    means, differences = np.asarray(agreement.points, float).reshape(-1, 2).T
    figure = new_figure(6.4, 4.4)
    axis = figure.subplots()
    axis.axhline(0, color=MUTED, linewidth=1, linestyle=":")
    for interval, colour, style, told in (
        (agreement.bias, SERIES[0], "-", "mean difference"),
        (agreement.upper, SERIES[1], "--", "upper limit of agreement"),
        (agreement.lower, SERIES[2], "--", "lower limit of agreement"),
    ):
        axis.axhline(interval.value, color=colour, linestyle=style, linewidth=1.8, label=f"{told} {_ml(interval)}")
        if interval.low is not None and interval.high is not None:
            axis.axhspan(interval.low, interval.high, color=colour, alpha=0.12, linewidth=0)
    axis.plot(means, differences, "o", color=INK, markersize=4.5, markeredgecolor=PANEL, mew=0.6, linestyle="")
    label(axis, "Mean of predicted and true volume (mL)", "Predicted − true volume (mL)")
    # Above the points, whatever they are.
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.35 * (high - low))
    legend(axis, "upper left")
    title = f"Volumes of {agreement.class_name} (Bland–Altman)"
    alt = (
        f"Bland–Altman plot of {len(means)} cases of {agreement.class_name}: mean difference {_ml(agreement.bias)}, "
        f"limits of agreement {_ml(agreement.lower)} and {_ml(agreement.upper)}"
    )
    axis.set_title(short(title, 60), color=INK, fontsize=11)
    return svg(figure, f"bland-altman-{slug(agreement.class_name)}", title, alt)


def slug(name: str) -> str:
    """A class's name as part of a file's."""
    return re.sub(r"[^\w]+", "-", name, flags=re.ASCII).strip("-").lower() or "class"


def _ml(interval: Interval) -> str:
    return f"{interval.value:+.3g} mL"
