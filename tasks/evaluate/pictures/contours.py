"""Truth and prediction as contours on one slice of a case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from models.evaluation import Picture, SegmentationCase
from models.volume import inside
from tasks.evaluate.pictures.crops import Crop
from tasks.evaluate.pictures.style import BY_CLASS, INK, MUTED, PREDICTION, TRUTH, new_figure, short, svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def overlays(
    cases: Sequence[SegmentationCase],
    crops: Sequence[Crop],
    class_names: Sequence[str],
    doubts: Sequence[float] = (),
) -> list[Picture]:
    """The best, the median and the worst case by mean Dice, and the one of the most `doubts` (0 to 1 a case, where
    they are known): truth and prediction as contours on the image.
    """
    order = sorted(range(len(cases)), key=lambda i: (-cases[i].dice, cases[i].case))
    picks = _ranks(order)
    if doubts and len(cases) > 1:
        picks["Uncertain"] = max(range(len(cases)), key=lambda i: doubts[i])
    made = []
    for rank, index in picks.items():
        told = f"Dice {cases[index].dice:.3f}"
        if rank == "Uncertain":
            told += f", uncertainty {doubts[index]:.2f}"
        made.append(_contours(rank, told, crops[index], cases[index].patient, class_names, "Truth and prediction"))
    return made


def lesion_overlays(
    frame: pd.DataFrame, crops: Sequence[Crop], cases: Sequence[str], class_names: Sequence[str], threshold: float
) -> list[Picture]:
    """The case that was read best, the median and the worst, by its false positives and missed lesions from
    `threshold` on, and the one with the believed mark that is nearest to a coin's toss: true lesions and believed
    marks as outlines on one slice.
    """
    sure = frame["confidence"] >= threshold
    wrong = ((frame["outcome"] == "invented") & sure) | (frame["outcome"] == "missed")
    wrong |= (frame["outcome"] == "found") & ~sure
    errors = wrong.groupby(frame["case"]).sum()
    real = frame["diameter_mm"].notna().groupby(frame["case"]).sum()
    # Of equally good readings those with more lesions show more.
    order = sorted(range(len(cases)), key=lambda i: (errors[cases[i]], -real[cases[i]], cases[i]))
    owner = dict(zip(frame["case"], frame["patient"], strict=True))
    picks = _ranks(order)
    doubts = (frame.loc[sure, "confidence"] - 0.5).abs().groupby(frame["case"]).min()
    if len(doubts) and len(cases) > 1:
        picks["Uncertain"] = min(map(cases.index, doubts.index), key=lambda i: (doubts[cases[i]], cases[i]))
    made = []
    for rank, index in picks.items():
        case = cases[index]
        told = f"{errors[case]} wrong, {real[case]} {'lesion' if real[case] == 1 else 'lesions'}"
        made.append(_contours(rank, told, crops[index], owner[case], class_names, "True lesions and marks"))
    return made


def _ranks(order: Sequence[int]) -> dict[str, int]:
    """From the best to the worst; nothing is shown twice where there are few."""
    if len(order) < 3:
        return {"Best": order[0]} | ({"Worst": order[-1]} if len(order) == 2 else {})
    return {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}


def _contours(rank: str, told: str, crop: Crop, patient: str, class_names: Sequence[str], what: str) -> Picture:
    figure = new_figure(4.4, 4.8)
    axis = figure.subplots()
    draw_overlay(axis, crop, len(class_names))
    axis.set_title(f"{rank}: {told}", color=INK, fontsize=11, fontweight="bold")
    axis.set_xlabel(f"{short(patient, 24)}, slice {crop.index + 1}", color=MUTED)
    figure.legend(handles=keys(class_names), loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    name = "most uncertain" if rank == "Uncertain" else rank.lower()
    alt = f"{what} as contours on slice {crop.index + 1} of the {name} case: {told}"
    return svg(figure, f"overlays-{rank.lower()}", f"{what}: the {name} case", alt)


def draw_overlay(axis: Axes, crop: Crop, classes: int) -> None:
    """The slice, its contours (truth solid, prediction dashed) and a bar of some millimetres."""
    draw_slice(axis, crop)
    height, width = crop.truth.shape
    for labels, colour, style in ((crop.truth, TRUTH, "solid"), (crop.prediction, PREDICTION, "dashed")):
        for index in range(1, classes + 1):
            mask = np.pad(inside(labels, index - 1, regions=crop.regions), 1).astype(float)
            if not mask.any():
                continue
            shade = colour if classes == 1 else BY_CLASS[(index - 1) % len(BY_CLASS)]
            y, x = np.arange(-1, height + 1), np.arange(-1, width + 1)
            axis.contour(
                x, y, ndimage.gaussian_filter(mask, 0.5), [0.5], colors=shade, linestyles=style, linewidths=1.6
            )
    frame_slice(axis, crop)


def draw_slice(axis: Axes, crop: Crop) -> None:
    """The grey image; a dark plane without one."""
    grey = crop.image if crop.image is not None else np.full(crop.truth.shape, 40, np.uint8)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, aspect=crop.spacing[0] / crop.spacing[1], interpolation="bicubic")


def frame_slice(axis: Axes, crop: Crop) -> None:
    """Without ticks, with a bar of some millimetres."""
    height, width = crop.truth.shape
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], frame_on=False)
    bar = max(b for b in (1, 5, 10, 20, 50, 100) if b <= max(1.0, 0.4 * width * crop.spacing[1]))
    end = width * 0.05 + bar / crop.spacing[1]
    axis.plot([width * 0.05, end], [height * 0.94] * 2, color="white", linewidth=3, solid_capstyle="butt")
    axis.text(width * 0.05, height * 0.92, f"{bar} mm", color="white", fontsize=8, va="bottom")


def keys(class_names: Sequence[str]) -> list[Any]:
    """What the legend says."""
    from matplotlib.lines import Line2D

    if len(class_names) == 1:
        return [
            Line2D([], [], color=TRUTH, label="truth"),
            Line2D([], [], color=PREDICTION, ls="--", label="prediction"),
        ]
    named = [
        Line2D([], [], color=BY_CLASS[i % len(BY_CLASS)], linewidth=3, label=short(name))
        for i, name in enumerate(class_names)
    ]
    return [
        *named,
        Line2D([], [], color=MUTED, label="truth"),
        Line2D([], [], color=MUTED, ls="--", label="prediction"),
    ]
