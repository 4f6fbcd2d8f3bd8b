"""The house's style: figures without pyplot, so that nothing stays open, saved as SVG in two colour schemes.

Colours are Okabe & Ito's, maps are viridis: both are told apart also by the colour-blind.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from models.evaluation import Curve, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; `svg` turns them into CSS variables with a light and a dark value.
INK, MUTED, GRID, PANEL = "#010101", "#020202", "#030303", "#040404"
SERIES: Final = ("#050505", "#060606", "#070707", "#080808", "#090909")
SCHEME: Final[dict[str, tuple[str, str, str]]] = {
    INK: ("ink", "#1d2126", "#e6e8ea"),
    MUTED: ("muted", "#5b636c", "#a3abb3"),
    GRID: ("grid", "#dfe3e7", "#3a4047"),
    PANEL: ("panel", "#ffffff", "#1b1f23"),
    SERIES[0]: ("blue", "#0072b2", "#56b4e9"),
    SERIES[1]: ("vermillion", "#d55e00", "#e58a3c"),
    SERIES[2]: ("green", "#009e73", "#00b487"),
    SERIES[3]: ("purple", "#b8628f", "#cc79a7"),
    SERIES[4]: ("orange", "#b87f00", "#e69f00"),
}
DASHES: Final = ("-", "--", "-.", ":")
# Contours lie on grey images in either scheme, so they keep their bright colours.
TRUTH, PREDICTION = "#56b4e9", "#e69f00"
BY_CLASS: Final = ("#56b4e9", "#e69f00", "#00c896", "#f0e442", "#cc79a7", "#ff7f3f")
HEAT: Final = "viridis"


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` × `height` inches in the house's style."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=PANEL, layout="constrained")


def svg(figure: Figure, name: str, title: str, alt: str) -> Picture:
    """Draw, and give the stand-in colours their light and dark values."""
    from matplotlib import rc_context

    for axis in figure.axes:
        axis.set_facecolor(PANEL)
        axis.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(MUTED)
    out = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}):
        # Tight: images of other proportions than their frame move their titles out of it.
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}
        figure.savefig(out, format="svg", facecolor=PANEL, dpi=150, metadata={"Date": None, "Creator": None}, **options)
    return Picture(name=name, title=title, alt=alt, data=_themed(out.getvalue().decode()).encode())


def _themed(svg: str) -> str:
    light = ";".join(f"--{n}:{day}" for n, day, _ in SCHEME.values())
    dark = ";".join(f"--{n}:{night}" for n, _, night in SCHEME.values())
    for stand_in, (variable, day, _) in SCHEME.items():
        svg = svg.replace(stand_in, f"var(--{variable},{day})")
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    _, opening, rest = svg.partition("<svg")
    tag, close, body = rest.partition(">")
    return opening + tag + close + style + body.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")


def new_square() -> tuple[Figure, Axes]:
    """A figure of one square panel."""
    figure = new_figure(4.8, 4.6)
    return figure, figure.subplots()


def lines(axis: Axes, curves: Sequence[Curve], notes: Mapping[str, str], marker: str | None = None) -> None:
    """One a class, told apart by colour and then by dashes; `notes` go into the legend."""
    for index, curve in enumerate(curves):
        note = notes.get(curve.class_name)
        axis.plot(
            curve.x,
            curve.y,
            color=SERIES[index % len(SERIES)],
            linestyle=DASHES[index // len(SERIES) % len(DASHES)],
            linewidth=2,
            marker=marker,
            markersize=4.5,
            label=short(curve.class_name) + (f", {note}" if note else ""),
        )
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def label(axis: Axes, x: str, y: str, *, grid: bool = True) -> None:
    """What the axes are, and a faint grid."""
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    if grid:
        axis.grid(color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)


def legend(axis: Axes, place: Literal["lower right", "lower left", "upper left"]) -> None:
    """On the panel, so that lines do not cross it."""
    axis.legend(loc=place, frameon=True, facecolor=PANEL, edgecolor=GRID, labelcolor=INK, fontsize=9)


def spoken(what: str, area: str, values: Mapping[str, float]) -> str:
    """A curve in words."""
    return f"{what}; {area}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def short(name: str, length: int = 22) -> str:
    """A name that fits, as plain text."""
    # A dollar sign would start mathtext.
    name = name.replace("$", r"\$")
    return name if len(name) <= length else name[: length - 1] + "…"
