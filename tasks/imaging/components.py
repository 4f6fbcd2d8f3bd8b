"""Connected components of label maps and region maps (z, y, x)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_FULL = np.ones((3, 3, 3), bool)


def components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Numbered components of (z, y, x), 26-connected, from 1; and their sizes in voxels, in that order."""
    numbered, count = ndimage.label(mask, structure=_FULL, output=np.int32)
    return numbered, np.bincount(numbered.ravel(), minlength=count + 1)[1:]


def keep_largest(labels: NDArray[np.uint8], classes: Iterable[int]) -> NDArray[np.uint8]:
    """A copy in which each of `classes` keeps its largest component alone; the rest becomes background.

    Of equally large components the first in array order stays.
    """
    kept = labels.copy()
    boxes = ndimage.find_objects(labels)
    for value in set(classes):
        if value < 1 or value > len(boxes) or boxes[value - 1] is None:
            continue
        part = boxes[value - 1]
        kept[part][_smaller(labels[part] == value)] = 0
    return kept


def keep_largest_regions(regions: NDArray[np.uint8], bits: Iterable[int]) -> NDArray[np.uint8]:
    """As `keep_largest`, for a map whose bit i is region i: each of `bits` keeps its largest component."""
    kept = regions.copy()
    for bit in set(bits):
        value = np.uint8(1 << bit)
        mask = (regions & value) > 0
        for part in ndimage.find_objects(mask.view(np.uint8)):
            kept[part][_smaller(mask[part])] &= ~value
    return kept


def _smaller(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All components but the largest."""
    numbered, sizes = components(mask)
    if len(sizes) < 2:
        return np.zeros_like(mask)
    return mask & (numbered != int(sizes.argmax()) + 1)
