"""From an image's unit to the network's values: the schemes of `models.plan.Normalisation`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.plan import Normalisation

Float32 = NDArray[np.float32]

_TINY = 1e-8


def normalise(array: NDArray[np.generic], how: Normalisation) -> Float32:
    """One channel (z, y, x), float32; the input is left as it is.

    A `masked` z-score looks at the body (voxels ≠ 0, holes filled) alone and leaves the rest at 0, as nnU-Net does.
    """
    image = np.array(array, dtype=np.float32)
    if (change := voxel_by_voxel(how)) is not None:
        return change(image)
    if how.scheme == "zscore":
        return _zscore(image, how.masked)
    if how.scheme == "percentile":
        low, high = np.percentile(image, (how.low, how.high))
        return _to_unit(image, float(low), float(high))
    return _to_unit(image, float(image.min()), float(image.max()))


def voxel_by_voxel(how: Normalisation) -> Callable[[Float32], Float32] | None:
    """The same as a change in place of any part of an image; None where the whole image must be seen first."""
    match how.scheme:
        case "none":
            return lambda part: part
        case "ct":
            return lambda part: _standardise(np.clip(part, how.low, how.high, out=part), how.mean, how.std)
        case "window":
            return lambda part: _to_unit(part, how.low, how.high)
        case _:
            return None


def _standardise(image: Float32, mean: float, std: float) -> Float32:
    image -= np.float32(mean)
    image /= np.float32(max(std, _TINY))
    return image


def _zscore(image: Float32, masked: bool) -> Float32:
    body = body_mask(image) if masked else None
    if body is None or not body.any():
        return _standardise(image, *_mean_std(image))
    mean, std = _mean_std(image[body])
    image[body] = (image[body] - np.float32(mean)) / np.float32(max(std, _TINY))
    image[~body] = 0
    return image


def _mean_std(values: Float32) -> tuple[float, float]:
    # In double precision: a million float32 voxels of large values lose digits otherwise.
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def _to_unit(image: Float32, low: float, high: float) -> Float32:
    np.clip(image, low, high, out=image)
    image -= np.float32(low)
    image /= np.float32(max(high - low, _TINY))
    return image


def body_mask(image: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Voxels ≠ 0 of (z, y, x), with the holes inside them filled (per slice where there is but one)."""
    filled = np.asarray(image != 0)
    if filled.shape[0] == 1:
        return np.asarray(ndimage.binary_fill_holes(filled[0]))[None]
    return np.asarray(ndimage.binary_fill_holes(filled))
