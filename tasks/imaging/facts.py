"""An image in a few numbers, by one rule for training cases and for arrivals: how bright it is and how it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry
from models.plan import ChannelLevels

_PER_AXIS = 64
_LETTERS = ("LR", "PA", "HF")  # towards rising and falling x, y and z of LPS, as Patient Orientation writes them
NOTHING = ChannelLevels(p05=0.0, median=0.0, p95=0.0)
"""Of a channel that is missing."""
_PLANES = ("sagittal", "coronal", "axial")


def channel_levels(array: NDArray[Any]) -> tuple[ChannelLevels, ...]:
    """Percentiles of every channel of ([c,] z, y, x), over a regular sample of its voxels ≠ 0 (all if there are none).

    The sample is a view: nothing of the image is copied. A missing channel (NaN throughout) has none.
    """
    channels = array[None] if array.ndim == 3 else array
    steps = tuple(slice(None, None, max(1, n // _PER_AXIS)) for n in channels.shape[1:])
    return tuple(_levels(channel[steps]) for channel in channels)


def orientation(geometry: Geometry) -> str:
    """Where the array's axes (z, y, x) point, one letter each: `HPL` for axial slices from the feet up."""
    return "".join(_letter(axis) for axis in geometry.direction.T)


def slice_plane(code: str) -> str:
    """The anatomical plane of the slices of an image with this `orientation`."""
    return _PLANES[next(i for i, pair in enumerate(_LETTERS) if code[0] in pair)]


def _letter(axis: NDArray[np.float64]) -> str:
    main = int(np.abs(axis).argmax())
    return _LETTERS[main][0 if axis[main] > 0 else 1]


def _levels(sample: NDArray[Any]) -> ChannelLevels:
    if sample.dtype.kind == "f" and np.isnan(sample).all():
        return NOTHING
    values = sample[sample != 0]
    low, middle, high = np.percentile(values if values.size else sample, (5, 50, 95))
    return ChannelLevels(p05=float(low), median=float(middle), p95=float(high))
