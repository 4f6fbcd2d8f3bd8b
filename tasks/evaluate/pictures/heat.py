"""Maps over an image: where a model is unsure, and what it looked at. Each has a scale, from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from models.evaluation import Picture
from tasks.evaluate.pictures.contours import draw_overlay, draw_slice, frame_slice, keys
from tasks.evaluate.pictures.crops import Crop
from tasks.evaluate.pictures.style import HEAT, INK, MUTED, new_figure, short, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAINTEST: Final = 0.15
"""Below it a map is clear, so that the image stays to be seen."""
_DENSEST: Final = 0.8


def uncertainty(crop: Crop, patient: str, class_names: Sequence[str], doubt: float, voices: int) -> Picture:
    """One slice of the most uncertain case, of which `crop.maps` are the entropy and, with several voices, their
    disagreement; `doubt` is the case's own (0 to 1).
    """
    titles = ["Entropy", "Disagreement"][: len(crop.maps)]
    figure = new_figure(3.4 * (1 + len(titles)) + 0.6, 4.3)
    axes = np.atleast_1d(figure.subplots(1, 1 + len(titles)))
    draw_overlay(axes[0], crop, len(class_names))
    axes[0].set_title("Truth and prediction", color=INK, fontsize=11)
    axes[0].set_xlabel(f"{short(patient, 24)}, slice {crop.index + 1}", color=MUTED)
    for axis, title, values in zip(axes[1:], titles, crop.maps, strict=True):
        _heat(axis, crop, values)
        axis.set_title(title, color=INK, fontsize=11)
    _scale(figure, list(axes), "uncertainty (0 sure, 1 unsure)")
    figure.legend(handles=keys(class_names), loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    asked = f"{voices} voices" if voices > 1 else "one voice"
    told = f"uncertainty {doubt:.2f} of 1; entropy up to {crop.maps[0].max():.2f} in this slice, of {asked}"
    return svg(figure, "uncertainty", "Where the model is unsure: the most uncertain case", f"Uncertainty map: {told}")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is told of one case that is explained: `rank` right, wrong or unsure, and its `number` among those.

    `called` and `truth` name classes; `methods` name `crop.maps`; `note` says whether to trust the maps.
    """

    rank: str
    number: int
    patient: str
    truth: str
    called: str
    probability: float
    crop: Crop
    methods: tuple[str, ...]
    note: str


def saliency(case: Explanation) -> Picture:
    """The image, and beside it what spoke for the class that was called, by each method."""
    figure = new_figure(2.9 * (1 + len(case.methods)) + 0.6, 4.2)
    axes = np.atleast_1d(figure.subplots(1, 1 + len(case.methods)))
    draw_slice(axes[0], case.crop)
    frame_slice(axes[0], case.crop)
    axes[0].set_title("Image", color=INK, fontsize=11)
    axes[0].set_xlabel(f"{short(case.patient, 24)}, slice {case.crop.index + 1}", color=MUTED)
    for axis, method, values in zip(axes[1:], case.methods, case.crop.maps, strict=True):
        _heat(axis, case.crop, values)
        axis.set_title(method, color=INK, fontsize=11)
    told = f"called {case.called} ({case.probability:.0%}), truth {case.truth}"
    figure.suptitle(short(f"{case.rank.capitalize()}: {told}", 90), color=INK, fontsize=11, fontweight="bold")
    _scale(figure, list(axes), f"speaks for {short(case.called)} (0 not, 1 most)")
    figure.supxlabel(_wrapped(case.note, 30 * len(axes)), color=MUTED, fontsize=9)
    name = f"saliency-{case.rank}-{case.number}"
    alt = f"{', '.join(case.methods)} on slice {case.crop.index + 1} of a case {told}. {case.note}"
    return svg(figure, name, f"What the model looked at: {case.rank} {case.number}", alt)


def _heat(axis: Axes, crop: Crop, values: NDArray[np.floating[Any]]) -> None:
    draw_slice(axis, crop)
    told = np.clip(np.nan_to_num(values), 0, 1)
    veil = np.where(told < _FAINTEST, 0, _DENSEST * np.clip(0.4 + told, 0, 1))
    aspect = crop.spacing[0] / crop.spacing[1]
    axis.imshow(told, cmap=HEAT, vmin=0, vmax=1, alpha=veil, aspect=aspect, interpolation="nearest")
    frame_slice(axis, crop)


def _scale(figure: Figure, axes: list[Axes], told: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(told, color=INK)
    bar.set_ticks([0, 0.5, 1])
    bar.outline.set_edgecolor(MUTED)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width))
