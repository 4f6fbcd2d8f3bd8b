"""What an augmentation made of an image, in a few numbers. Standard library and numpy: scripts of other environments
use it too."""

from __future__ import annotations

import numpy as np

NAMES = (
    "mean of intensities",
    "standard deviation of intensities",
    "5th percentile",
    "median",
    "95th percentile",
    "mean change of a voxel",
    "share of voxels with another label",
    "label volume, × the original's",
)


def moments(image: np.ndarray, mask: np.ndarray, after: np.ndarray, after_mask: np.ndarray) -> list[float]:
    """One number for each of `NAMES`; all arrays of one shape."""
    low, middle, high = np.percentile(after, (5, 50, 95))
    found = (
        after.mean(),
        after.std(),
        low,
        middle,
        high,
        np.abs(after - image).mean(),
        (after_mask != mask).mean(),
        (after_mask > 0).sum() / (mask > 0).sum(),
    )
    return [round(float(value), 5) for value in found]
