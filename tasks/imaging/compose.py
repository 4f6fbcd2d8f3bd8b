"""Several series of a study as the channels of one image, on the grid of the first.

A partner is smoothed where it is finer than that grid, then interpolated linearly: neither aliases nor overshoots
(a cubic spline makes activity below zero beside a bright bladder). Beyond its field it has its darkest value, air in
CT and nothing in PET and MR. A channel that is missing is NaN throughout, and so becomes zeros after normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import GeometryError, NocturneError, PixelError
from models.geometry import Geometry
from models.hashing import content_key
from models.volume import Volume
from tasks.imaging.resample import resample_to_grid

Float32 = NDArray[np.float32]
Registration = Literal["none", "rigid"]

_MARGIN = 4  # voxels round the part of a partner that is looked at
_FINER = 1.05
"""Ratio of spacings from which on a partner is smoothed."""


class _Readable(Protocol):
    def read(self) -> Volume: ...


class Library(Protocol):
    """What of the volume store is needed."""

    def open(self, key: str) -> _Readable:
        """A handle on a volume."""
        ...


class Memory(Protocol):
    """Keeps what was found out about two volumes: plain values, by content key."""

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept, or None."""
        ...

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep it."""
        ...


def read_case(
    library: Library, volume: str, partners: Sequence[str], registration: Registration, memory: Memory
) -> Volume:
    """The reference and its partners ("" where one is missing) as one image (c, z, y, x) float32.

    Without partners it is the volume as stored. Raises NotFoundError, IntegrityError, and as `compose`; BadInputError
    where the registration is refused.
    """
    reference = library.open(volume).read()
    if not partners:
        return reference
    others: list[Volume | None] = []
    for key in partners:
        other = library.open(key).read() if key else None
        if other is not None and registration == "rigid":
            other = _registered(reference, other, (volume, key), memory)
        others.append(other)
    return compose(reference, others)


def compose(reference: Volume, partners: Sequence[Volume | None]) -> Volume:
    """Raises PixelError for a colour series or values that are not finite, GeometryError where a partner lies
    wholly beyond the reference."""
    grid = reference.geometry
    array = np.empty((1 + len(partners), *grid.shape), np.float32)
    array[0] = _grey(reference)
    for out, partner in zip(array[1:], partners, strict=True):
        out[...] = np.nan if partner is None else _on_grid(partner, grid)
    return replace(reference, array=array)


def missing_channels(array: NDArray[Any]) -> tuple[int, ...]:
    """The channels of (c, z, y, x) that are missing; the first never is."""
    if array.ndim == 3 or array.dtype.kind != "f":
        return ()
    # One voxel tells the few that may be missing from all others.
    return tuple(c for c in range(1, len(array)) if np.isnan(array[c, 0, 0, 0]) and np.isnan(array[c]).all())


def _on_grid(partner: Volume, grid: Geometry) -> Float32:
    values, geometry = _grey(partner), partner.geometry
    darkest = float(values.min())
    box = _reached(geometry, grid)
    if box is None:
        raise GeometryError(
            "a channel's series shows another part of the body than the reference",
            hint="see `images.channels` in the recipe, or what was sent",
            reason="channels-apart",
        )
    values, geometry = values[box], geometry.cropped(box)
    values = _smoothed(values, geometry, grid)
    return np.asarray(resample_to_grid(values, geometry, grid, order=1, fill=darkest), np.float32)


def _grey(volume: Volume) -> NDArray[Any]:
    if volume.channels > 1:
        raise PixelError("a colour series cannot be one channel", reason="colour")
    array = volume.array if volume.array.ndim == 3 else volume.array[0]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PixelError("the image holds NaN or infinite values", reason="non-finite-pixels")
    return array


def _reached(geometry: Geometry, grid: Geometry) -> tuple[slice, slice, slice] | None:
    """The part of `geometry` that lies round `grid`, or None where none does."""
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij")).reshape(3, -1).T
    index = geometry.to_index(grid.to_world(ends))
    low, high = index.min(axis=0), index.max(axis=0)
    if (high < -0.5).any() or (low > np.asarray(geometry.shape) - 0.5).any():
        return None
    first = np.clip(np.floor(low).astype(int) - _MARGIN, 0, np.asarray(geometry.shape) - 1)
    last = np.clip(np.ceil(high).astype(int) + _MARGIN + 1, first + 1, geometry.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return z, y, x


def _smoothed(values: NDArray[Any], geometry: Geometry, grid: Geometry) -> Float32:
    """A Gaussian of σ = (ratio of spacings − 1)/2 along each axis that is finer, as where pictures are made smaller."""
    smooth = np.asarray(values, np.float32)
    # How far the grid's steps reach along each of the partner's axes.
    steps = np.abs(np.linalg.inv(geometry.matrix[:3, :3]) @ grid.matrix[:3, :3]).max(axis=1)
    for axis, step in enumerate(steps):
        if step > _FINER and smooth.shape[axis] > 1:
            smooth = ndimage.gaussian_filter1d(smooth, (float(step) - 1) / 2, axis=axis, mode="nearest")
    return smooth


def _registered(reference: Volume, other: Volume, keys: tuple[str, str], memory: Memory) -> Volume:
    """The other series where it lies in the reference's world; searched once for each pair, refusals too."""
    # Here, because SimpleITK takes long to load and few recipes register.
    from models import errors
    from tasks.imaging.registration import VERSION, Rigid, register

    key = content_key("rigid", VERSION, *keys)
    known = memory.get(key)
    if known is None:
        try:
            known = {"rigid": register(reference, other).to_json()}
        except errors.BadInputError as error:
            known = {"what": error.what, "hint": error.hint or "", "reason": error.reason}
        memory.put(key, known)
    if "rigid" not in known:
        raise _refused(known)
    rigid = Rigid.from_json(known["rigid"])
    return replace(other, geometry=rigid.on_reference(other.geometry, reference.geometry))


def _refused(known: dict[str, Any]) -> NocturneError:
    return GeometryError(known["what"], hint=known["hint"] or None, reason=known["reason"])
