"""From an image to the network's grid and values, and from the network's grid back.

Forth: crop → filters → normalise → resample (nnU-Net's order, filters first so that they see the scanner's values).
Back: the prepared grid's affine says where it lies, so the way back needs nothing but the two geometries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import PixelError
from models.geometry import Geometry
from models.plan import IntTriple, PreparePlan
from tasks.imaging.crop import Box, box_slices, crop_to, nonzero_box, whole_box
from tasks.imaging.normalise import normalise
from tasks.imaging.resample import Order, resample, resample_to_grid

Float32 = NDArray[np.float32]

RESTORE_SLAB_BYTES = 64 << 20
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
    """
    channels = array[None] if array.ndim == 3 else array
    if len(channels) != plan.channels:
        raise PixelError(
            f"the image has {len(channels)} channel(s), the plan {plan.channels}",
            hint="narrow the recipe's `images` to one kind of series",
            reason="unexpected-channels",
        )
    _check_finite(channels)
    crop = nonzero_box(channels) if plan.crop == "nonzero" else whole_box(geometry.shape)
    inner = geometry.cropped(box_slices(crop))
    target = target_grid(inner, plan)
    fitted = inner.resized(_fit(inner, plan.size)) if plan.size else target
    result = np.empty((len(channels), *target.shape), np.float32)
    apart = plan.anisotropic or _is_thick(inner, fitted)
    for channel, out, how in zip(channels, result, plan.normalisation, strict=True):
        part = crop_to(channel, crop)
        if plan.steps:
            # Here, because skimage takes long to load and most recipes filter nothing.
            from tasks.imaging.filters import apply_filters

            part = apply_filters(part, plan.steps)
        values = normalise(part, how)
        if plan.size is None:
            resample(values, target.shape, anisotropic=apart, out=out)
        else:
            out[...] = values.min()
            goal = out[_padding_slices(fitted.shape, target.shape)]
            goal[...] = resample(values, fitted.shape, anisotropic=apart, antialias=True)
    return PreparedImage(result, target, crop)


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


def restore_probabilities(
    probabilities: NDArray[Any],
    prepared: PreparedImage,
    original: Geometry,
    *,
    order: Order = 1,
    slab_bytes: int = RESTORE_SLAB_BYTES,
) -> NDArray[np.uint8]:
    """The likeliest class (0 the background) of each voxel of the original grid; 0 outside the crop.

    `probabilities` (k, z, y, x) lie on the prepared grid; logits do as well. They are interpolated (nnU-Net: linearly)
    a few slices at a time, so that beside them and the result there are about `slab_bytes` in use.
    """
    if prepared.geometry.same_grid(original, tolerance=1e-3):
        return probabilities.argmax(axis=0).astype(np.uint8)
    labels = np.zeros(original.shape, np.uint8)
    inside = box_slices(prepared.crop)
    goal, grid = labels[inside], original.cropped(inside)
    for low, high in _slabs(grid.shape, slab_bytes):
        slab = grid.cropped((slice(low, high), slice(None), slice(None)))
        z0, z1 = _needed(slab, prepared.geometry, margin=2 if order < 3 else 14)
        source = prepared.geometry.cropped((slice(z0, z1), slice(None), slice(None)))
        best: NDArray[Any] | None = None
        for value, channel in enumerate(probabilities):
            seen = resample_to_grid(channel[z0:z1], source, slab, order=order)
            if best is None:
                best = seen
                continue
            more = seen > best
            goal[low:high][more] = value
            np.maximum(best, seen, out=best)
    return labels


def _check_finite(channels: NDArray[Any]) -> None:
    if channels.dtype.kind == "f" and not np.isfinite(channels).all():
        raise PixelError("the image holds NaN or infinite values", reason="non-finite-pixels")


def _is_thick(inner: Geometry, target: Geometry) -> bool:
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


def _slabs(shape: IntTriple, slab_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of slices whose three float32 copies stay below `slab_bytes`."""
    step = max(1, slab_bytes // (3 * 4 * shape[1] * shape[2]))
    for low in range(0, shape[0], step):
        yield low, min(shape[0], low + step)


def _needed(slab: Geometry, grid: Geometry, margin: int) -> tuple[int, int]:
    """Slices of `grid` that interpolation on `slab` looks at."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in slab.shape], indexing="ij")).reshape(3, -1).T
    z = grid.to_index(slab.to_world(corners))[:, 0]
    low = int(np.clip(np.floor(z.min()) - margin, 0, grid.shape[0] - 1))
    return low, int(np.clip(np.ceil(z.max()) + margin + 1, low + 1, grid.shape[0]))
