"""From structures that may overlap to one label map."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from models.errors import LabelError
from models.recipe import LabelClass
from models.volume import Mask, Segment

MOST_CLASSES = 255


def label_map(mask: Mask, classes: tuple[LabelClass, ...], fraction: float) -> NDArray[np.uint8]:
    """(z, y, x) uint8: 0 background, i + 1 where a segment of `classes[i]` fills at least `fraction` of the voxel.

    Later classes lie over earlier ones. Raises LabelError where no segment is of any class.
    """
    if len(classes) > MOST_CLASSES:
        raise LabelError(f"a label map holds {MOST_CLASSES} classes, not {len(classes)}")
    threshold = max(1, int(np.ceil(fraction * 255 - 1e-9)))
    labels = np.zeros(mask.geometry.shape, np.uint8)
    found = False
    for value, wanted in enumerate(classes, start=1):
        for occupancy, segment in zip(mask.occupancy, mask.segments, strict=True):
            if belongs(segment, wanted):
                found = True
                labels[occupancy >= threshold] = value
    if not found:
        there = ", ".join(sorted({s.name for s in mask.segments})) or "none"
        raise LabelError(
            f"none of its structures ({there}) is one of the classes {', '.join(c.name for c in classes)}",
            hint="add the structures' names to the classes' `match` in the recipe",
            reason="no-such-structure",
        )
    return labels


def belongs(segment: Segment, wanted: LabelClass) -> bool:
    """Whether the segment's name or code fits one of the class's patterns, whatever the case."""
    told = [segment.name.casefold(), *([segment.code.casefold()] if segment.code else [])]
    return any(fnmatchcase(name, pattern.casefold()) for name in told for pattern in wanted.patterns)


def classes_from_segments(masks: Iterable[Iterable[Segment]]) -> tuple[LabelClass, ...]:
    """Each structure's name its own class: by the smallest number that any mask gives it, then by name."""
    number: dict[str, int] = {}
    for segments in masks:
        for segment in segments:
            name = segment.name
            number[name] = min(segment.number, number.get(name, segment.number))
    return tuple(LabelClass.itself(name) for name in sorted(number, key=lambda n: (number[n], n)))
