"""From structures that may overlap to one map of numbers, and back to where each class is.

A label map holds one class a voxel: 0 background, i + 1 the i-th class. A region map holds several: bit i is set where
the i-th class is. Both are (z, y, x) uint8, and both survive any nearest-neighbour transform.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import LabelError
from models.recipe import LabelClass
from models.recipe.labels import MOST_REGIONS
from models.volume import Mask, Segment, inside
from tasks.imaging import crop
from tasks.imaging.crop import crop_to, nonzero_box

MOST_CLASSES = 255

Box = tuple[slice, slice, slice]
Map = NDArray[np.uint8]


def label_map(mask: Mask, classes: Sequence[LabelClass], fraction: float) -> Map:
    """(z, y, x) uint8: 0 background, i + 1 where a segment of `classes[i]` fills at least `fraction` of the voxel.

    Later classes lie over earlier ones. Raises LabelError where no segment is of any class.
    """
    if len(classes) > MOST_CLASSES:
        raise LabelError(f"a label map holds {MOST_CLASSES} classes, not {len(classes)}")
    labels = np.zeros(mask.geometry.shape, np.uint8)
    for index, there in _found(mask, classes, fraction):
        labels[there] = index + 1
    return labels


def region_map(mask: Mask, classes: Sequence[LabelClass], fraction: float) -> Map:
    """(z, y, x) uint8: bit i is set where any segment of `classes[i]` fills at least `fraction` of the voxel.

    Classes may overlap, and one segment may belong to several of them. Raises LabelError as `label_map` does.
    """
    if len(classes) > MOST_REGIONS:
        raise LabelError(f"a region map holds {MOST_REGIONS} regions, not {len(classes)}")
    regions = np.zeros(mask.geometry.shape, np.uint8)
    for index, there in _found(mask, classes, fraction):
        regions[there] |= np.uint8(1 << index)
    return regions


def map_of(mask: Mask, classes: Sequence[LabelClass], fraction: float, *, regions: bool) -> Map:
    """A region map, or a label map."""
    return (region_map if regions else label_map)(mask, classes, fraction)


def boxes(labels: Map, classes: int, *, regions: bool) -> list[Box | None]:
    """Each class's bounding box, None where it is nowhere."""
    # Looking for anything at all is much quicker than looking for each class, and most of an image is background.
    filled = nonzero_box(labels)
    part = crop_to(labels, filled)
    if regions:
        alone = (inside(part, index, regions=True).view(np.uint8) for index in range(classes))
        found = [ndimage.find_objects(there, max_label=1)[0] for there in alone]
    else:
        found = ndimage.find_objects(part, max_label=classes)
    return [None if box is None else _moved(box, filled) for box in found]


def _moved(box: Box, by: crop.Box) -> Box:
    z, y, x = (slice(low + s.start, low + s.stop) for s, (low, _) in zip(box, by, strict=True))
    return z, y, x


def sizes(labels: Map, classes: int, *, regions: bool) -> list[int]:
    """Each class's voxels."""
    counts = np.bincount(labels.ravel(), minlength=MOST_CLASSES + 1)
    if not regions:
        return [int(n) for n in counts[1 : classes + 1]]
    values = np.arange(len(counts))
    return [int(counts[(values >> index & 1) > 0].sum()) for index in range(classes)]


def _found(mask: Mask, classes: Sequence[LabelClass], fraction: float) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(class, where it is) of each segment of each class, in the classes' order. Raises LabelError without any."""
    threshold = max(1, int(np.ceil(fraction * 255 - 1e-9)))
    found = False
    for index, wanted in enumerate(classes):
        for occupancy, segment in zip(mask.occupancy, mask.segments, strict=True):
            if belongs(segment, wanted):
                found = True
                yield index, occupancy >= threshold
    if not found:
        there = ", ".join(sorted({s.name for s in mask.segments})) or "none"
        raise LabelError(
            f"none of its structures ({there}) is one of the classes {', '.join(c.name for c in classes)}",
            hint="add the structures' names to the classes' `match` in the recipe",
            reason="no-such-structure",
        )


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
