"""Distances between the surfaces of two masks, mm.

Surface voxels are those of a mask with a face neighbour outside it (mask minus eroded mask, as in MONAI). Nearest
neighbours are found in a k-d tree over the surface voxels: exact, quicker than a distance transform of the joint
bounding box for all but the most ragged masks, and its memory follows the surfaces instead of the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from models.geometry import Triple

Mask3D = NDArray[np.bool_]
Floats = NDArray[np.float64]
Flat = tuple[bool, bool, bool]


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the other's surface, mm; in both directions."""

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
    ours, theirs = surface(truth, flat), surface(prediction, flat)
    step = np.asarray(spacing, dtype=float)
    return SurfaceDistances(_nearest(ours, theirs, step), _nearest(theirs, ours, step))


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


def _nearest(origin: Mask3D, target: Mask3D, step: Floats) -> Floats:
    """Distance to the nearest voxel of `target`, for each of `origin`; the shared ones need no search."""
    shared = int(np.count_nonzero(origin & target))
    apart = np.argwhere(origin & ~target) * step
    if not len(apart):
        return np.zeros(shared)
    # Balancing and shrinking the tree would cost more than they save for one round of queries.
    tree = KDTree(np.argwhere(target) * step, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.concatenate([np.zeros(shared), tree.query(apart)[0]])
