"""Labels of interpolated probabilities, computed in full only where two classes meet.

Linear interpolation is a mean of the voxels around a point, with weights that are not negative. Where one class is the
likeliest of all of them it is the likeliest in between, and its probability there is that of the likeliest class,
interpolated. So one channel is interpolated everywhere, and all of them only in cells (the boxes between neighbouring
voxels) whose corners disagree: the surfaces of things. Arrays are (z, y, x).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.geometry import Geometry

Float32 = NDArray[np.float32]
_ALIGNED = 1e-3  # voxels
_BORDER = 1e-3
_AT_ONCE = 1 << 16  # voxels; what belongs to them stays in the cache


@dataclass(frozen=True, slots=True)
class Line:
    """Along one axis, each point lies between voxels `low` and `low + 1`, `weight` of the way; `reach` says which
    points lie within the outermost voxels' borders. Where no point lies between two voxels, the axis is not `mixed`.
    """

    low: NDArray[np.intp]
    weight: Float32
    reach: NDArray[np.bool_]
    mixed: bool

    def part(self, start: int, stop: int, first: int) -> Line:
        """Points [start, stop), voxels counted from `first`."""
        here = slice(start, stop)
        return Line(self.low[here] - first, self.weight[here], self.reach[here], self.mixed)


def lines_between(source: Geometry, target: Geometry) -> tuple[Line, Line, Line] | None:
    """Where `target`'s voxels lie in `source`, per axis; None where the axes are not parallel, in the same order."""
    relation = np.linalg.inv(source.matrix) @ target.matrix
    steps = relation[:3, :3].diagonal()
    drift = np.abs(relation[:3, :3] - np.diag(steps)) * (np.asarray(target.shape) - 1)
    if drift.max() > _ALIGNED:
        return None
    z, y, x = (_line(*axis) for axis in zip(source.shape, target.shape, relation[:3, 3], steps, strict=True))
    return z, y, x


def _line(size: int, points: int, start: float, step: float) -> Line:
    positions = round(float(start), 9) + round(float(step), 12) * np.arange(points)
    reach = (positions >= -0.5 - _BORDER) & (positions <= size - 0.5 + _BORDER)
    positions = np.clip(positions, 0, size - 1)
    near = np.rint(positions)
    if np.abs(positions - near).max(initial=0) < _ALIGNED:
        return Line(near.astype(np.intp), np.zeros(points, np.float32), reach, mixed=False)
    low = np.clip(np.floor(positions), 0, size - 2).astype(np.intp)
    return Line(low, (positions - low).astype(np.float32), reach, mixed=True)


def disagreeing(labels: NDArray[np.uint8], lines: Sequence[Line]) -> NDArray[np.bool_]:
    """Whether the corners of the cell that begins at each voxel differ; axes that are not mixed have cells of one."""
    least, most = labels, labels
    for axis, line in enumerate(lines):
        if line.mixed:
            before = (slice(None),) * axis
            here, there = (*before, slice(None, -1)), (*before, slice(1, None))
            least, most = np.minimum(least[here], least[there]), np.maximum(most[here], most[there])
    return least != most


def spread(array: NDArray[Any], lines: Sequence[Line]) -> NDArray[Any]:
    """At each point the value of the voxel, or cell, that it lies above."""
    for axis in (2, 1, 0):
        array = np.take(array, lines[axis].low, axis=axis)
    return array


class Cells:
    """The probabilities at the corners of the cells that are looked at closely, one row a voxel."""

    def __init__(self, wanted: NDArray[np.bool_], lines: Sequence[Line], shape: Sequence[int]) -> None:
        self._lines = lines
        begins = np.nonzero(wanted)
        self._numbers = np.zeros(wanted.shape, np.int32)
        self._numbers[begins] = np.arange(len(begins[0]), dtype=np.int32)
        strides = (shape[1] * shape[2], shape[2], 1)
        first = sum(begin * stride for begin, stride in zip(begins, strides, strict=True))
        steps = [(0, stride) if line.mixed else (0,) for stride, line in zip(strides, lines, strict=True)]
        corners = np.stack([first + sum(offsets) for offsets in itertools.product(*steps)], axis=1)
        used = np.zeros(math.prod(shape), bool)
        used[corners] = True
        self.voxels = np.flatnonzero(used)
        rows = np.cumsum(used, dtype=np.int32) - 1
        self._corners = rows[corners]

    def interpolated(self, rows: Float32, points: Sequence[NDArray[np.intp]]) -> Iterator[tuple[slice, Float32]]:
        """(which points, their probabilities (n, k)), a few at a time; `rows` are those of `voxels`."""
        table = torch.from_numpy(rows)
        for first in range(0, len(points[0]), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            here = [axis[some] for axis in points]
            cells = self._numbers[tuple(line.low[at] for line, at in zip(self._lines, here, strict=True))]
            weights = np.ones((len(cells), 1), np.float32)
            for line, at in zip(self._lines, here, strict=True):
                if line.mixed:
                    share = line.weight[at][:, None]
                    weights = (weights[:, :, None] * np.stack((1 - share, share), axis=2)).reshape(len(cells), -1)
            corners = torch.from_numpy(self._corners[cells])
            yield (
                some,
                functional.embedding_bag(
                    corners, table, mode="sum", per_sample_weights=torch.from_numpy(weights)
                ).numpy(),
            )


@dataclass(frozen=True, slots=True)
class Near:
    """Voxels around the points of a slab: their likeliest classes (z, y, x), and all their probabilities, in parts
    (k, n, y, x) without gaps, each with the slice of `labels` that it begins at.
    """

    labels: NDArray[np.uint8]
    parts: tuple[tuple[int, Float32], ...]

    def rows(self, voxels: NDArray[np.intp]) -> Float32:
        """The probabilities (n, k) of `voxels`, numbered as in `labels`, in rising order."""
        rows = np.empty((len(voxels), len(self.parts[0][1])), np.float32)
        for first, part in self.parts:
            begin, plane = first * self.labels[0].size, part.reshape(len(part), -1)
            low, high = np.searchsorted(voxels, (begin, begin + plane.shape[1]))
            rows[low:high] = np.take(plane, voxels[low:high] - begin, axis=1).T
        return rows


def likeliest(channels: Iterator[Float32]) -> tuple[NDArray[np.uint8], Float32]:
    """The number of the largest of `channels` (z, y, x) at each voxel, the first of equals; and its value."""
    best = np.array(next(channels), np.float32)
    labels, more = np.zeros(best.shape, np.uint8), np.empty(best.shape, bool)
    for value, channel in enumerate(channels, 1):
        np.greater(channel, best, out=more)
        # Values rise, so the largest is the last: five times as fast as writing where there is more.
        told = np.multiply(more.view(np.uint8), np.uint8(value), out=more.view(np.uint8))
        np.maximum(labels, told, out=labels)
        np.maximum(best, channel, out=best)
    return labels, best
