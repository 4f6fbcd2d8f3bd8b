"""Polygons to voxels, by the voxel-centre rule.

A voxel is inside where its centre is, by even-odd parity over all polygons of a plane: an inner ring is a hole, and
the bridge of a keyhole contour, walked there and back, cancels out. A centre on the border counts at the lower and
left one and not at the upper and right one, so that neighbours share no voxel and leave none out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_CROSSINGS = 1 << 20  # that are looked at at once: a polygon may have 100,000 edges, each across all rows
_NOISE = 6  # decimals of a voxel that survive the way through an affine and back


def fill(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(y, x) mask of closed polygons, each (n, 2) fractional indices (y, x); what leaves `shape` is cut off."""
    rows, columns = shape
    counts = np.zeros(rows * (columns + 1), dtype=np.intp)
    for polygon in _distinct(polygons):
        for row, crossing in _crossings(polygon, rows):
            column = np.clip(np.ceil(crossing), 0, columns).astype(np.intp)
            counts += np.bincount(row * (columns + 1) + column, minlength=counts.size)
    parity = np.cumsum(counts.reshape(rows, columns + 1)[:, :columns], axis=1) & 1
    return parity.astype(bool)


def _distinct(polygons: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Without those that were stored twice, which parity would erase."""
    rounded = [np.round(np.asarray(polygon, dtype=float), _NOISE) for polygon in polygons]
    return list({polygon.tobytes(): polygon for polygon in rounded}.values())


def _crossings(polygon: NDArray[np.float64], rows: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Each crossing of an edge with a row of voxel centres: the row and the fractional column, some edges at a time."""
    following, step = np.roll(polygon, -1, axis=0), max(1, _CROSSINGS // rows)
    for at in range(0, len(polygon), step):
        yield _crossed(polygon[at : at + step], following[at : at + step], rows)


def _crossed(
    begin: NDArray[np.float64], end: NDArray[np.float64], rows: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    (y0, x0), (y1, x1) = begin.T, end.T
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.intp)
    stop = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.intp)
    many = stop - first
    edge = np.repeat(np.arange(len(begin)), many)
    row = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + first[edge]
    slope = (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    return row, np.round(x0[edge] + (row - y0[edge]) * slope, _NOISE)
