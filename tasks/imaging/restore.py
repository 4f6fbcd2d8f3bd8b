"""From class probabilities on the prepared grid back to labels on the image's own grid, while they come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry
from models.plan import IntTriple
from tasks.imaging.boundaries import Cells, Line, Near, disagreeing, likeliest, lines_between, spread
from tasks.imaging.calibration import tempered
from tasks.imaging.crop import Box, box_slices
from tasks.imaging.held import Decided, Held
from tasks.imaging.resample import resample_to_grid

Float32 = NDArray[np.float32]

SLAB_BYTES = 64 << 20
"""About what the probabilities of the slices that are restored at once may take."""

_MARGIN = 2
_SAME = 1e-3
_MAJORITY = 0.501  # with what rounding may add


class Restorer:
    """Takes probabilities from the first prepared slice to the last; holds those alone that interpolation still needs.

    They are interpolated linearly (nnU-Net's rule), and `labels` (z, y, x) uint8 gets what `decision` makes of them at
    each voxel of `original` (by default the likeliest class); 0 is the background, and what lies outside the crop.
    For the likeliest class, all channels are interpolated only where neighbouring voxels disagree.
    """

    def __init__(
        self,
        prepared: Geometry,
        crop: Box,
        original: Geometry,
        *,
        decision: Decision | None = None,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        self.labels = np.zeros(original.shape, np.uint8)
        self._decision = decision or Likeliest()
        self._prepared, self._slab_bytes = prepared, slab_bytes
        self._same = prepared.same_grid(original, tolerance=_SAME)
        inside = box_slices(crop)
        self._goal, self._grid = self.labels[inside], original.cropped(inside)
        self._way: _Surfaces | _Everywhere = _Everywhere(self._decision)
        if isinstance(self._decision, Likeliest) and (lines := lines_between(prepared, self._grid)):
            self._way = _Surfaces(self._decision, lines)
        self._waiting: list[_Slab] | None = None

    def take(self, first: int, probabilities: Float32) -> None:
        """(k, n, y, x), from prepared slice `first` on; it may be overwritten afterwards."""
        if self._same:
            self.labels[first : first + probabilities.shape[1]] = self._decision.take(iter(probabilities))
            return
        held = self._way.held
        if self._waiting is None:
            at_once = self._way.at_once(len(probabilities))
            self._waiting = list(_slabs(self._grid, self._prepared, self._slab_bytes, at_once))
        held.add(first, probabilities)
        while self._waiting and self._waiting[0].z1 <= held.end:
            slab = self._waiting.pop(0)
            goal = self._grid.cropped((slice(slab.low, slab.high), slice(None), slice(None)))
            source = self._prepared.cropped((slice(slab.z0, slab.z1), slice(None), slice(None)))
            self._goal[slab.low : slab.high] = self._way.labels(slab, source, goal)
            held.forget(self._waiting[0].z0 if self._waiting else held.end)

    def confidence(self, classes: int) -> tuple[float, ...]:
        """Per class 1 … `classes`, the mean probability of the voxels that were given to it; 0 where there are none."""
        return self._decision.confidence(classes)


class _Everywhere:
    """All channels are interpolated at every voxel."""

    def __init__(self, decision: Decision) -> None:
        self.held, self._decision = Held(), decision

    def at_once(self, classes: int) -> int:
        """Of how many channels a slab is held."""
        return classes

    def labels(self, slab: _Slab, source: Geometry, goal: Geometry) -> NDArray[np.uint8]:
        channels = (self.held.channel(value, slab.z0, slab.z1) for value in range(self.held.classes))
        return self._decision.take(resample_to_grid(channel, source, goal, order=1) for channel in channels)


class _Surfaces:
    """One channel is, and all of them where neighbours disagree."""

    def __init__(self, decision: Likeliest, lines: tuple[Line, Line, Line]) -> None:
        self.held, self._decision, self._lines = Decided(), decision, lines

    def at_once(self, classes: int) -> int:
        """A label, where it comes from and how sure it is take as much as two channels do."""
        return min(classes, 2)

    def labels(self, slab: _Slab, source: Geometry, goal: Geometry) -> NDArray[np.uint8]:
        z, y, x = self._lines
        best = resample_to_grid(self.held.best(slab.z0, slab.z1), source, goal, order=1)
        near = self.held.near(slab.z0, slab.z1)
        return self._decision.between(near, best, (z.part(slab.low, slab.high, slab.z0), y, x))


class Decision(Protocol):
    """What probabilities become, and how sure that was."""

    def take(self, channels: Iterator[Float32]) -> NDArray[np.uint8]:
        """Labels (z, y, x) of one part of an image; `channels` are its classes' probabilities (z, y, x), in order."""
        ...

    def confidence(self, classes: int) -> tuple[float, ...]:
        """Per class, the mean probability of the voxels that were given to it so far; 0 where there are none."""
        ...


class Likeliest:
    """Each voxel gets its likeliest class; the first channel is the background.

    `temperature` is for the confidence alone: it would not change which class is the likeliest.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self._sums, self._counts = np.zeros(256), np.zeros(256, np.int64)
        self._temperature, self._least = temperature, 1.0

    def take(self, channels: Iterator[Float32]) -> NDArray[np.uint8]:
        """A label map."""
        raised = _Raised(channels, 1 / self._temperature) if self._temperature != 1 else None
        labels, best = likeliest(raised or channels)
        foreground = labels > 0
        self._note(labels[foreground], raised.shares(best, foreground) if raised else best[foreground])
        self._least = min(self._least, float(np.maximum(best, foreground).min()))
        return labels

    def between(self, near: Near, best: Float32, lines: tuple[Line, Line, Line]) -> NDArray[np.uint8]:
        """A label map of points between voxels whose likeliest classes are known; `best` (z, y, x), their probability
        interpolated, is set right where they differ.
        """
        mixed = disagreeing(near.labels, lines)
        begins = near.labels[tuple(slice(n) for n in mixed.shape)]
        labels = spread(begins, lines)
        # With a temperature, how sure a class is depends on all the others.
        wanted = mixed if self._temperature == 1 else mixed | (begins > 0)
        points = np.nonzero(spread(wanted, lines))
        if len(points[0]):
            cells = Cells(wanted, lines, near.labels.shape)
            for some, rows in cells.interpolated(near.rows(cells.voxels), points):
                here = tuple(axis[some] for axis in points)
                labels[here], best[here] = self._of_rows(rows)
        for axis, line in enumerate(lines):
            if not line.reach.all():
                outside: tuple[Any, ...] = (*(slice(None),) * axis, ~line.reach)
                labels[outside], best[outside] = 0, 0
        foreground = labels > 0
        self._note(labels[foreground], best[foreground])
        self._least = min(self._least, float(np.maximum(best, foreground).min()))
        return labels

    def _of_rows(self, rows: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """The likeliest class of each row (n, k), and how sure it is: background is not tempered."""
        labels = rows.argmax(1)
        chosen = (np.arange(len(rows)), labels)
        best = rows[chosen]
        if self._temperature != 1:
            raised = np.power(np.maximum(rows, 0), np.float32(1 / self._temperature))
            best = np.where(labels > 0, raised[chosen] / raised.sum(1), best)
        return labels.astype(np.uint8), best

    def _note(self, values: NDArray[np.uint8], sure: Float32) -> None:
        self._sums += np.bincount(values, sure, 256)
        self._counts += np.bincount(values, minlength=256)

    def confidence(self, classes: int) -> tuple[float, ...]:
        """Of the classes after the background."""
        return _means(self._sums[1 : classes + 1], self._counts[1 : classes + 1])

    @property
    def nearest(self) -> float:
        """The highest probability of not being background among the voxels that were given to it."""
        least = max(0.0, self._least)
        return float(tempered(np.array([least, 1 - least]), self._temperature)[1])


class _Raised:
    """Passes channels on, and adds up their powers where the foreground may be: where the first is no majority."""

    def __init__(self, channels: Iterator[Float32], power: float) -> None:
        self._channels, self._power = channels, power
        self._places: NDArray[np.intp] | None = None
        self._total: Float32 = np.empty(0, np.float32)

    def __iter__(self) -> Iterator[Float32]:
        return self

    def __next__(self) -> Float32:
        channel = next(self._channels)
        if self._places is None:
            self._places = np.flatnonzero(channel <= _MAJORITY)
            self._total = np.zeros(len(self._places), np.float32)
        self._total += self._lifted(channel.ravel()[self._places])
        return channel

    def shares(self, best: Float32, foreground: NDArray[np.bool_]) -> Float32:
        """Of `best` in all channels, after raising, where there is `foreground`."""
        assert self._places is not None  # noqa: S101 - every network has at least one output
        inside = foreground.ravel()[self._places]
        return self._lifted(best.ravel()[self._places[inside]]) / self._total[inside]

    def _lifted(self, values: Float32) -> Float32:
        # Interpolation may leave a value just below zero.
        return np.power(np.maximum(values, 0), np.float32(self._power))


class EachAlone:
    """A voxel gets every class whose probability is at least `threshold`: bit i for channel i.

    `temperature` is for the confidence alone: it would not move a probability to the other side of 0.5.
    """

    def __init__(self, threshold: float = 0.5, temperature: float = 1.0) -> None:
        self._threshold, self._temperature, self._most = threshold, temperature, 0.0
        self._sums, self._counts = np.zeros(8), np.zeros(8, np.int64)

    def take(self, channels: Iterator[Float32]) -> NDArray[np.uint8]:
        """A region map."""
        regions: NDArray[np.uint8] | None = None
        for index, channel in enumerate(channels):
            inside = channel >= self._threshold
            sure = tempered(channel[inside], self._temperature, independent=True)
            self._sums[index] += sure.sum(dtype=np.float64)
            self._counts[index] += np.count_nonzero(inside)
            self._most = max(self._most, float(np.where(inside, 0, channel).max()))
            bits = inside.astype(np.uint8) << np.uint8(index)
            regions = bits if regions is None else regions | bits
        assert regions is not None  # noqa: S101 - every network has at least one output
        return regions

    def confidence(self, classes: int) -> tuple[float, ...]:
        """Of every channel."""
        return _means(self._sums[:classes], self._counts[:classes])

    @property
    def nearest(self) -> float:
        """The highest probability of any class where it was not given."""
        return float(tempered(np.array([self._most]), self._temperature, independent=True)[0])


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, ...]:
    # Blending leaves rounding behind: no probability is above 1.
    return tuple(min(1.0, float(s / n)) if n else 0.0 for s, n in zip(sums, counts, strict=True))


def restored(
    bands: Iterator[tuple[int, Float32]],
    prepared: Geometry,
    crop: Box,
    original: Geometry,
    ranges: Sequence[tuple[int, int]],
    outside: Float32,
) -> Iterator[Float32]:
    """Probabilities (k, n, y, x) on `original`'s slices [low, high), for each of `ranges`, which rise without gaps.

    `bands` are (first prepared slice, probabilities (k, n, y, x)); no more of them is asked for and held than the
    range at hand needs. `outside` (k,) is what is said of voxels outside the crop.
    """
    inside = box_slices(crop)
    grid, held = original.cropped(inside), Held()
    same = prepared.same_grid(grid, tolerance=_SAME)
    for low, high in ranges:
        part = np.empty((len(outside), high - low, *original.shape[1:]), np.float32)
        part[...] = outside[:, None, None, None]
        start, stop = max(low, inside[0].start), min(high, inside[0].stop)
        if start < stop:
            goal = part[:, start - low : stop - low, inside[1], inside[2]]
            slab = slice(start - inside[0].start, stop - inside[0].start)
            target = grid.cropped((slab, slice(None), slice(None)))
            z0, z1 = (slab.start, slab.stop) if same else _needed(target, prepared)
            held.forget(z0)
            while held.end < z1:
                held.add(*next(bands))
            source = prepared.cropped((slice(z0, z1), slice(None), slice(None)))
            for value, out in enumerate(goal):
                channel = held.channel(value, z0, z1)
                out[...] = channel if same else resample_to_grid(channel, source, target, order=1)
        yield part


def slab_ranges(shape: IntTriple, classes: int, slab_bytes: int = SLAB_BYTES) -> list[tuple[int, int]]:
    """[low, high) ranges of slices whose probabilities, with the work on them, stay below about `slab_bytes`."""
    step = _step(shape, slab_bytes, classes)
    return [(low, min(shape[0], low + step)) for low in range(0, shape[0], step)]


@dataclass(frozen=True, slots=True)
class _Slab:
    """Original slices [low, high) look at prepared slices [z0, z1)."""

    low: int
    high: int
    z0: int
    z1: int


def _slabs(grid: Geometry, prepared: Geometry, slab_bytes: int, classes: int) -> Iterator[_Slab]:
    """Ranges of slices whose probabilities, and the three float32 copies of work on them, stay below `slab_bytes`."""
    step = _step(grid.shape, slab_bytes, classes)
    for low in range(0, grid.shape[0], step):
        high = min(grid.shape[0], low + step)
        slab = grid.cropped((slice(low, high), slice(None), slice(None)))
        yield _Slab(low, high, *_needed(slab, prepared))


def _step(shape: IntTriple, slab_bytes: int, classes: int) -> int:
    return max(1, slab_bytes // ((classes + 3) * 4 * shape[1] * shape[2]))


def _needed(slab: Geometry, grid: Geometry) -> tuple[int, int]:
    """Slices of `grid` that linear interpolation on `slab` looks at."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in slab.shape], indexing="ij")).reshape(3, -1).T
    z = grid.to_index(slab.to_world(corners))[:, 0]
    low = int(np.clip(np.floor(z.min()) - _MARGIN, 0, grid.shape[0] - 1))
    return low, int(np.clip(np.ceil(z.max()) + _MARGIN + 1, low + 1, grid.shape[0]))
