"""A prepared image slice by slice: what `prepare_image` gives, without ever holding all of it.

A long scan at the network's resolution takes more memory than the scan itself. Filters and in-plane interpolation work
slice by slice, z by a banded matrix, so a few slices at a time will do wherever normalisation needs no more than
figures of the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from tasks.imaging.crop import crop_to
from tasks.imaging.normalise import normalise
from tasks.imaging.prepare import Layout, filtered, is_thick, lay_out, prepare_image
from tasks.imaging.resample import AxisOperator, axis_operator, resample
from tasks.imaging.sliding import Planes, Whole

Float32 = NDArray[np.float32]
Make = Callable[[int, int], Float32]

WHOLE_BYTES = 256 << 20
"""Images that take no more than this, before and after, are prepared whole: there is nothing to win."""

_SLICES = 32
_NOTHING = Normalisation(scheme="none")
"""Of a channel that is missing."""


def prepared_planes(
    array: NDArray[Any], geometry: Geometry, plan: PreparePlan, *, whole_bytes: int = WHOLE_BYTES
) -> tuple[Planes, Layout]:
    """`array` ([c,] z, y, x) as the network wants it, and where it lies. Raises PixelError as `prepare_image` does.

    Images of fixed size, and those whose normalisation looks at single voxels of the whole, are prepared whole.
    """
    layout = lay_out(array, geometry, plan)
    largest = max(len(layout.channels) * math.prod(layout.target.shape), math.prod(layout.inner.shape))
    if 4 * largest > whole_bytes and plan.size is None:
        cropped = crop_to(layout.channels, layout.crop)
        ways = enumerate(zip(cropped, plan.normalisation, strict=True))
        pointwise = [_NOTHING if c in layout.missing else settled(channel, how, plan) for c, (channel, how) in ways]
        known = [how for how in pointwise if how is not None]
        if len(known) == len(pointwise):
            return StreamedImage(cropped, layout, plan, known), layout
    return Whole(torch.from_numpy(prepare_image(array, geometry, plan).array)), layout


def settled(channel: NDArray[Any], how: Normalisation, plan: PreparePlan) -> Normalisation | None:
    """The same mapping of values with its figures filled in, so that slices can be mapped one by one; None where a
    voxel's new value depends on more than figures, or the figures on filtered values."""
    if how.scheme in ("ct", "window", "none"):
        return how
    if plan.steps or how.masked:
        return None
    if how.scheme == "zscore":
        mean, std = _mean_std(channel)
        return Normalisation(scheme="ct", low=-math.inf, high=math.inf, mean=mean, std=std)
    if how.scheme == "percentile":
        low, high = np.percentile(channel, (how.low, how.high))
        return Normalisation(scheme="window", low=float(low), high=float(high))
    return Normalisation(scheme="window", low=float(channel.min()), high=float(channel.max()))


class StreamedImage:
    """A prepared image whose slices are made when they are asked for, and kept while they may be asked for again."""

    def __init__(self, cropped: NDArray[Any], layout: Layout, plan: PreparePlan, settled: list[Normalisation]) -> None:
        self.shape = (len(cropped), *layout.target.shape)
        self._cropped, self._plan, self._settled = cropped, plan, settled
        self._in_plane = _Rolling(self._flat)
        self._z = _along_z(layout, plan)
        self._planes = _Rolling(self._mixed) if self._z else self._in_plane

    def planes(self, start: int, stop: int) -> Tensor:
        """Slices [start, stop), float32 (c, n, y, x)."""
        return torch.from_numpy(self._planes(start, stop))

    def _flat(self, start: int, stop: int) -> Float32:
        """Original slices [start, stop) with the network's values on its in-plane grid."""
        made = np.empty((len(self._cropped), stop - start, *self.shape[2:]), np.float32)
        for channel, out, how in zip(self._cropped, made, self._settled, strict=True):
            if how is _NOTHING:
                out[...] = 0
                continue
            values = normalise(filtered(channel[start:stop], self._plan), how)
            resample(values, out.shape, out=out)
        return made

    def _mixed(self, start: int, stop: int) -> Float32:
        assert self._z is not None  # noqa: S101 - only then is this used
        low, high, weights = self._z.rows(start, stop)
        sources = self._in_plane(low, high)
        made = np.empty((len(sources), stop - start, *self.shape[2:]), np.float32)
        for source, out in zip(sources, made, strict=True):
            np.matmul(weights, source.reshape(len(source), -1), out=out.reshape(len(out), -1))
        return made


class _Rolling:
    """Slices made once each, in rising order; those below what was last asked for are forgotten."""

    def __init__(self, make: Make) -> None:
        self._make, self._first = make, 0
        self._kept: Float32 | None = None

    def __call__(self, start: int, stop: int) -> Float32:
        """(c, stop − start, y, x); a view for the caller to read."""
        kept = None if self._kept is None else self._kept[:, start - self._first :]
        done = start + (0 if kept is None else kept.shape[1])
        if kept is not None and done >= stop:
            return kept[:, : stop - start]
        parts = [] if kept is None else [kept]
        parts += [self._make(low, min(stop, low + _SLICES)) for low in range(done, stop, _SLICES)]
        self._kept, self._first = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), start
        return self._kept


def _along_z(layout: Layout, plan: PreparePlan) -> AxisOperator | None:
    n, m = layout.inner.shape[0], layout.target.shape[0]
    if n == m:
        return None
    apart = plan.anisotropic or is_thick(layout.inner, layout.target)
    return axis_operator(n, m, (n / m - 1) / 2, n / m, 0 if apart else 3)


def _mean_std(channel: NDArray[Any]) -> tuple[float, float]:
    """In double precision, a few slices at a time."""
    parts = [channel[low : low + _SLICES] for low in range(0, len(channel), _SLICES)]
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / channel.size
    squares = sum(float(np.square(np.subtract(part, mean, dtype=np.float64)).sum()) for part in parts)
    return mean, math.sqrt(squares / channel.size)
