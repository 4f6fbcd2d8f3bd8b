"""A network over a whole image, tile by tile, blended by a Gaussian (Isensee et al. 2021).

Tiles go from the first slice to the last, so slices below the next tile are finished: they are handed on and
forgotten. What is added up is never more than one tile deep, however long the scan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.plan import Activation, IntTriple
from tasks.imaging.device import Precision, autocast
from tasks.imaging.heap import kept_memory

PORTION = 16
"""Slices handed on at once, at most."""

_AXES = {"z": -3, "y": -2, "x": -1}


class Planes(Protocol):
    """An image (c, z, y, x) whose slices are asked for in rising order."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x)."""
        ...

    def planes(self, start: int, stop: int) -> Tensor:
        """Slices [start, stop) as (c, n, y, x); neither end ever falls from one call to the next."""
        ...


@torch.inference_mode()
def sliding_window(
    network: nn.Module,
    image: Tensor,
    tile: IntTriple,
    overlap: float,
    *,
    mirror_axes: Sequence[str] = (),
    activation: Activation = "softmax",
    precision: Precision = "auto",
    batch: int = 0,
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Class probabilities (k, z, y, x), float32 on the CPU, of `image` (c, z, y, x); as `sliding_bands`, but whole."""
    whole: Tensor | None = None
    for first, band in sliding_bands(
        network,
        Whole(image),
        tile,
        overlap,
        mirror_axes=mirror_axes,
        activation=activation,
        precision=precision,
        batch=batch,
        device=device,
        cancelled=cancelled,
    ):
        if whole is None:
            whole = torch.empty((len(band), *image.shape[1:]))
        whole[:, first : first + band.shape[1]] = band
    assert whole is not None  # noqa: S101 - every image has at least one slice
    return whole


@torch.inference_mode()
def sliding_bands(
    network: nn.Module,
    image: Planes,
    tile: IntTriple,
    overlap: float,
    *,
    mirror_axes: Sequence[str] = (),
    activation: Activation = "softmax",
    precision: Precision = "auto",
    batch: int = 0,
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Tensor]]:
    """(first slice, class probabilities (k, n, y, x) float32 on the CPU) of `image`, in order and without gaps.

    What is yielded is only lent: it is overwritten afterwards. A `tile` of one slice runs a 2-D network over the
    slices. The network is in evaluation mode on `device`; `batch` tiles go through at a time (0: a few on a GPU, one
    on a CPU, slices by the number of pixels). Raises InterruptedError between tiles once `cancelled`.
    """
    device = torch.device(device)
    framed, flat = _Framed(image, tile), tile[0] == 1
    adding: _Accumulator | None = None
    for chunk, tiles in _tiles(framed, tile, overlap, batch, device, cancelled):
        probabilities = class_probabilities(
            network, tiles[:, :, 0] if flat else tiles, mirror_axes, precision, activation=activation
        )
        if adding is None:
            adding = _Accumulator(probabilities.shape[1], framed, tile, overlap, device)
        for corner, part in zip(chunk, probabilities.unsqueeze(2) if flat else probabilities, strict=True):
            yield from adding.room_for(corner[0])
            adding.add(corner, part)
    assert adding is not None  # noqa: S101 - every image has at least one tile
    yield from adding.finished(framed.size[0])


def image_tiles(
    image: Planes,
    tile: IntTriple,
    overlap: float,
    *,
    batch: int = 0,
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
    """(first voxels in `image`, tiles (n, c, *tile) float32 on `device`), a few at a time, as `sliding_bands` takes
    them. A first voxel is negative where the image is smaller than a tile: zeros are around it then.
    """
    framed = _Framed(image, tile)
    for chunk, tiles in _tiles(framed, tile, overlap, batch, torch.device(device), cancelled):
        yield [tuple(c - part.start for c, part in zip(corner, framed.inside, strict=True)) for corner in chunk], tiles


def _tiles(
    framed: _Framed,
    tile: IntTriple,
    overlap: float,
    batch: int,
    device: torch.device,
    cancelled: Callable[[], bool],
) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
    corners = list(_corners(framed.size, tile, overlap))
    with kept_memory(device.type):
        for chunk in _chunks(corners, batch or _batch_size(device, tile)):
            if cancelled():
                raise InterruptedError
            tiles = torch.stack([framed.tile(corner) for corner in chunk])
            yield chunk, tiles.to(device, torch.float32, non_blocking=True)


@torch.inference_mode()
def class_probabilities(
    network: nn.Module,
    images: Tensor,
    mirror_axes: Sequence[str] = (),
    precision: Precision = "auto",
    *,
    activation: Activation = "softmax",
    clinical: Tensor | None = None,
) -> Tensor:
    """Float32 `activation` of the logits for `images` (b, c, …), the mean over all combinations of mirrored axes.

    `clinical` (b, v) goes to networks that take variables beside the images.
    """
    beside = () if clinical is None else (clinical,)
    flips = mirrored(mirror_axes, flat=images.ndim < 5)
    total: Tensor | None = None
    for flip in flips:
        with autocast(images.device, precision):
            logits = network(images.flip(flip) if flip else images, *beside)
        probabilities = logits.float().sigmoid() if activation == "sigmoid" else logits.float().softmax(1)
        if flip and logits.ndim == images.ndim:
            probabilities = probabilities.flip(flip)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None  # noqa: S101 - the image itself is one of its mirrored copies
    return total.div_(len(flips)) if len(flips) > 1 else total


def mirrored(mirror_axes: Sequence[str], *, flat: bool) -> list[tuple[int, ...]]:
    """All combinations of these axes, none of them first; slices alone (`flat`) have no z."""
    axes = [_AXES[a] for a in mirror_axes if not flat or a != "z"]
    return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]


class Whole:
    """An image that is all there."""

    def __init__(self, image: Tensor) -> None:
        self.image = image

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c, z, y, x)."""
        c, z, y, x = self.image.shape
        return c, z, y, x

    def planes(self, start: int, stop: int) -> Tensor:
        """A view of slices [start, stop)."""
        return self.image[:, start:stop]


class _Framed:
    """An image in the middle of zeros, at least as large as a tile: `size` with them, `inside` without."""

    def __init__(self, image: Planes, tile: IntTriple) -> None:
        self.image, self.depth = image, tile[0]
        shape = image.shape[1:]
        lacking = [max(0, t - n) for t, n in zip(tile, shape, strict=True)]
        self.size = tuple(n + more for n, more in zip(shape, lacking, strict=True))
        self.inside = tuple(slice(more // 2, more // 2 + n) for n, more in zip(shape, lacking, strict=True))
        self.tile_size = tile
        self._slab: tuple[int, Tensor] | None = None

    def tile(self, corner: Sequence[int]) -> Tensor:
        """(c, *tile) at `corner` of the framed image."""
        z, y, x = corner
        if self._slab is None or self._slab[0] != z:
            self._slab = z, self._framed(z, z + self.depth)
        return self._slab[1][:, :, y : y + self.tile_size[1], x : x + self.tile_size[2]]

    def _framed(self, start: int, stop: int) -> Tensor:
        inner = self.inside[0]
        low, high = max(start, inner.start), min(stop, inner.stop)
        planes = self.image.planes(low - inner.start, high - inner.start)
        if self.size == self.image.shape[1:]:
            return planes
        pads = [low - start, stop - high]
        for whole, part in zip(self.size[1:], self.inside[1:], strict=True):
            pads = [part.start, whole - part.stop, *pads]
        return functional.pad(planes, pads)


class _Accumulator:
    """Weighed probabilities of the slices that tiles still reach: (k, depth, y, x), from slice `first` on."""

    def __init__(self, classes: int, framed: _Framed, tile: IntTriple, overlap: float, device: torch.device) -> None:
        size, self.inside, self.tile, self.first = framed.size, framed.inside, tile, 0
        # A flat tile would be handed on slice by slice, each with a wait for the GPU.
        depth = min(size[0], max(tile[0], PORTION))
        self.values = _room(classes, (depth, *size[1:]), device)
        self.gaussian = _gaussian(tile).to(self.values.device)
        # The Gaussian is a product of its axes, and so is the sum of the weights.
        z, y, x = (_line_weight(n, t, overlap) for n, t in zip(size, tile, strict=True))
        self.along_z, self.in_plane = z, (y[:, None] * x).to(self.values.device)

    def add(self, corner: Sequence[int], part: Tensor) -> None:
        """A tile's probabilities (k, *tile), weighed."""
        place = (corner[0] - self.first, *corner[1:])
        goal = self.values[(slice(None), *(slice(c, c + t) for c, t in zip(place, self.tile, strict=True)))]
        goal.addcmul_(part.to(self.values.device), self.gaussian)

    def room_for(self, z: int) -> Iterator[tuple[int, Tensor]]:
        """Hand on what lies below `z` where a tile at `z` would not fit otherwise."""
        if z + self.tile[0] > self.first + self.values.shape[1]:
            yield from self.finished(z)

    def finished(self, z: int) -> Iterator[tuple[int, Tensor]]:
        """The slices below `z`, which no further tile reaches, without the frame; they are forgotten here."""
        count, inner = z - self.first, self.inside[0]
        for low in range(0, count, PORTION):
            high = min(count, low + PORTION)
            start, stop = max(self.first + low, inner.start), min(self.first + high, inner.stop)
            if start < stop:
                part = self.values[:, start - self.first : stop - self.first]
                for plane, weight in zip(part.unbind(1), self.along_z[start:stop].tolist(), strict=True):
                    plane.div_(self.in_plane * weight)
                yield start - inner.start, part[(slice(None), slice(None), *self.inside[1:])].cpu()
        self._forget(count)

    def _forget(self, count: int) -> None:
        depth = self.values.shape[1]
        for low in range(0, depth - count, count):  # moved in steps that do not overlap themselves
            high = min(depth - count, low + count)
            self.values[:, low:high] = self.values[:, low + count : high + count]
        self.values[:, depth - count :] = 0
        self.first += count


def _room(classes: int, size: Sequence[int], device: torch.device) -> Tensor:
    """Zeros to add up in: on the GPU where they take less than half of what is free there."""
    needed = 4 * classes * math.prod(size)
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] / 2:
        device = torch.device("cpu")
    return torch.zeros((classes, *size), device=device)


def _starts(size: int, tile: int, overlap: float) -> list[int]:
    """First voxels along an axis: evenly spread, neighbours sharing at least `overlap` of a tile."""
    step = max(1, int(tile * (1 - overlap)))
    count = math.ceil((size - tile) / step) + 1
    return [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]


def _corners(size: Sequence[int], tile: IntTriple, overlap: float) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(_starts(n, t, overlap) for n, t in zip(size, tile, strict=True)))


def _profile(size: int) -> Tensor:
    """A Gaussian of σ = size/8 along one axis, never below a thousandth of its peak."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    return torch.exp(-0.5 * (offset / max(size / 8, 1e-3)) ** 2).clamp_min(1e-3)


@lru_cache(8)
def _gaussian(tile: IntTriple) -> Tensor:
    z, y, x = (_profile(n) for n in tile)
    return z[:, None, None] * y[:, None] * x


def _line_weight(size: int, tile: int, overlap: float) -> Tensor:
    """The sum of the tiles' profiles at each voxel of an axis."""
    line = torch.zeros(size)
    for start in _starts(size, tile, overlap):
        line[start : start + tile] += _profile(tile)
    return line


def _batch_size(device: torch.device, tile: IntTriple) -> int:
    voxels = math.prod(tile)
    budget = 2**22 if device.type == "cuda" else 2**17
    return max(1, budget // voxels)


def _chunks(items: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
