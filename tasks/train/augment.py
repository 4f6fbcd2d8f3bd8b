"""Augmentation of a whole batch, on its device: nnU-Net's transforms, in its order, drawn as batchgeneratorsv2 does.

First everything is drawn (`draw`), then it is applied without chance (`Draw.apply`). Samples that drew nothing are
left alone. Images are (b, c, z, y, x) or (b, c, y, x), masks the same without c.

As there, `noise_variance` bounds a standard deviation and `scaling_range` the share of the patch that is looked at
(above 1: things become smaller); channels draw their own values; and of a sample that is blurred or coarsened every
other channel is. Other than there, rotations are rigid in mm, and what lies outside the patch continues its border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.plan import FloatTriple
from models.recipe import Augment
from tasks.train.moving import Motion, move
from tasks.train.values import blur, coarsen, contrast, gamma

_KNOTS = 5  # control points of an elastic deformation, per axis
_PER_CHANNEL = 0.5  # how often a channel takes part where its sample is blurred or coarsened
_AXES = {"z": -3, "y": -2, "x": -1}


@dataclass(frozen=True, slots=True)
class Draw:
    """What each of b samples of c channels and d axes drew, on the CPU."""

    matrix: Tensor  # (b, d, d) output offset → input offset from the centre, in mm
    offset: Tensor  # (b, d) share of the patch
    bend: Tensor  # (b, d, 5, …) displacement of the control points, voxels
    spatial: Tensor  # (b,) whether any of these acts; so below
    bent: Tensor
    flips: Tensor  # (b, axes)
    flip_axes: tuple[str, ...]
    noise: Tensor  # (b,) standard deviation, 0 for none
    noise_seed: int
    blur: Tensor  # (b, c, d) sigma in voxels, 0 for none
    brightness: Tensor  # (b, c) factor, 1 for none; so below
    contrast: Tensor
    resolution: Tensor
    gamma_inverted: Tensor
    gamma: Tensor
    in_plane: bool = False

    def apply(self, images: Tensor, masks: Tensor | None, spacing: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """New float32 images and masks; `spacing` (mm) of the d axes keeps rotations rigid on uneven grids."""
        result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        moved = None if masks is None else torch.empty_like(masks)
        noise = torch.Generator(images.device).manual_seed(self.noise_seed)
        for index, (image, out) in enumerate(zip(images, result, strict=True)):
            mask, out_mask = (None, None) if masks is None or moved is None else (masks[index], moved[index])
            self._place(index, image, mask, out, out_mask, spacing)
            if self.noise[index] > 0:
                drawn = torch.randn(out.shape, generator=noise, device=out.device)
                out.add_(drawn, alpha=float(self.noise[index]))
            for number, channel in enumerate(out):
                self._change(index, number, channel)
        return result, moved

    def _place(
        self,
        index: int,
        image: Tensor,
        mask: Tensor | None,
        out: Tensor,
        out_mask: Tensor | None,
        spacing: Sequence[float],
    ) -> None:
        """Moved, or copied; mirrored on the way, which nothing that follows depends on."""
        axes = [_AXES[n] for n, there in zip(self.flip_axes, self.flips[index].tolist(), strict=True) if there]
        if self.spatial[index]:
            motion = self._motion(index, image.shape[1:], axes, spacing, image.device)
            move(motion, image.float(), mask, out, out_mask)
            return
        out.copy_(image.flip(axes) if axes else image)
        if mask is not None and out_mask is not None:
            out_mask.copy_(mask.flip(axes) if axes else mask)

    def _motion(
        self, index: int, size: Sequence[int], mirrored: Sequence[int], spacing: Sequence[float], device: torch.device
    ) -> Motion:
        step = torch.tensor(spacing, dtype=torch.float32)
        matrix = self.matrix[index] * step / step[:, None]  # from voxels to mm, and from mm to voxels
        matrix[:, list(mirrored)] *= -1
        offset = self.offset[index] * torch.tensor(size)
        bend = self.bend[index].to(device) if self.bent[index] else None
        return Motion(matrix.to(device), offset.to(device), bend)

    def _change(self, index: int, number: int, channel: Tensor) -> None:
        """The values of one channel."""
        place = index, number
        sigmas: list[float] = self.blur[place].tolist()
        if any(sigmas):
            blur(channel, sigmas)
        brightness, contrasted, resolution, inverted, exponent = (
            float(values[place])
            for values in (self.brightness, self.contrast, self.resolution, self.gamma_inverted, self.gamma)
        )
        if brightness != 1:
            channel.mul_(brightness)
        if contrasted != 1:
            contrast(channel, contrasted)
        if resolution != 1:
            coarsen(channel, resolution, in_plane=self.in_plane)
        if inverted != 1:
            gamma(channel, inverted, inverted=True)
        if exponent != 1:
            gamma(channel, exponent, inverted=False)


def draw(
    augment: Augment,
    count: int,
    dimensions: int,
    flip_axes: Sequence[str],
    generator: torch.Generator,
    *,
    channels: int = 1,
    in_plane: bool = False,
) -> Draw:
    """Parameters for `count` samples; `in_plane` keeps rotation, scaling and coarsening off the z axis (few slices)."""

    def chance(probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < probability

    def between(bounds: tuple[float, float], *shape: int) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)

    def factor(probability: float, bounds: tuple[float, float]) -> Tensor:
        # Below and above 1 equally often, however lopsided the range.
        shape, (low, high) = (count, channels), bounds
        below = chance(1.0 if high <= 1 else 0.0 if low >= 1 else 0.5, *shape)
        lower, upper = between((low, min(high, 1)), *shape), between((max(low, 1), high), *shape)
        return torch.where(chance(probability, count, 1), torch.where(below, lower, upper), 1.0)

    limit = math.radians(augment.rotation_degrees)
    turns = between((-limit, limit), count, 3) * chance(augment.rotation, count, 1)
    if dimensions == 2 or in_plane:
        turns[:, 1:] = 0
    scales = torch.where(chance(augment.scaling, count), between(augment.scaling_range, count), 1.0)
    scaled = scales[:, None].repeat(1, 3)
    if in_plane:
        scaled[:, 0] = 1
    offset = between((-1, 1), count, dimensions) * augment.shift_fraction * chance(augment.shift, count, 1)
    bent = chance(augment.elastic, count) & (augment.elastic_magnitude > 0)
    knots = between((-1, 1), count, dimensions, *[_KNOTS] * dimensions) * augment.elastic_magnitude
    blurred = chance(augment.blur, count, 1) & chance(_PER_CHANNEL, count, channels)
    coarsened = chance(augment.low_resolution, count, 1) & chance(_PER_CHANNEL, count, channels)
    return Draw(
        matrix=(_rotation(turns) * scaled[:, None, :])[:, 3 - dimensions :, 3 - dimensions :],
        offset=offset,
        bend=knots * bent.view(-1, *[1] * (dimensions + 1)),
        spatial=(turns != 0).any(1) | (scales != 1) | (offset != 0).any(1) | bent,
        bent=bent,
        flips=chance(0.5, count, len(flip_axes)),
        flip_axes=tuple(flip_axes),
        noise=between((0, augment.noise_variance), count) * chance(augment.noise, count),
        noise_seed=int(torch.randint(2**31 - 1, (1,), generator=generator)),
        blur=between(augment.blur_sigma, count, channels, dimensions) * blurred[..., None],
        brightness=factor(augment.brightness, augment.brightness_range),
        contrast=factor(augment.contrast, augment.contrast_range),
        resolution=torch.where(coarsened, between(augment.low_resolution_range, count, channels), 1.0),
        gamma_inverted=factor(augment.gamma_inverted, augment.gamma_range),
        gamma=factor(augment.gamma, augment.gamma_range),
        in_plane=in_plane,
    )


def augmented(
    images: Tensor,
    masks: Tensor | None,
    augment: Augment,
    flip_axes: Sequence[str],
    seed: int,
    spacing: FloatTriple = (1.0, 1.0, 1.0),
    *,
    in_plane: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`draw` and `apply` in one, all from `seed`."""
    count, channels, dimensions = len(images), images.shape[1], images.ndim - 2
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(augment, count, dimensions, flip_axes, generator, channels=channels, in_plane=in_plane)
    return drawn.apply(images, masks, spacing[3 - dimensions :])


def _rotation(turns: Tensor) -> Tensor:
    """(n, 3) angles about z, y and x, one after the other → (n, 3, 3) acting on (z, y, x)."""
    result = torch.eye(3).repeat(len(turns), 1, 1)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosine, sine = turns[:, axis].cos(), turns[:, axis].sin()
        one = torch.eye(3).repeat(len(turns), 1, 1)
        one[:, first, first], one[:, first, second] = cosine, -sine
        one[:, second, first], one[:, second, second] = sine, cosine
        result = one @ result
    return result
