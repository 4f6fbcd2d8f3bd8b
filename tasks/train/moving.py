"""An image and its mask seen through an affine map, bent or not: linear for the image, nearest for the mask.

What lies outside continues the border. Positions are voxels counted from the middle of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_SLAB = 1 << 18  # voxels at a time: what is computed on the way stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Motion:
    """Where each voxel of d axes is looked up: `matrix` (d, d) @ its offset from the middle, plus `offset` (d,).

    `bend` (d, knots, …) moves the control points of an elastic deformation; all in voxels.
    """

    matrix: Tensor
    offset: Tensor
    bend: Tensor | None = None

    def places(self, size: Sequence[int]) -> _Places:
        """Of a whole patch."""
        return _Places(self, tuple(size))


class _Places:
    """Coordinates of every voxel, each the sum of one term per axis, so that few need be multiplied out."""

    def __init__(self, motion: Motion, size: tuple[int, ...]) -> None:
        device, first, inner = motion.matrix.device, size[0], size[1:]
        along = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in size]
        middle = (torch.tensor(size, dtype=torch.float32, device=device) - 1) / 2 + motion.offset
        self._plane, self._line = [], []
        for axis, row in enumerate(motion.matrix):
            plane = middle[axis].expand(inner)
            for other, n in enumerate(inner, start=1):
                shape = [n if other == a else 1 for a in range(1, len(size))]
                plane = plane + (row[other] * along[other]).view(shape)
            self._plane.append(plane)
            self._line.append((row[0] * along[0]).view(first, *[1] * len(inner)))
        self._field = None if motion.bend is None else _field(motion.bend, size)

    def along(self, axis: int, slab: slice) -> Tensor:
        """Coordinates on one axis, voxels from the first, of a slab (n, …) of the patch. The caller's to change."""
        found = self._plane[axis] + self._line[axis][slab]
        return found if self._field is None else found.add_(self._field[axis][slab])


def _field(bend: Tensor, size: tuple[int, ...]) -> Tensor:
    """(d, …) displacements, smooth between the control points."""
    mode = "trilinear" if len(size) == 3 else "bicubic"
    return functional.interpolate(bend[None], size, mode=mode, align_corners=True)[0]


def move(motion: Motion, image: Tensor, mask: Tensor | None, out: Tensor, out_mask: Tensor | None) -> None:
    """Write what is seen of `image` (c, …) and `mask` (…) to `out` and `out_mask`; all on one device, float32."""
    places = motion.places(image.shape[1:])
    if image.ndim == 4 and image.device.type == "cpu" and min(image.shape[1:]) > 1:
        _move_slabs(places, image.contiguous(), mask, out, out_mask)
        return
    whole, size = slice(None), image.shape[1:]
    axes = [places.along(axis, whole).mul_(2 / n).add_(1 / n - 1) for axis, n in enumerate(size)]
    grid = torch.stack(axes[::-1]).movedim(0, -1)[None]  # planes: the two-dimensional kernel reads them faster
    out.copy_(_sampled(image[None], grid, "bilinear")[0])
    if mask is not None and out_mask is not None:
        out_mask.copy_(_sampled(mask[None, None].float(), grid, "nearest")[0, 0])


def _sampled(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(image, grid, mode, padding_mode="border", align_corners=False)


def _move_slabs(places: _Places, image: Tensor, mask: Tensor | None, out: Tensor, out_mask: Tensor | None) -> None:
    """Three dimensions by torch's two-dimensional kernel, which is vectorised where the other is not: six times faster.

    The slices, one below the other, are a tall picture. A second channel is the same memory one slice on, and between
    the two channels lies what is between the slices.
    """
    depth, height, width = image.shape[1:]
    pair = [_Tall(c.as_strided((2, (depth - 1) * height, width), (height * width, width, 1))) for c in image]
    label = None if mask is None else _Tall(mask.float().reshape(1, depth * height, width))
    edge = 1e-7 * depth * height  # what rounding may shift a row by: never into the next slice
    step = max(1, _SLAB // (height * width))
    for first in range(0, depth, step):
        slab = slice(first, min(first + step, depth))
        z = places.along(0, slab).clamp_(0, depth - 1)
        y = places.along(1, slab).clamp_(edge, height - 1 - edge)
        grid = torch.empty((2, *z.shape))
        torch.mul(places.along(2, slab), 2 / (width - 1), out=grid[0]).sub_(1)
        if label is not None and out_mask is not None:
            out_mask[slab] = label.rows(grid, y, z.round(), height, "nearest")[:, 0]
        upper = z.floor().clamp_(max=depth - 2)
        z.sub_(upper)
        for channel, tall in enumerate(pair):
            both = tall.rows(grid, y, upper, height, "bilinear")
            torch.lerp(both[:, 0], both[:, 1], z, out=out[channel, slab])


@dataclass(frozen=True, slots=True)
class _Tall:
    """(k, slices · height, width)."""

    picture: Tensor

    def rows(self, grid: Tensor, y: Tensor, slices: Tensor, height: int, mode: str) -> Tensor:
        """(n, k, …) at the columns of `grid` (2, n, …) and row `y` of each of the `slices`; `grid` is written to."""
        torch.add(y, slices, alpha=height, out=grid[1]).mul_(2 / (self.picture.shape[1] - 1)).sub_(1)
        many = self.picture.expand(grid.shape[1], *self.picture.shape)
        return functional.grid_sample(many, grid.movedim(0, -1), mode, padding_mode="border", align_corners=True)
