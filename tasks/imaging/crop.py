"""Boxes of voxels: where the image is not empty, and how to cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along z, y and x."""


def whole_box(shape: Sequence[int]) -> Box:
    """The box of a whole (z, y, x) grid."""
    z, y, x = shape
    return (0, int(z)), (0, int(y)), (0, int(x))


def nonzero_box(array: NDArray[Any], *, margin: int = 0) -> Box:
    """The smallest box round all voxels ≠ 0 of any channel of ([c,] z, y, x); the whole grid if there are none."""
    shape = array.shape[-3:]
    first, *others = array[None] if array.ndim == 3 else array
    slices, plane = np.zeros(shape[0], bool), np.zeros(shape[1:], bool)
    for z in range(shape[0]):
        filled = first[z] != 0
        for other in others:
            filled |= other[z] != 0
        slices[z] = filled.any()
        plane |= filled
    ranges = []
    for axis, line in enumerate((slices, plane.any(axis=1), plane.any(axis=0))):
        used = np.flatnonzero(line)
        if not len(used):
            return whole_box(shape)
        ranges.append((max(0, int(used[0]) - margin), min(shape[axis], int(used[-1]) + 1 + margin)))
    return ranges[0], ranges[1], ranges[2]


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """For indexing (z, y, x)."""
    z, y, x = (slice(low, high) for low, high in box)
    return z, y, x


def box_shape(box: Box) -> tuple[int, int, int]:
    """(z, y, x) voxels."""
    z, y, x = (high - low for low, high in box)
    return z, y, x


def crop_to(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """A view of ([c,] z, y, x) inside `box`."""
    return array[(..., *box_slices(box))]
