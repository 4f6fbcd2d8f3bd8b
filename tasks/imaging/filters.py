"""Noise and contrast filters on (z, y, x) images, slice by slice. Values stay in the image's unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from skimage.restoration import denoise_wavelet

from models.recipe import Clahe, FilterStep, Median, Wavelet, Window

Float32 = NDArray[np.float32]


def apply_filters(array: NDArray[np.generic], steps: Iterable[FilterStep]) -> Float32:
    """All `steps`, in their order, on a copy of one channel (z, y, x)."""
    image = np.array(array, dtype=np.float32)
    for step in steps:
        image = _apply(image, step)
    return image


def _apply(image: Float32, step: FilterStep) -> Float32:
    match step:
        case Median():
            return ndimage.median_filter(image, size=(1, step.size, step.size), mode="nearest")
        case Wavelet():
            return _each_slice(image, lambda plane: _shrink(plane, step))
        case Clahe():
            return _each_slice(image, lambda plane: _equalise(plane, step))
        case Window():
            return np.clip(image, step.center - step.width / 2, step.center + step.width / 2)


def _each_slice(image: Float32, work: Callable[[Float32], Float32]) -> Float32:
    """`work` on every slice, in the unit range: both filters expect it, and constant slices have nothing to gain."""
    for plane in image:
        low, high = float(plane.min()), float(plane.max())
        if high > low:
            plane[...] = low + (high - low) * work((plane - low) / (high - low))
    return image


def _shrink(plane: Float32, step: Wavelet) -> Float32:
    # BayesShrink (Chang, Yu, Vetterli 2000): a threshold per subband, noise from the finest one's median.
    return denoise_wavelet(plane, wavelet=step.wavelet, wavelet_levels=step.levels, method="BayesShrink", mode="soft")


def _equalise(plane: Float32, step: Clahe) -> Float32:
    # Zuiderveld 1994. A tile needs two voxels at least, or there is no histogram.
    tile = [max(2, -(-n // step.tiles)) for n in plane.shape]
    return np.clip(equalize_adapthist(plane, kernel_size=tile, clip_limit=step.clip_limit), 0, 1)
