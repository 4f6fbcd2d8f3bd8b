"""From an image to the network's grid and values, and from the network's grid back.

Forth: crop → filters → normalise → resample (nnU-Net's order, filters first so that they see the scanner's values).
Back (labels here, probabilities in `restore`): the prepared grid's affine says where it lies, so the way back needs
nothing but the two geometries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import PixelError
from models.geometry import Geometry
from models.plan import IntTriple, PreparePlan
from tasks.imaging.compose import missing_channels
from tasks.imaging.crop import Box, box_slices, crop_to, nonzero_box, whole_box
from tasks.imaging.normalise import normalise, voxel_by_voxel
from tasks.imaging.resample import resample, resample_to_grid

Float32 = NDArray[np.float32]

ANISOTROPY = 3.0
"""Ratio of spacings beyond which a thick-sliced image takes z by nearest neighbour (nnU-Net's)."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """`array` (c, z, y, x) float32 on `geometry`; `crop` is the part of the original grid that it shows."""

    array: Float32
    geometry: Geometry
    crop: Box


def prepare_image(array: NDArray[Any], geometry: Geometry, plan: PreparePlan) -> PreparedImage:
    """`array` ([c,] z, y, x) as the network wants it. Raises PixelError: not finite, or not the plan's channels.

    2-D plans leave z as it is. With `plan.size` (classification) the image keeps its proportions in the slice: it is
    fitted into the size, smoothed where it shrinks, and padded evenly with its darkest value; z is fitted alone.
    A missing channel (NaN throughout, see `compose`) becomes zeros.
    """
    layout = lay_out(array, geometry, plan)
    channels, crop, target = layout.channels, layout.crop, layout.target
    fitted = layout.inner.resized(_fit(layout.inner, plan.size)) if plan.size else target
    apart = plan.anisotropic or is_thick(layout.inner, fitted)
    result = np.empty((len(channels), *target.shape), np.float32)
    for number, (channel, out, how) in enumerate(zip(channels, result, plan.normalisation, strict=True)):
        if number in layout.missing:
            out[...] = 0
            continue
        part = filtered(crop_to(channel, crop), plan)
        # What needs no look at the whole is done to a few slices at a time, while they are in the cache.
        change = voxel_by_voxel(how) if plan.size is None else None
        values = normalise(part, how) if change is None else part
        if plan.size is None:
            resample(values, target.shape, anisotropic=apart, out=out, change=change)
        else:
            out[...] = values.min()
            goal = out[_padding_slices(fitted.shape, target.shape)]
            goal[...] = resample(values, fitted.shape, anisotropic=apart, antialias=True)
    return PreparedImage(result, target, crop)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a prepared image will lie: `crop` of the original grid is `inner`, and becomes `target`.

    `missing` channels hold nothing.
    """

    channels: NDArray[Any]
    crop: Box
    inner: Geometry
    target: Geometry
    missing: tuple[int, ...] = ()


def lay_out(array: NDArray[Any], geometry: Geometry, plan: PreparePlan) -> Layout:
    """Raises PixelError as `prepare_image` does."""
    channels = array[None] if array.ndim == 3 else array
    if len(channels) != plan.channels:
        raise PixelError(
            f"the image has {len(channels)} channel(s), the plan {plan.channels}",
            hint="narrow the recipe's `images` to one kind of series",
            reason="unexpected-channels",
        )
    missing = missing_channels(channels)
    there = np.delete(channels, missing, axis=0) if missing else channels
    _check_finite(there)
    crop = nonzero_box(there) if plan.crop == "nonzero" else whole_box(geometry.shape)
    inner = geometry.cropped(box_slices(crop))
    return Layout(channels, crop, inner, target_grid(inner, plan), missing)


def filtered(part: NDArray[Any], plan: PreparePlan) -> NDArray[Any]:
    """Some whole slices (z, y, x) of one channel after the plan's filters, each of which works slice by slice."""
    if not plan.steps:
        return part
    # Here, because skimage takes long to load and most recipes filter nothing.
    from tasks.imaging.filters import apply_filters

    return apply_filters(part, plan.steps)


def prepare_mask(
    labels: NDArray[np.uint8], geometry: Geometry, plan: PreparePlan, like: PreparedImage
) -> NDArray[np.uint8]:
    """The label map (z, y, x) on the prepared image's grid, by nearest neighbour; 0 outside.

    `geometry` is the label map's own: the image's, or any other in the same frame of reference.
    """
    return np.asarray(resample_to_grid(labels, geometry, like.geometry, order=0), dtype=np.uint8)


def target_grid(inner: Geometry, plan: PreparePlan) -> Geometry:
    """The prepared grid of a cropped image."""
    if plan.size is not None:
        fitted = inner.resized(_fit(inner, plan.size))
        before, after = _padding(fitted.shape, plan.size)
        return fitted.padded(before, after)
    if plan.spacing is None:
        return inner
    spacing = (inner.spacing[0], *plan.spacing[1:]) if plan.dimensions == 2 else plan.spacing
    return inner.respaced(spacing)


def restore_labels(labels: NDArray[np.uint8], prepared: PreparedImage, original: Geometry) -> NDArray[np.uint8]:
    """A label map on the prepared grid, on the original grid by nearest neighbour; 0 outside the crop."""
    return np.asarray(resample_to_grid(labels, prepared.geometry, original, order=0), dtype=np.uint8)


def _check_finite(channels: NDArray[Any]) -> None:
    if channels.dtype.kind == "f" and not np.isfinite(channels).all():
        raise PixelError("the image holds NaN or infinite values", reason="non-finite-pixels")


def is_thick(inner: Geometry, target: Geometry) -> bool:
    """Whether slices lie so far apart that cubic interpolation across them invents more than it tells."""
    z, y, x = inner.spacing
    return inner.shape[0] != target.shape[0] and z > ANISOTROPY * max(y, x)


def _fit(inner: Geometry, size: IntTriple) -> IntTriple:
    """The largest grid with the image's in-plane proportions (in mm) inside `size`; z is brought to `size` alone."""
    _, height, width = inner.extent
    step = max(height / size[1], width / size[2])
    return size[0], _within(height / step, size[1]), _within(width / step, size[2])


def _within(length: float, limit: int) -> int:
    return min(limit, max(1, round(length)))


def _padding(shape: IntTriple, size: IntTriple) -> tuple[list[int], list[int]]:
    before = [(s - n) // 2 for n, s in zip(shape, size, strict=True)]
    return before, [s - n - b for n, s, b in zip(shape, size, before, strict=True)]


def _padding_slices(shape: IntTriple, size: IntTriple) -> tuple[slice, ...]:
    before, _ = _padding(shape, size)
    return tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
