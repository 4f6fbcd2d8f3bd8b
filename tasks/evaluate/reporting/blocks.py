"""What a section of the page is made of. Each kind of block is one macro of the template, by its `kind`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from models.evaluation import Picture
from models.report import Decision
from tasks.evaluate.reporting.tables import Bar, Table


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a part of a section."""

    kind: ClassVar = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph; a `remark` is set back."""

    kind: ClassVar = "prose"
    text: str
    remark: bool = False


@dataclass(frozen=True, slots=True)
class Notes:
    """A list."""

    kind: ClassVar = "notes"
    lines: tuple[str, ...]


Width = Literal["wide", "half", "third"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture with what is said below its title."""

    picture: Picture
    caption: str = ""
    width: Width = "wide"


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures in rows."""

    kind: ClassVar = "gallery"
    pictures: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table over the whole width; several, and pictures, side by side."""

    kind: ClassVar = "sheet"
    tables: tuple[Table, ...]
    pictures: tuple[Shown, ...] = ()


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure of the first row."""

    label: str
    value: str
    unit: str
    interval: str
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Headlines:
    """The figures that a reader asks for first."""

    kind: ClassVar = "headlines"
    figures: tuple[Headline, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, at a glance."""

    kind: ClassVar = "verdict"
    decision: Decision

    @property
    def headline(self) -> str:
        """In words."""
        return {
            "promoted": "Promoted: this version serves",
            "kept": "Kept: it does not serve",
            "waiting": "Waiting for approval",
            "refused": "Refused",
        }[self.decision.verdict]


@dataclass(frozen=True, slots=True)
class Place:
    """Where pictures whose names begin with `prefix` stand, how wide, and what is said of each."""

    prefix: str
    part: str
    caption: str
    width: Width = "half"


Block = Heading | Prose | Notes | Sheet | Headlines | Verdict | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, by its stable id."""

    id: str
    title: str
    blocks: tuple[Block, ...]


PLACES: Final = (
    Place("distributions", "Cases", "A point is a case; the box holds the middle half.", width="wide"),
    Place(
        "bland-altman",
        "Agreement of volumes",
        "Difference of prediction and truth over their mean: the middle line is the bias, the outer ones hold 95 % of "
        "the cases (Bland and Altman 1986).",
    ),
    Place("roc", "Curves", "What each threshold would give; the dotted diagonal is chance."),
    Place("precision-recall", "Curves", "Where few images are positive this says more than the ROC curve."),
    Place("froc", "Curves", "Lesions found over what a reader has to put up with."),
    Place("calibration", "Curves", "On the diagonal, of images given 70 % seven in ten are positive."),
    Place("confusion", "Curves", "Counts of test cases, and their share of the true class."),
    Place("overlays", "Truth and prediction", "Contours on the slice that shows most of them.", width="third"),
    Place(
        "saliency",
        "What the network looked at",
        "Yellow raises the class's score most. A map says where evidence was sought, not that it was understood.",
        width="wide",
    ),
    Place(
        "uncertainty",
        "Where the network is unsure",
        "Bright voxels are those on which repeated predictions differ, or that lie between two classes.",
        width="wide",
    ),
)
"""In the order of the page. Pictures of other names come after them."""


def place_of(picture: Picture) -> Place | None:
    """The place of a picture, by the longest prefix of its name."""
    fitting = [place for place in PLACES if picture.name.startswith(place.prefix)]
    return max(fitting, key=lambda place: len(place.prefix)) if fitting else None
