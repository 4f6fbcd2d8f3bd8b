"""The boundary loss (Kervadec et al., MIDL 2019): probabilities weighed by how far they lie from the true border."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor


def boundary(logits: Tensor, targets: Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Mean over voxels and foreground classes of p · φ, φ being the signed distance to the class's border.

    φ is negative inside, in shares of the patch's diagonal, so that the loss lies in [−1, 1] whatever the patch's size;
    `spacing` (z, y, x) is the voxels'. A class that a patch does not show weighs nothing there. It goes with an overlap
    loss: alone, it starts with next to no gradient where it matters.
    """
    probabilities = logits.softmax(1)[:, 1:]
    masks = targets.cpu().numpy()
    step = [float(s) for s in spacing[-(targets.ndim - 1) :]]
    maps = np.stack([[signed_distance(mask == c, step) for c in range(1, logits.shape[1])] for mask in masks])
    return (probabilities * torch.from_numpy(maps).to(logits.device)).mean()


def signed_distance(inside: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
    """To the border of `inside`, negative within, as a share of the diagonal; zeros where there is no border."""
    if inside.all() or not inside.any():
        return np.zeros(inside.shape, np.float32)
    outer = ndimage.distance_transform_edt(~inside, spacing)
    inner = ndimage.distance_transform_edt(inside, spacing)
    # Voxels' centres lie half a voxel off the border on either side of it.
    half = min(spacing) / 2
    signed = np.where(inside, half - inner, outer - half)
    diagonal = float(np.linalg.norm(np.multiply(inside.shape, spacing)))
    return (signed / diagonal).astype(np.float32)
