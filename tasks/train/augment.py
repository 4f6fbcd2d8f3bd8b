"""Augmentation of a whole batch, on its device, with nnU-Net's transforms and order.

First everything is drawn (`draw`), then it is applied without chance (`Draw.apply`). Samples that drew nothing are
left alone. Images are (b, c, z, y, x) or (b, c, y, x), masks the same without c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.plan import FloatTriple
from models.recipe import Augment

_KNOTS = 5  # control points of an elastic deformation, per axis
_AXES = {"z": -3, "y": -2, "x": -1}


@dataclass(frozen=True, slots=True)
class Draw:
    """What each of b samples drew, on the CPU. A 0/1 tensor per transform says who takes part."""

    matrix: Tensor  # (b, d, d) output offset → input offset from the centre, in mm
    offset: Tensor  # (b, d) share of the patch
    bend: Tensor  # (b, d, 5, …) displacement of the control points, voxels
    spatial: Tensor
    bent: Tensor
    flips: Tensor  # (b, axes)
    flip_axes: tuple[str, ...]
    noise: Tensor  # variance, 0 for none; so below
    noise_seed: int
    blur: Tensor  # sigma, voxels
    brightness: Tensor  # factor, 1 for none; so below
    contrast: Tensor
    resolution: Tensor
    gamma_inverted: Tensor
    gamma: Tensor

    def apply(self, images: Tensor, masks: Tensor | None, spacing: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        """New float32 images and masks; `spacing` (mm) of the d axes keeps rotations rigid on uneven grids."""
        images = images.float().clone()
        masks = None if masks is None else masks.clone()
        self._move(images, masks, spacing)
        self._add_noise(images)
        for index in _drawn(self.blur, 0):
            images[index] = _blurred(images[index], float(self.blur[index]))
        self._scale_values(images)
        for index in _drawn(self.resolution, 1):
            images[index] = _coarsened(images[index], float(self.resolution[index]))
        _gamma(images, self.gamma_inverted, inverted=True)
        _gamma(images, self.gamma, inverted=False)
        self._flip(images, masks)
        return images, masks

    def _move(self, images: Tensor, masks: Tensor | None, spacing: Sequence[float]) -> None:
        who = _drawn(self.spatial, 0)
        if not who:
            return
        device, size = images.device, images.shape[2:]
        half = torch.tensor(size, dtype=torch.float32) / 2
        step = torch.tensor(spacing, dtype=torch.float32)
        # From mm to the normalised coordinates of grid_sample, whose axes run x, y, z.
        to_mm = torch.diag(half * step)
        matrix = torch.linalg.solve(to_mm, self.matrix[who] @ to_mm).flip(1, 2)
        theta = torch.cat((matrix, 2 * self.offset[who].flip(1)[..., None]), dim=2)
        grid = functional.affine_grid(theta.to(device), [len(who), 1, *size], align_corners=False)
        if self.bent[who].any():
            grid += self._bends(who, size, device)
        images[who] = functional.grid_sample(images[who], grid, padding_mode="border", align_corners=False)
        if masks is not None:
            moved = functional.grid_sample(
                masks[who][:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
            )
            masks[who] = moved[:, 0].to(masks.dtype)

    def _bends(self, who: list[int], size: Sequence[int], device: torch.device) -> Tensor:
        """(n, …, d) displacements in normalised coordinates, x first; smooth between the control points."""
        mode = "trilinear" if len(size) == 3 else "bicubic"
        field = functional.interpolate(self.bend[who].to(device), tuple(size), mode=mode, align_corners=True)
        scale = 2 / torch.tensor(size, dtype=torch.float32, device=device)
        return (field.movedim(1, -1) * scale).flip(-1)

    def _add_noise(self, images: Tensor) -> None:
        who = _drawn(self.noise, 0)
        if who:
            generator = torch.Generator(images.device).manual_seed(self.noise_seed)
            chosen = images[who]
            noise = torch.randn(chosen.shape, generator=generator, device=images.device)
            images[who] = chosen + noise * _column(self.noise[who].sqrt(), chosen)

    def _scale_values(self, images: Tensor) -> None:
        who = _drawn(self.brightness, 1)
        if who:
            images[who] = images[who] * _column(self.brightness[who], images)
        who = _drawn(self.contrast, 1)
        if who:
            chosen = images[who]
            mean, low, high = _statistics(chosen)
            scaled = (chosen - mean) * _column(self.contrast[who], images) + mean
            images[who] = torch.clamp(scaled, low, high)

    def _flip(self, images: Tensor, masks: Tensor | None) -> None:
        for column, name in enumerate(self.flip_axes):
            who = _drawn(self.flips[:, column], 0)
            if who:
                images[who] = images[who].flip(_AXES[name])
                if masks is not None:
                    masks[who] = masks[who].flip(_AXES[name])


def draw(
    augment: Augment,
    count: int,
    dimensions: int,
    flip_axes: Sequence[str],
    generator: torch.Generator,
    *,
    in_plane: bool = False,
) -> Draw:
    """Parameters for `count` samples; `in_plane` keeps rotation and scaling off the z axis (coarse slices)."""

    def taking_part(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).float()

    def between(bounds: tuple[float, float]) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(count, generator=generator)

    def factor(probability: float, bounds: tuple[float, float]) -> Tensor:
        # Below and above 1 equally often, however lopsided the range.
        low, high = between((min(bounds[0], 1), min(bounds[1], 1))), between((max(bounds[0], 1), max(bounds[1], 1)))
        chosen = low if bounds[1] <= 1 else high if bounds[0] >= 1 else torch.where(between((0, 1)) < 0.5, low, high)
        return torch.where(taking_part(probability) > 0, chosen, torch.ones(count))

    limit = math.radians(augment.rotation_degrees)
    turns = torch.stack([between((-limit, limit)) for _ in range(3)], dim=1) * taking_part(augment.rotation)[:, None]
    if dimensions == 2 or in_plane:
        turns[:, 1:] = 0
    scale = factor(augment.scaling, augment.scaling_range)
    scales = scale[:, None].repeat(1, 3)
    if in_plane:
        scales[:, 0] = 1
    # Scaling up by s looks at 1/s of the input.
    matrix = (_rotation(turns) / scales[:, None, :])[:, 3 - dimensions :, 3 - dimensions :]
    shifted = taking_part(augment.shift)
    offset = torch.stack([between((-1, 1)) for _ in range(dimensions)], 1) * augment.shift_fraction * shifted[:, None]
    bent = taking_part(augment.elastic) * float(augment.elastic_magnitude > 0)
    shape = (count, dimensions, *[_KNOTS] * dimensions)
    bend = (
        (2 * torch.rand(shape, generator=generator) - 1) * augment.elastic_magnitude * _column(bent, torch.empty(shape))
    )
    moved = (turns != 0).any(1) | (scale != 1) | (offset != 0).any(1) | (bent > 0)
    return Draw(
        matrix=matrix,
        offset=offset,
        bend=bend,
        spatial=moved.float(),
        bent=bent,
        flips=torch.stack([taking_part(0.5) for _ in flip_axes], 1) if flip_axes else torch.zeros(count, 0),
        flip_axes=tuple(flip_axes),
        noise=taking_part(augment.noise) * between((0, augment.noise_variance)),
        noise_seed=int(torch.randint(2**31 - 1, (1,), generator=generator)),
        blur=taking_part(augment.blur) * between(augment.blur_sigma),
        brightness=factor(augment.brightness, augment.brightness_range),
        contrast=factor(augment.contrast, augment.contrast_range),
        resolution=factor(augment.low_resolution, augment.low_resolution_range),
        gamma_inverted=factor(augment.gamma_inverted, augment.gamma_range),
        gamma=factor(augment.gamma, augment.gamma_range),
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
    dimensions = images.ndim - 2
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(augment, len(images), dimensions, flip_axes, generator, in_plane=in_plane)
    return drawn.apply(images, masks, spacing[3 - dimensions :])


def _drawn(values: Tensor, neutral: float) -> list[int]:
    return torch.nonzero(values != neutral).flatten().tolist()


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(n,) → (n, 1, …) on the device of `like`."""
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, least and greatest value per sample and channel."""
    axes = tuple(range(2, images.ndim))
    return images.mean(axes, keepdim=True), images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)


def _rotation(turns: Tensor) -> Tensor:
    """(n, 3) angles about z, y and x → (n, 3, 3) acting on (z, y, x)."""
    result = torch.eye(3).repeat(len(turns), 1, 1)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosine, sine = turns[:, axis].cos(), turns[:, axis].sin()
        one = torch.eye(3).repeat(len(turns), 1, 1)
        one[:, first, first], one[:, first, second] = cosine, -sine
        one[:, second, first], one[:, second, second] = sine, cosine
        result = result @ one
    return result


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """(c, …) through a separable Gaussian."""
    radius = max(1, math.ceil(3 * sigma))
    steps = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    for axis in range(1, image.ndim):
        moved = image.movedim(axis, -1)
        lines = moved.reshape(1, -1, moved.shape[-1])
        padded = functional.pad(lines, (radius, radius), mode="replicate")[0][:, None]
        image = functional.conv1d(padded, weights.view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return image


def _coarsened(image: Tensor, factor: float) -> Tensor:
    """(c, …) brought down to `factor` of its size and back up."""
    size = image.shape[1:]
    small = [max(1, round(n * factor)) for n in size]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    low = functional.interpolate(image[None], small, mode="nearest-exact")
    return functional.interpolate(low, tuple(size), mode=mode, align_corners=False)[0]


def _gamma(images: Tensor, exponents: Tensor, *, inverted: bool) -> None:
    """x → x^γ between the least and greatest value, mean and spread kept."""
    who = _drawn(exponents, 1)
    if not who:
        return
    sign = -1.0 if inverted else 1.0
    chosen = sign * images[who]
    axes = tuple(range(2, chosen.ndim))
    mean, low, high = _statistics(chosen)
    spread = chosen.std(axes, keepdim=True)
    extent = (high - low).clamp_min(1e-7)
    bent = ((chosen - low) / extent).pow(_column(exponents[who], chosen))
    bent_mean, _, _ = _statistics(bent)
    restored = (bent - bent_mean) / bent.std(axes, keepdim=True).clamp_min(1e-7) * spread + mean
    images[who] = sign * restored
