"""What is kept of a volume for its picture: part of one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry, Triple
from tasks.imaging.detection import Lesions

_CROP = 160


@dataclass(frozen=True, slots=True)
class Crop:
    """Part of one slice, at most 160 pixels wide: what is kept of a volume for its picture.

    `image` (y, x) grey uint8 or None; labels (y, x) uint8, bits where there are `regions`; `spacing` (y, x) mm;
    `index` counts slices from 0. `maps` (y, x) in [0, 1] lie over the image.
    """

    image: NDArray[np.uint8] | None
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float]
    index: int
    regions: bool = False
    maps: tuple[NDArray[np.floating[Any]], ...] = ()


def crop_of(
    image: NDArray[np.floating[Any]] | None,
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    spacing: Triple,
    *,
    regions: bool = False,
    maps: Sequence[NDArray[np.floating[Any]]] = (),
) -> Crop:
    """The slice with the most to see (area of the truth plus area of the errors), cut to its structures; with `maps`
    (z, y, x), that in which the first of them is the greatest.

    `image` (c, z, y, x): the first channel is shown, from its 1st to its 99th percentile.
    """
    if len(maps):
        seen_of_slice = maps[0].sum(axis=(1, 2))
    else:
        seen_of_slice = np.count_nonzero(truth, axis=(1, 2)) + np.count_nonzero(truth != prediction, axis=(1, 2))
    index = int(np.argmax(seen_of_slice))
    real, guessed = truth[index], prediction[index]
    seen = (real > 0) | (guessed > 0)
    window, stride = _window(seen)
    grey = None if image is None else _grey(image[0, index][window])
    step = spacing[1] * stride, spacing[2] * stride
    shown = tuple(part[index][window].copy() for part in maps)
    return Crop(grey, real[window].copy(), guessed[window].copy(), step, index, regions, shown)


def flat_crop(image: NDArray[np.floating[Any]], spacing: Triple, maps: Sequence[NDArray[np.floating[Any]]]) -> Crop:
    """The whole slice in which the sum of `maps` (z, y, x) is the greatest, of `image` (c, z, y, x) without labels."""
    index = int(np.argmax(np.sum([part.sum(axis=(1, 2)) for part in maps], axis=0))) if len(maps) else 0
    nothing = np.zeros(image.shape[2:], np.uint8)
    window, stride = _window(nothing > 0)
    empty, step = nothing[window].copy(), (spacing[1] * stride, spacing[2] * stride)
    shown = tuple(part[index][window].copy() for part in maps)
    return Crop(_grey(image[0, index][window]), empty, empty, step, index, maps=shown)


def lesions_crop(image: NDArray[np.floating[Any]] | None, truth: Lesions, marks: Lesions, geometry: Geometry) -> Crop:
    """As `crop_of`; marks that are boxes are drawn as such."""
    return crop_of(image, _labels(truth, geometry.shape), _labels(marks, geometry.shape), geometry.spacing)


def _labels(lesions: Lesions, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """As a label map of their classes."""
    return np.asarray(np.r_[0, lesions.classes + 1].astype(np.uint8)[lesions.drawn(shape)])


def _window(seen: NDArray[np.bool_]) -> tuple[tuple[slice, slice], int]:
    """The rows and columns round what is `seen`, and their stride."""
    rows, columns = (_reach(np.asarray(seen.any(axis=axis))) for axis in (1, 0))
    # One stride for both axes keeps the shape; it is 1 unless the structures are very large.
    stride = max(-(-(part.stop - part.start) // _CROP) for part in (rows, columns))
    return (slice(rows.start, rows.stop, stride), slice(columns.start, columns.stop, stride)), stride


def _reach(seen: NDArray[np.bool_]) -> slice:
    """Where the structures lie along one axis, with a margin of a quarter (16 at least); all of it without any."""
    found = np.flatnonzero(seen)
    if not found.size:
        return slice(0, seen.size)
    margin = max(16, int(found[-1] - found[0]) // 4)
    return slice(max(0, int(found[0]) - margin), min(seen.size, int(found[-1]) + margin + 1))


def _grey(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    low, high = np.nanpercentile(image, [1, 99])
    scaled = np.nan_to_num((image - low) / max(high - low, 1e-12))
    return (scaled.clip(0, 1) * 255).astype(np.uint8)
