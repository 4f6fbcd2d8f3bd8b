"""Resampling between grids, by one small matrix per axis.

Spline interpolation is linear in the voxels, so along one axis it is a matrix: scipy's own answer to unit impulses,
computed once per (size, positions, order). Its entries fall by 0.27 a voxel, so only a band is multiplied. Arrays are
(z, y, x); voxels beyond the border repeat the border (scipy's `nearest`). All functions are re-entrant, and fastest
with one BLAS thread per caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.geometry import Geometry

Order = Literal[0, 1, 3]
Float32 = NDArray[np.float32]
Change = Callable[[Float32], object]

_NEGLIGIBLE = 1e-7
_BLOCK = 48
_SLAB_BYTES = 4 << 20
_PLANES_BYTES = 1 << 20  # smaller, for they are changed several times before they are multiplied
_ALIGNED = 1e-3  # voxels by which a grid may deviate from an axis and still count as aligned with it
_BORDER = 1e-3  # voxels beyond the outermost voxel's border that still count as inside


def resample(
    array: NDArray[Any],
    shape: Sequence[int],
    *,
    order: Order = 3,
    anisotropic: bool = False,
    antialias: bool = False,
    out: Float32 | None = None,
    change: Change | None = None,
) -> Float32:
    """`array` (z, y, x) on a grid of `shape` over the same extent (`Geometry.resized`), float32.

    `anisotropic` takes z by nearest neighbour after the in-plane interpolation, as nnU-Net does. `antialias` smooths
    along shrinking axes first (Gaussian, σ = (factor − 1)/2): for pictures brought to a fixed size. `change` alters
    each part of the image in place before it is interpolated, voxel by voxel (`normalise.voxel_by_voxel`).
    """
    orders: list[Order] = [0 if anisotropic else order, order, order]
    axes = [
        None if n == m else _axis(n, m, (n / m - 1) / 2, n / m, o, antialias and m < n)
        for n, m, o in zip(array.shape, shape, orders, strict=True)
    ]
    return _apply(array, axes, out, change)


def resample_labels(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """The nearest label (z, y, x) on a grid of `shape` over the same extent; the dtype stays."""
    return _take(labels, [(n, m, (n / m - 1) / 2, n / m) for n, m in zip(labels.shape, shape, strict=True)])


def resample_to_grid(
    array: NDArray[Any], source: Geometry, target: Geometry, *, order: Order, fill: float = 0
) -> NDArray[Any]:
    """`array` on `source`'s grid (z, y, x), as seen on `target`'s grid; `fill` where `source` does not reach.

    Any affine relation is allowed; grids whose axes are parallel (flipped or exchanged too) go the fast way. Order 0
    keeps the dtype, 1 and 3 give float32. Whether both lie in one frame of reference is the caller's to know.
    """
    relation = np.linalg.inv(source.matrix) @ target.matrix
    permutation = _parallel(relation[:3, :3], target.shape)
    if permutation is None:
        return _oblique(array, relation, target.shape, order, fill)
    # Source axis k runs along target axis permutation[k].
    moved = array.transpose(np.argsort(permutation))
    lines = [
        (moved.shape[j], target.shape[j], float(relation[k, 3]), float(relation[k, j]))
        for j, k in enumerate(np.argsort(permutation))
    ]
    inside = tuple(_reach(*line) for line in lines)
    if order == 0:
        result = _take(moved, lines)
    else:
        result = _apply(moved, [None if _same(*line) else _axis(*_rounded(*line), order, False) for line in lines])
    _fill_outside(result, inside, fill)
    return result


# -- one axis ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AxisOperator:
    """A banded matrix (m, n) as dense blocks: rows [r0, r1) need columns [c0, c1) alone.

    `taken`: the one column of each row, where nothing is mixed (order 0).
    """

    size_in: int
    size_out: int
    blocks: tuple[tuple[int, int, int, int, Float32], ...]
    taken: NDArray[np.intp] | None = None

    def rows(self, start: int, stop: int) -> tuple[int, int, Float32]:
        """Columns [c0, c1) that rows [start, stop) need, and their weights (rows, columns)."""
        wanted = [b for b in self.blocks if b[0] < stop and b[1] > start]
        low, high = min(b[2] for b in wanted), max(b[3] for b in wanted)
        weights = np.zeros((stop - start, high - low), np.float32)
        for r0, r1, c0, c1, block in wanted:
            first, last = max(r0, start), min(r1, stop)
            weights[first - start : last - start, c0 - low : c1 - low] = block[first - r0 : last - r0]
        return low, high, weights


def axis_operator(size_in: int, size_out: int, start: float, step: float, order: Order) -> AxisOperator:
    """The operator whose row i interpolates at position start + i·step of an axis of `size_in` voxels."""
    return _axis(*_rounded(size_in, size_out, start, step), order, False)


@lru_cache(maxsize=256)
def _axis(size_in: int, size_out: int, start: float, step: float, order: Order, antialias: bool) -> AxisOperator:
    positions = np.clip(start + step * np.arange(size_out), -0.5, size_in - 0.5)
    matrix = _spline_matrix(size_in, positions, order)
    if antialias and abs(step) > 1:
        matrix = matrix @ ndimage.gaussian_filter1d(np.eye(size_in), (abs(step) - 1) / 2, axis=0, mode="nearest")
    blocks = []
    for r0 in range(0, size_out, _BLOCK):
        rows = matrix[r0 : r0 + _BLOCK]
        used = np.flatnonzero(np.abs(rows).max(axis=0) > _NEGLIGIBLE)
        c0, c1 = int(used[0]), int(used[-1]) + 1
        blocks.append((r0, r0 + len(rows), c0, c1, np.ascontiguousarray(rows[:, c0:c1], dtype=np.float32)))
    return AxisOperator(
        size_in, size_out, tuple(blocks), matrix.argmax(axis=1) if order == 0 and not antialias else None
    )


def _spline_matrix(size_in: int, positions: NDArray[np.float64], order: Order) -> NDArray[np.float64]:
    """(m, n): scipy's interpolation of each unit impulse, at `positions`."""
    if size_in == 1:
        return np.ones((len(positions), 1))
    matrix = np.empty((len(positions), size_in))
    impulse = np.zeros(size_in)
    for column in range(size_in):
        impulse[column] = 1.0
        matrix[:, column] = ndimage.map_coordinates(impulse, positions[None], order=order, mode="nearest")
        impulse[column] = 0.0
    return matrix


def _nearest(size_in: int, size_out: int, start: float, step: float) -> NDArray[np.intp]:
    positions = start + step * np.arange(size_out)
    # A tie goes up, whatever noise the affine's inverse left in the last digits.
    return np.clip(np.floor(positions + 0.5 + 1e-9), 0, size_in - 1).astype(np.intp)


def _take(array: NDArray[Any], lines: Sequence[tuple[int, int, float, float]]) -> NDArray[Any]:
    """A new array of the nearest voxels along each axis (size in and out, start, step)."""
    taken = array
    for axis in sorted(range(len(lines)), key=lambda a: lines[a][1] / lines[a][0]):  # what shrinks most goes first
        index = _nearest(*lines[axis])
        if not np.array_equal(index, np.arange(lines[axis][0])):
            taken = np.take(taken, index, axis=axis)
    return array.copy() if taken is array else np.ascontiguousarray(taken)


def _same(size_in: int, size_out: int, start: float, step: float) -> bool:
    return size_in == size_out and abs(start) < _ALIGNED and abs(start + (step - 1) * (size_in - 1)) < _ALIGNED


def _rounded(size_in: int, size_out: int, start: float, step: float) -> tuple[int, int, float, float]:
    """Without the last digits of floating point, so that equal relations share one cached matrix."""
    return size_in, size_out, round(start, 9), round(step, 12)


# -- three axes -------------------------------------------------------------------------------------------------


def _apply(
    array: NDArray[Any],
    axes: Sequence[AxisOperator | None],
    out: Float32 | None = None,
    change: Change | None = None,
) -> Float32:
    """Interpolate along each axis that has an operator; z goes where it leaves the least work."""
    z, y, x = axes
    shape = tuple(n if axis is None else axis.size_out for n, axis in zip(array.shape, axes, strict=True))
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ValueError(f"out must be float32 of {shape}")
    if z is None:
        _in_plane(array, y, x, out, change)
    elif y is None and x is None:
        _along_z(array, z, out, change)
    elif shape[1] * shape[2] <= array.shape[1] * array.shape[2]:
        middle = np.empty((array.shape[0], *shape[1:]), np.float32)
        _in_plane(array, y, x, middle, change)
        _along_z(middle, z, out)
    else:
        middle = np.empty((shape[0], *array.shape[1:]), np.float32)
        _along_z(array, z, middle, change)
        _in_plane(middle, y, x, out)
    return out


def _in_plane(
    array: NDArray[Any], y: AxisOperator | None, x: AxisOperator | None, out: Float32, change: Change | None = None
) -> None:
    """A few slices at a time, so that what is between x and y stays in the cache."""
    step = max(1, _PLANES_BYTES // max(1, 4 * array.shape[1] * array.shape[2]))
    for low in range(0, len(array), step):
        part = _changed(array[low : low + step], change)
        goal = out[low : low + step]
        if x is not None:
            wide = goal if y is None else np.empty((*part.shape[:2], x.size_out), np.float32)
            for r0, r1, c0, c1, weights in x.blocks:
                np.matmul(part[..., c0:c1], weights.T, out=wide[..., r0:r1])
            part = wide
        if y is not None:
            for r0, r1, c0, c1, weights in y.blocks:
                np.matmul(weights, part[:, c0:c1], out=goal[:, r0:r1])
        elif x is None:
            goal[...] = part


def _along_z(array: NDArray[Any], z: AxisOperator, out: Float32, change: Change | None = None) -> None:
    """All columns of a few rows at once: every product reads and writes whole lines."""
    rows_per_slab = max(1, _SLAB_BYTES // max(1, 4 * len(array) * array.shape[2]))
    for low in range(0, array.shape[1], rows_per_slab):
        part = _changed(array[:, low : low + rows_per_slab], change).reshape(len(array), -1)
        goal = out[:, low : low + rows_per_slab]
        if z.taken is not None:
            for row, source in zip(goal, z.taken, strict=True):
                row[...] = part[source].reshape(row.shape)
            continue
        for r0, r1, c0, c1, weights in z.blocks:
            goal[r0:r1] = (weights @ part[c0:c1]).reshape(r1 - r0, *goal.shape[1:])


def _changed(part: NDArray[Any], change: Change | None) -> Float32:
    """The caller's own voxels are never changed."""
    if change is None:
        return np.ascontiguousarray(part, dtype=np.float32)
    copy = np.array(part, dtype=np.float32, order="C")
    change(copy)
    return copy


# -- any relation -----------------------------------------------------------------------------------------------


def _parallel(matrix: NDArray[np.float64], shape: Sequence[int]) -> tuple[int, int, int] | None:
    """For each source axis the target axis that it runs along, or None where the grids are oblique."""
    drift = np.abs(matrix) * (np.asarray(shape) - 1)
    along = np.abs(matrix).argmax(axis=1)
    if sorted(along) != [0, 1, 2]:
        return None
    drift[np.arange(3), along] = 0
    return None if drift.max() > _ALIGNED else (int(along[0]), int(along[1]), int(along[2]))


def _reach(size_in: int, size_out: int, start: float, step: float) -> tuple[int, int]:
    """Output indices [low, high) that lie within the source's outer borders."""
    positions = start + step * np.arange(size_out)
    inside = np.flatnonzero((positions >= -0.5 - _BORDER) & (positions <= size_in - 0.5 + _BORDER))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def _fill_outside(array: NDArray[Any], inside: Sequence[tuple[int, int]], fill: float) -> None:
    if any(low == high for low, high in inside):
        array[...] = fill
        return
    for axis, (low, high) in enumerate(inside):
        before: tuple[slice, ...] = (slice(None),) * axis
        array[(*before, slice(0, low))] = fill
        array[(*before, slice(high, None))] = fill


def _oblique(
    array: NDArray[Any], relation: NDArray[np.float64], shape: tuple[int, int, int], order: Order, fill: float
) -> NDArray[Any]:
    data = array if order == 0 else array.astype(np.float32, copy=False)
    result = ndimage.affine_transform(
        data, relation[:3, :3], relation[:3, 3], output_shape=shape, order=order, mode="nearest"
    )
    y, x = np.arange(shape[1])[:, None], np.arange(shape[2])[None]
    for z in range(shape[0]):
        outside = np.zeros(shape[1:], bool)
        for axis, (a, b, c, offset) in enumerate(relation[:3]):
            position = a * z + offset + b * y + c * x
            outside |= (position < -0.5 - _BORDER) | (position > array.shape[axis] - 0.5 + _BORDER)
        result[z][outside] = fill
    return result
