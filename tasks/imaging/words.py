"""What the value of a table says of an image: the class that it means, or the words of several (`effusion|nodule`)."""

from __future__ import annotations

from collections.abc import Sequence

from models.recipe import LabelClass
from models.volume import Segment
from tasks.imaging.masks import belongs


def words(value: str | None) -> list[Segment]:
    """Each word, as the name of a structure."""
    return [Segment(0, word.strip()) for word in (value or "").split("|") if word.strip()]


def says(value: str | None, wanted: LabelClass) -> bool:
    """Whether one of the words means the class. What is not said is not there."""
    return any(belongs(word, wanted) for word in words(value))


def class_of(segment: Segment, classes: Sequence[LabelClass]) -> int | None:
    """The first class that means a segment or value."""
    return next((index for index, wanted in enumerate(classes) if belongs(segment, wanted)), None)
