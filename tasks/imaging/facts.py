"""An image in a few numbers, by one rule for training cases and for arrivals: how bright it is and how it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models.errors import PackageError
from models.geometry import Geometry
from models.package import ModelPackage
from models.plan import CaseFacts, ChannelLevels, Fingerprint, Normalisation, Plan
from tasks.imaging.compose import missing_channels
from tasks.imaging.crop import box_shape, nonzero_box

_PER_AXIS = 64
_LETTERS = ("LR", "PA", "HF")  # towards rising and falling x, y and z of LPS, as Patient Orientation writes them
NOTHING = ChannelLevels(p05=0.0, median=0.0, p95=0.0)
"""Of a channel that is missing."""
_PLANES = ("sagittal", "coronal", "axial")
PERCENTILES: Final = {"5th percentile": "p05", "median": "median", "95th percentile": "p95"}
"""Of `ChannelLevels`, by what people call them."""


def image_facts(volume: str, array: NDArray[Any], geometry: Geometry) -> CaseFacts:
    """What is kept of an arrived image ([c,] z, y, x): as of a training case, but for its labels."""
    channels = array[None] if array.ndim == 3 else array
    missing = missing_channels(channels)
    values = _there(_sample(channels)[0])
    first, middle, third = np.percentile(values, (25, 50, 75))
    return CaseFacts(
        volume=volume,
        shape=geometry.shape,
        spacing=geometry.spacing,
        cropped_shape=box_shape(nonzero_box(np.delete(channels, missing, axis=0) if missing else channels)),
        median=float(middle),
        iqr=float(third - first),
        orientation=orientation(geometry),
        levels=channel_levels(channels),
    )


def channel_levels(array: NDArray[Any]) -> tuple[ChannelLevels, ...]:
    """Percentiles of every channel of ([c,] z, y, x), over a regular sample of its voxels ≠ 0 (all if there are none).

    The sample is a view: nothing of the image is copied. A missing channel (NaN throughout) has none.
    """
    return tuple(_levels(channel) for channel in _sample(array[None] if array.ndim == 3 else array))


def extent(facts: CaseFacts) -> tuple[float, float, float]:
    """(z, y, x) mm of the whole image."""
    z, y, x = (n * step for n, step in zip(facts.shape, facts.spacing, strict=True))
    return z, y, x


def trained_on(package: ModelPackage) -> Fingerprint | None:
    """What is known of the images that a package learnt from; None where it does not tell. Raises PackageError."""
    if not package.fingerprint:
        return None
    try:
        return Fingerprint.model_validate(package.fingerprint)
    except ValidationError as error:
        raise PackageError(
            f"the package's fingerprint cannot be read ({error.error_count()} faults)",
            where=package.key,
            hint="it comes from another version: train again or roll back",
        ) from None


def visible_range(how: Sequence[Normalisation], channel: int) -> tuple[float, float]:
    """The range outside of which the network sees no difference: a scanner's padding, say."""
    scheme = how[channel] if channel < len(how) else Normalisation(scheme="none")
    return (scheme.low, scheme.high) if scheme.scheme in ("ct", "window") else (-np.inf, np.inf)


def visible_level(levels: ChannelLevels, percentile: str, visible: tuple[float, float]) -> float:
    """A percentile as the network sees it."""
    return float(np.clip(getattr(levels, percentile), *visible))


def channel_name(plan: Plan, channel: int, channels: int) -> str:
    """What the intensities of one of `channels` are called."""
    if channels == 1:
        return "intensities"
    return plan.channels[channel] if channel < len(plan.channels) else f"channel {channel + 1}"


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
    low, middle, high = np.percentile(_there(sample), (5, 50, 95))
    return ChannelLevels(p05=float(low), median=float(middle), p95=float(high))


def _sample(channels: NDArray[Any]) -> NDArray[Any]:
    steps = tuple(slice(None, None, max(1, n // _PER_AXIS)) for n in channels.shape[1:])
    return channels[(slice(None), *steps)]


def _there(sample: NDArray[Any]) -> NDArray[Any]:
    """The values ≠ 0; all, where there are none."""
    values = sample[sample != 0]
    return values if values.size else sample
