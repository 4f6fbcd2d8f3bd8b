"""What a cascade's first stage found, as the second is told of it: a map on the second's grid, beside its image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.geometry import Geometry
from tasks.imaging.crop import whole_box
from tasks.imaging.restore import EachAlone, Likeliest, Restorer
from tasks.imaging.sliding import Planes


def told_map(
    bands: Iterable[tuple[int, NDArray[np.float32]]], source: Geometry, target: Geometry, *, regions: bool
) -> NDArray[np.uint8]:
    """The label map, or region map, (z, y, x) on `target` of probabilities on `source`.

    `bands` are (first slice, probabilities (k, n, y, x)), in order and without gaps. Probabilities are interpolated,
    not labels, as nnU-Net does.
    """
    decision = EachAlone() if regions else Likeliest()
    restorer = Restorer(source, whole_box(target.shape), target, decision=decision)
    for first, probabilities in bands:
        restorer.take(first, probabilities)
    return restorer.labels


class Beside:
    """An image with a map as its last channel."""

    def __init__(self, image: Planes, told: NDArray[np.uint8]) -> None:
        self._image, self._told = image, told

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(c + 1, z, y, x)."""
        c, z, y, x = self._image.shape
        return c + 1, z, y, x

    def planes(self, start: int, stop: int) -> Tensor:
        """Slices [start, stop)."""
        image = self._image.planes(start, stop)
        told = torch.from_numpy(self._told[start:stop]).to(image.dtype)
        return torch.cat((image, told[None]))
