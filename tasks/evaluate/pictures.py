"""Pictures of an evaluation: SVG that follows the reader's light or dark scheme on a panel of its own.

Colours are Okabe & Ito's, told apart also by the colour-blind. Figures are made without pyplot, so nothing stays open.
matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.evaluation import ConfusionMatrix, Curve, Picture, SegmentationCase
from models.geometry import Geometry, Triple
from models.volume import inside
from tasks.imaging.detection import Lesions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; `_svg` turns them into CSS variables with a light and a dark value.
_INK, _MUTED, _GRID, _PANEL = "#010101", "#020202", "#030303", "#040404"
_SERIES: Final = ("#050505", "#060606", "#070707", "#080808", "#090909")
_SCHEME: Final[dict[str, tuple[str, str, str]]] = {
    _INK: ("ink", "#1d2126", "#e6e8ea"),
    _MUTED: ("muted", "#5b636c", "#a3abb3"),
    _GRID: ("grid", "#dfe3e7", "#3a4047"),
    _PANEL: ("panel", "#ffffff", "#1b1f23"),
    _SERIES[0]: ("blue", "#0072b2", "#56b4e9"),
    _SERIES[1]: ("vermillion", "#d55e00", "#e58a3c"),
    _SERIES[2]: ("green", "#009e73", "#00b487"),
    _SERIES[3]: ("purple", "#b8628f", "#cc79a7"),
    _SERIES[4]: ("orange", "#b87f00", "#e69f00"),
}
_DASHES: Final = ("-", "--", "-.", ":")
# Contours lie on grey images in either scheme, so they keep their bright colours.
_TRUTH, _PREDICTION = "#56b4e9", "#e69f00"
_BY_CLASS: Final = ("#56b4e9", "#e69f00", "#00c896", "#f0e442", "#cc79a7", "#ff7f3f")
_CROP = 160
_LEAST_RATE = 1 / 16


@dataclass(frozen=True, slots=True)
class Crop:
    """Part of one slice, at most 160 pixels wide: what is kept of a volume for its picture.

    `image` (y, x) grey uint8 or None; labels (y, x) uint8, bits where there are `regions`; `spacing` (y, x) mm;
    `index` counts slices from 0.
    """

    image: NDArray[np.uint8] | None
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float]
    index: int
    regions: bool = False


def crop_of(
    image: NDArray[np.floating[Any]] | None,
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing: Triple,
    *,
    regions: bool = False,
) -> Crop:
    """The slice with the most to see (area of the truth plus area of the errors), cut to its structures.

    `image` (c, z, y, x): the first channel is shown, from its 1st to its 99th percentile.
    """
    wrong = np.count_nonzero(truth != prediction, axis=(1, 2))
    index = int(np.argmax(np.count_nonzero(truth, axis=(1, 2)) + wrong))
    real, guessed = truth[index], prediction[index]
    seen = (real > 0) | (guessed > 0)
    rows, columns = _reach(seen.any(1)), _reach(seen.any(0))
    # One stride for both axes keeps the shape; it is 1 unless the structures are very large.
    stride = max(-(-(part.stop - part.start) // _CROP) for part in (rows, columns))
    window = slice(rows.start, rows.stop, stride), slice(columns.start, columns.stop, stride)
    grey = None if image is None else _grey(image[0, index][window])
    step = spacing[1] * stride, spacing[2] * stride
    return Crop(grey, real[window].copy(), guessed[window].copy(), step, index, regions)


def overlays(cases: Sequence[SegmentationCase], crops: Sequence[Crop], class_names: Sequence[str]) -> Picture:
    """The best, the median and the worst case by mean Dice: truth and prediction as contours on the image."""
    order = sorted(range(len(cases)), key=lambda i: (-cases[i].dice, cases[i].case))
    picks = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
    if len(cases) < 3:
        picks = {"Best": order[0]} | ({"Worst": order[-1]} if len(cases) == 2 else {})
    figure = _figure(3.3 * len(picks), 4.2)
    axes = np.atleast_1d(figure.subplots(1, len(picks)))
    for axis, (rank, index) in zip(axes, picks.items(), strict=True):
        _overlay(axis, crops[index], len(class_names))
        axis.set_title(f"{rank}: Dice {cases[index].dice:.3f}", color=_INK, fontsize=11, fontweight="bold")
        axis.set_xlabel(f"{_short(cases[index].patient, 24)}, slice {crops[index].index + 1}", color=_MUTED)
    figure.legend(handles=_keys(class_names), loc="outside lower center", ncols=4, frameon=False, labelcolor=_INK)
    told = ", ".join(f"{rank.lower()} {cases[i].dice:.3f}" for rank, i in picks.items())
    return _svg(
        figure, "overlays", "Truth and prediction", f"Contours on one slice of each of these cases: {told} Dice"
    )


def distributions(frame: pd.DataFrame, class_names: Sequence[str], tolerance_mm: float) -> Picture:
    """Dice, surface Dice and HD95 of every case, by class: a point per case; boxes hold the middle half, whiskers 90 %.

    HD95 is shown where the class was found: elsewhere it is only the penalty, which would squeeze the rest.
    """
    panels = (
        ("dice", "Dice", None),
        ("surface_dice", f"Surface Dice at {tolerance_mm:g} mm", None),
        ("hd95_mm", "HD95 (mm)", "where found"),
    )
    figure = _figure(9.6, 1.7 + 0.5 * len(class_names))
    axes = figure.subplots(1, len(panels), sharey=True)
    jitter = np.random.default_rng(0)
    for axis, (column, label, note) in zip(axes, panels, strict=True):
        shown = frame[frame["outcome"] == "found"] if column == "hd95_mm" else frame
        groups = [shown.loc[shown["class_name"] == name, column].to_numpy(float) for name in class_names]
        _boxes(axis, groups, jitter)
        axis.set_xlabel(label + (f", {note}" if note else ""), color=_INK)
        highest = axis.get_xlim()[1] if column == "hd95_mm" else 1.0
        axis.set_xlim(-0.03 * highest, 1.03 * highest)
    axes[0].set_yticks(range(len(class_names)), [_short(n) for n in class_names])
    axes[0].invert_yaxis()
    return _svg(figure, "distributions", "Cases by class", "Box plots of Dice, surface Dice and HD95 by class")


def roc(curves: Sequence[Curve], areas: dict[str, float]) -> Picture:
    """ROC curves; `areas` maps class names to their AUC for the legend."""
    figure, axis = _square()
    axis.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":", label="chance")
    _lines(axis, curves, {name: f"AUC {value:.3f}" for name, value in areas.items()})
    _label(axis, "1 − specificity", "Sensitivity")
    _legend(axis, "lower right")
    return _svg(figure, "roc", "ROC curve", _spoken("ROC curve", "AUC", areas))


def precision_recall(curves: Sequence[Curve], precisions: dict[str, float], prevalence: dict[str, float]) -> Picture:
    """Precision over recall; `prevalence` by class is what guessing would reach, drawn dotted for a single class."""
    figure, axis = _square()
    if len(prevalence) == 1:
        axis.axhline(next(iter(prevalence.values())), color=_MUTED, linewidth=1, linestyle=":", label="chance")
    _lines(axis, curves, {name: f"AP {value:.3f}" for name, value in precisions.items()})
    _label(axis, "Recall (sensitivity)", "Precision")
    _legend(axis, "lower left")
    return _svg(
        figure, "precision-recall", "Precision and recall", _spoken("PR curve", "average precision", precisions)
    )


def calibration(curves: Sequence[Curve]) -> Picture:
    """Observed share of positives over the mean predicted probability, per bin."""
    figure, axis = _square()
    axis.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":", label="perfect")
    _lines(axis, curves, {}, marker="o")
    _label(axis, "Predicted probability", "Observed share")
    _legend(axis, "upper left")
    names = ", ".join(c.class_name for c in curves)
    return _svg(figure, "calibration", "Calibration", f"Observed share over predicted probability for {names}")


def confusion(matrix: ConfusionMatrix) -> Picture:
    """Counts, shaded and annotated by the share of the row (of the class's true cases)."""
    size = len(matrix.class_names)
    figure = _figure(max(4.4, 1.6 + 0.9 * size), max(3.8, 1.2 + 0.75 * size))
    axis = figure.subplots()
    counts = np.asarray(matrix.counts, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for (i, j), share in np.ndenumerate(shares):
        axis.axvspan(j - 0.5, j + 0.5, 1 - (i + 1) / size, 1 - i / size, color=_SERIES[0], alpha=0.62 * share, lw=0)
        axis.text(j, i - 0.12, f"{counts[i, j]:.0f}", ha="center", va="center", color=_INK, fontsize=12)
        axis.text(j, i + 0.22, f"{share:.0%}", ha="center", va="center", color=_INK, fontsize=9)
    names = [_short(n) for n in matrix.class_names]
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axis.set_xticks(range(size), names)
    axis.set_yticks(range(size), names, rotation=90 if size < 5 else 0, va="center")
    axis.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axis.grid(which="minor", color=_GRID)
    axis.tick_params(which="both", length=0)
    _label(axis, "Predicted", "Truth", grid=False)
    right = int(np.trace(counts))
    return _svg(figure, "confusion", "Confusion matrix", f"{right} of {int(counts.sum())} cases called rightly")


def learning_curve(
    history: Sequence[tuple[int, float, float]], metric: str, champion: Sequence[tuple[int, float, float]] = ()
) -> Picture:
    """Training loss and validation `metric` over (step, loss, metric) rows; the best validation is marked.

    The curves of the `champion`, where they are known, are dashed.
    """
    steps, losses, values = np.asarray(history, dtype=float).reshape(-1, 3).T
    figure = _figure(6.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    if len(champion):
        then, cost, score = np.asarray(champion, dtype=float).reshape(-1, 3).T
        above.plot(then, cost, color=_MUTED, linewidth=1.4, linestyle="--", label="champion")
        below.plot(then, score, color=_MUTED, linewidth=1.4, linestyle="--")
    above.plot(steps, losses, color=_SERIES[0], linewidth=1.8, marker="o", markersize=3, label="this model")
    _label(above, "", "Training loss")
    if len(champion):
        above.legend(loc="upper right", facecolor=_PANEL, edgecolor=_GRID, labelcolor=_INK, fontsize=9)
    below.plot(steps, values, color=_SERIES[1], linewidth=1.8, marker="o", markersize=3)
    told = "no validation"
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        told = f"best {values[best]:.3f} at step {steps[best]:.0f}"
        below.plot(steps[best], values[best], marker="o", markersize=9, fillstyle="none", color=_INK, linestyle="")
        below.text(0.99, 0.07, told, ha="right", transform=below.transAxes, color=_INK)
    _label(below, "Step", f"Validation {metric}")
    beside = "; the champion's are dashed" if len(champion) else ""
    return _svg(figure, "learning-curve", "Training", f"Training loss and validation {metric} by step: {told}{beside}")


def froc(curves: Sequence[Curve], scores: dict[str, float], point: tuple[float, float]) -> Picture:
    """Sensitivity over false positives an image, by class; `scores` is the mean over the seven rates that are ticked,
    `point` where marks are believed: (false positives an image, sensitivity).
    """
    figure, axis = _square()
    for index, curve in enumerate(curves):
        note = f", FROC {scores[curve.class_name]:.3f}" if curve.class_name in scores else ""
        # What holds beyond the last mark holds for ever: the line goes on to the edge.
        x, y = np.append(curve.x, max(16.0, curve.x[-1])), np.append(curve.y, curve.y[-1])
        axis.plot(
            np.maximum(x, _LEAST_RATE),
            y,
            color=_SERIES[index % len(_SERIES)],
            linestyle=_DASHES[index // len(_SERIES) % len(_DASHES)],
            linewidth=2,
            label=_short(curve.class_name) + note,
        )
    axis.plot(
        max(point[0], _LEAST_RATE),
        point[1],
        "o",
        markersize=8,
        fillstyle="none",
        color=_INK,
        label="believed from here",
    )
    axis.set_xscale("log", base=2)
    axis.set(xlim=(_LEAST_RATE, 16), ylim=(-0.02, 1.02))
    axis.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axis.minorticks_off()
    _label(axis, "False positives an image", "Sensitivity")
    _legend(axis, "lower right")
    return _svg(figure, "froc", "FROC curve", _spoken("FROC curve", "mean sensitivity", scores))


def lesion_overlays(
    frame: pd.DataFrame, crops: Sequence[Crop], cases: Sequence[str], class_names: Sequence[str], threshold: float
) -> Picture:
    """The case that was read best, the median and the worst, by its false positives and missed lesions from
    `threshold` on: true lesions and believed marks as outlines on one slice.
    """
    sure = frame["confidence"] >= threshold
    wrong = ((frame["outcome"] == "invented") & sure) | (frame["outcome"] == "missed")
    wrong |= (frame["outcome"] == "found") & ~sure
    errors = wrong.groupby(frame["case"]).sum()
    real = frame["diameter_mm"].notna().groupby(frame["case"]).sum()
    # Of equally good readings those with more lesions show more.
    order = sorted(range(len(cases)), key=lambda i: (errors[cases[i]], -real[cases[i]], cases[i]))
    picks = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
    if len(cases) < 3:
        picks = {"Best": order[0]} | ({"Worst": order[-1]} if len(cases) == 2 else {})
    owner = dict(zip(frame["case"], frame["patient"], strict=True))
    figure = _figure(3.3 * len(picks), 4.2)
    axes = np.atleast_1d(figure.subplots(1, len(picks)))
    told = []
    for axis, (rank, index) in zip(axes, picks.items(), strict=True):
        case = cases[index]
        _overlay(axis, crops[index], len(class_names))
        told.append(f"{rank}: {errors[case]} wrong, {real[case]} {'lesion' if real[case] == 1 else 'lesions'}")
        axis.set_title(told[-1], color=_INK, fontsize=11, fontweight="bold")
        axis.set_xlabel(f"{_short(owner[case], 24)}, slice {crops[index].index + 1}", color=_MUTED)
    figure.legend(handles=_keys(class_names), loc="outside lower center", ncols=4, frameon=False, labelcolor=_INK)
    return _svg(
        figure, "overlays", "True lesions and marks", f"Outlines on one slice of each of these: {'; '.join(told)}"
    )


def lesions_crop(image: NDArray[np.floating[Any]] | None, truth: Lesions, marks: Lesions, geometry: Geometry) -> Crop:
    """As `crop_of`; marks that are boxes are drawn as such."""
    return crop_of(image, _labels(truth, geometry.shape), _labels(marks, geometry.shape), geometry.spacing)


# -- parts ------------------------------------------------------------------------------------------------------


def _labels(lesions: Lesions, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """As a label map of their classes."""
    return np.asarray(np.r_[0, lesions.classes + 1].astype(np.uint8)[lesions.drawn(shape)])


def _reach(seen: NDArray[np.bool_]) -> slice:
    """Where the structures lie along one axis, with a margin of a quarter (16 at least); all of it without any."""
    found = np.flatnonzero(seen)
    if not found.size:
        return slice(0, seen.size)
    margin = max(16, int(found[-1] - found[0]) // 4)
    return slice(max(0, int(found[0]) - margin), min(seen.size, int(found[-1]) + margin + 1))


def _grey(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    low, high = np.nanpercentile(image, [1, 99])
    scaled = np.nan_to_num((image - low) / max(high - low, 1e-12))
    return (scaled.clip(0, 1) * 255).astype(np.uint8)


def _overlay(axis: Axes, crop: Crop, classes: int) -> None:
    height, width = crop.truth.shape
    grey = crop.image if crop.image is not None else np.full(crop.truth.shape, 40, np.uint8)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, aspect=crop.spacing[0] / crop.spacing[1], interpolation="bicubic")
    for labels, colour, style in ((crop.truth, _TRUTH, "solid"), (crop.prediction, _PREDICTION, "dashed")):
        for index in range(1, classes + 1):
            mask = np.pad(inside(labels, index - 1, regions=crop.regions), 1).astype(float)
            if not mask.any():
                continue
            shade = colour if classes == 1 else _BY_CLASS[(index - 1) % len(_BY_CLASS)]
            y, x = np.arange(-1, height + 1), np.arange(-1, width + 1)
            axis.contour(
                x, y, ndimage.gaussian_filter(mask, 0.5), [0.5], colors=shade, linestyles=style, linewidths=1.6
            )
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], frame_on=False)
    bar = max(b for b in (1, 5, 10, 20, 50, 100) if b <= max(1.0, 0.4 * width * crop.spacing[1]))
    end = width * 0.05 + bar / crop.spacing[1]
    axis.plot([width * 0.05, end], [height * 0.94] * 2, color="white", linewidth=3, solid_capstyle="butt")
    axis.text(width * 0.05, height * 0.92, f"{bar} mm", color="white", fontsize=8, va="bottom")


def _keys(class_names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    if len(class_names) == 1:
        return [
            Line2D([], [], color=_TRUTH, label="truth"),
            Line2D([], [], color=_PREDICTION, ls="--", label="prediction"),
        ]
    named = [
        Line2D([], [], color=_BY_CLASS[i % len(_BY_CLASS)], linewidth=3, label=_short(name))
        for i, name in enumerate(class_names)
    ]
    return [
        *named,
        Line2D([], [], color=_MUTED, label="truth"),
        Line2D([], [], color=_MUTED, ls="--", label="prediction"),
    ]


def _boxes(axis: Axes, groups: Sequence[NDArray[np.float64]], jitter: np.random.Generator) -> None:
    for row, values in enumerate(groups):
        finite = values[np.isfinite(values)]
        colour = _SERIES[row % len(_SERIES)]
        heights = row + jitter.uniform(-0.17, 0.17, finite.size)
        axis.plot(finite, heights, "o", color=colour, alpha=0.75, markersize=4, mew=0, zorder=3)
        if finite.size > 2:
            low, first, middle, third, high = np.percentile(finite, [5, 25, 50, 75, 95])
            axis.hlines([row, row], [low, third], [first, high], color=_MUTED, linewidth=1)
            axis.barh(row, third - first, left=first, height=0.55, fill=False, edgecolor=_MUTED, linewidth=1)
            axis.vlines(middle, row - 0.275, row + 0.275, color=_INK, linewidth=2)
    _label(axis, "", "")


def _lines(axis: Axes, curves: Sequence[Curve], notes: dict[str, str], marker: str | None = None) -> None:
    for index, curve in enumerate(curves):
        note = notes.get(curve.class_name)
        axis.plot(
            curve.x,
            curve.y,
            color=_SERIES[index % len(_SERIES)],
            linestyle=_DASHES[index // len(_SERIES) % len(_DASHES)],
            linewidth=2,
            marker=marker,
            markersize=4.5,
            label=_short(curve.class_name) + (f", {note}" if note else ""),
        )
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def _square() -> tuple[Figure, Axes]:
    figure = _figure(4.8, 4.6)
    return figure, figure.subplots()


def _label(axis: Axes, x: str, y: str, *, grid: bool = True) -> None:
    axis.set_xlabel(x, color=_INK)
    axis.set_ylabel(y, color=_INK)
    if grid:
        axis.grid(color=_GRID, linewidth=0.8)
        axis.set_axisbelow(True)


def _legend(axis: Axes, place: Literal["lower right", "lower left", "upper left"]) -> None:
    axis.legend(loc=place, frameon=True, facecolor=_PANEL, edgecolor=_GRID, labelcolor=_INK, fontsize=9)


def _spoken(what: str, area: str, values: dict[str, float]) -> str:
    return f"{what}; {area}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _short(name: str, length: int = 22) -> str:
    # A dollar sign would start mathtext.
    name = name.replace("$", r"\$")
    return name if len(name) <= length else name[: length - 1] + "…"


def _figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches in the house's style."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=_PANEL, layout="constrained")


def _svg(figure: Figure, name: str, title: str, alt: str) -> Picture:
    """Draw, and give the stand-in colours their light and dark values."""
    from matplotlib import rc_context

    for axis in figure.axes:
        axis.set_facecolor(_PANEL)
        axis.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=9)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_MUTED)
    out = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}):
        # Tight: images of other proportions than their frame move their titles out of it.
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}
        figure.savefig(
            out, format="svg", facecolor=_PANEL, dpi=150, metadata={"Date": None, "Creator": None}, **options
        )
    return Picture(name=name, title=title, alt=alt, data=_themed(out.getvalue().decode()).encode())


def _themed(svg: str) -> str:
    light = ";".join(f"--{n}:{day}" for n, day, _ in _SCHEME.values())
    dark = ";".join(f"--{n}:{night}" for n, _, night in _SCHEME.values())
    for stand_in, (variable, day, _) in _SCHEME.items():
        svg = svg.replace(stand_in, f"var(--{variable},{day})")
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    _, opening, rest = svg.partition("<svg")
    tag, close, body = rest.partition(">")
    return opening + tag + close + style + body.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
