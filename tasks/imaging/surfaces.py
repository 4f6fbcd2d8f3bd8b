"""Distances between the surfaces of two masks, mm.

Surface voxels are those of a mask with a face neighbour outside it (mask minus eroded mask, as in MONAI). Two surfaces
of one structure lie mostly a voxel or two apart, so a voxel's nearest neighbour is first looked for at the few nearest
places, in rising order; what is farther off is found in a k-d tree over the surface voxels. Both are exact, and take
time and memory by the surfaces' size where a distance transform takes them by the box's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from models.geometry import Triple

Mask3D = NDArray[np.bool_]
Floats = NDArray[np.float64]
Flat = tuple[bool, bool, bool]
Shell = tuple[float, NDArray[np.intp]]

_REACH = 3
"""Voxels along each axis within which a neighbour is looked for before the tree is asked."""

_TOO_RARE = 1 / 150
"""Below this share of finds a look, the tree is quicker: one look takes that much of a search."""


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the other's surface, mm; in both directions, in no order."""

    truth_to_prediction: Floats
    prediction_to_truth: Floats

    def hausdorff(self, percentile: float = 95.0) -> float:
        """The larger of the two directed percentiles (Metrics Reloaded's HD95)."""
        return float(max(np.percentile(d, percentile) for d in (self.truth_to_prediction, self.prediction_to_truth)))

    def average(self) -> float:
        """Mean over the voxels of both surfaces: the average symmetric surface distance (Metrics Reloaded's ASSD)."""
        total = self.truth_to_prediction.sum() + self.prediction_to_truth.sum()
        return float(total / (self.truth_to_prediction.size + self.prediction_to_truth.size))

    def dice(self, tolerance: float) -> float:
        """Share of both surfaces that lies within `tolerance` mm of the other: normalised surface Dice."""
        # Distances are sums of squares of spacings: without the slack, 2 mm from two 1 mm steps might fall outside.
        limit = tolerance * (1 + 1e-9)
        near = np.count_nonzero(self.truth_to_prediction <= limit) + np.count_nonzero(self.prediction_to_truth <= limit)
        return float(near / (self.truth_to_prediction.size + self.prediction_to_truth.size))


def surface_distances(
    truth: Mask3D, prediction: Mask3D, spacing: Triple, flat: Flat = (False, False, False)
) -> SurfaceDistances:
    """Both directed distances between two non-empty (z, y, x) masks with `spacing` (z, y, x) mm.

    The masks may be cropped to what is in them; `flat` marks the axes along which the whole image has one voxel.
    """
    # With room round them, so that no look from the border ends on the other side.
    ours, theirs = (surface(np.pad(mask, _REACH), flat) for mask in (truth, prediction))
    return SurfaceDistances(_nearest(ours, theirs, spacing), _nearest(theirs, ours, spacing))


def surface(mask: Mask3D, flat: Flat = (False, False, False)) -> Mask3D:
    """Voxels of `mask` with a face neighbour outside; beyond the array all is outside.

    Along a `flat` axis (a 2-D image's) there are no neighbours, else every voxel would be surface.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        if flat[axis]:
            continue
        lines, core = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        core[1:] &= lines[:-1]
        core[:-1] &= lines[1:]
        core[0] = False
        core[-1] = False
    return mask & ~inside


def _nearest(origin: Mask3D, target: Mask3D, spacing: Triple) -> Floats:
    """Distance to the nearest voxel of `target`, for each of `origin`; both empty within `_REACH` of the border."""
    left, there = np.flatnonzero(origin), target.ravel()
    found: list[Floats] = []
    for distance, offsets in _shells(target.shape, spacing):
        hit = there[left + offsets[0]]
        for offset in offsets[1:]:
            hit |= there[left + offset]
        hits = int(np.count_nonzero(hit))
        found.append(np.full(hits, distance))
        left = left[~hit]
        # The first look is at the voxel itself: it says nothing of how far off the others are.
        if not len(left) or (distance and hits < _TOO_RARE * len(offsets) * (len(left) + hits)):
            break
    if len(left):
        step = np.asarray(spacing, dtype=float)
        # Balancing and shrinking the tree would cost more than they save for one round of queries.
        tree = KDTree(_places(np.flatnonzero(there), target.shape, step), 32, balanced_tree=False, compact_nodes=False)
        found.append(tree.query(_places(left, target.shape, step))[0])
    return np.concatenate(found)


def _places(flat: NDArray[np.intp], shape: tuple[int, ...], step: Floats) -> Floats:
    return np.stack(np.unravel_index(flat, shape), axis=1) * step


@lru_cache(maxsize=64)
def _shells(shape: tuple[int, int, int], spacing: Triple) -> tuple[Shell, ...]:
    """Offsets in a flat array of `shape`, together where equally far, nearest first; none nearer is left out."""
    reach = np.arange(-_REACH, _REACH + 1)
    steps = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    offsets = steps @ (shape[1] * shape[2], shape[2], 1)
    near = np.unique(distances[distances < (_REACH + 1) * min(spacing)])
    return tuple((float(distance), offsets[distances == distance]) for distance in near)
