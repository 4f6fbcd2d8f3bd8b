"""On which grid a cohort is learnt: spacing, dimensions, input size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.errors import RecipeError
from models.networks import NETWORKS
from models.plan import Fingerprint, FloatTriple, IntTriple
from models.recipe import Recipe

ANISOTROPY = 3.0
FEW_SLICES = 12
CPU_VOXELS = 2_500_000
"""Median case that a CPU is asked to learn from."""
LONGEST_SIDE = {("cpu", 2): 128, ("cuda", 2): 256, ("cpu", 3): 64, ("cuda", 3): 128}

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The cohort's spacing (z, y, x) mm, its median case's shape on it, and what was decided on the way."""

    dimensions: Literal[2, 3]
    spacing: FloatTriple
    median: IntTriple
    notes: tuple[str, ...] = ()

    @property
    def anisotropic(self) -> bool:
        """Whether z is taken apart: slices lie more than three pixels apart."""
        return self.spacing[0] > ANISOTROPY * max(self.spacing[1:])


def choose_grid(recipe: Recipe, fingerprint: Fingerprint, device: Device) -> Grid:
    """nnU-Net's full-resolution spacing, coarser on a CPU where cases are large; two dimensions for lone slices."""
    notes = []
    if recipe.preprocess.spacing == "auto":
        spacing = target_spacing(fingerprint)
        notes.append(f"spacing {_mm(spacing)} mm: the training cases' median (nnU-Net)")
    else:
        spacing = recipe.preprocess.spacing
        notes.append(f"spacing {_mm(spacing)} mm: given")
    median = median_shape(fingerprint, spacing)
    dimensions, why = _dimensions(recipe, spacing, median)
    notes.append(why)
    if recipe.preprocess.spacing == "auto" and device == "cpu" and dimensions == 3:
        coarser = _coarsened(fingerprint, spacing)
        if coarser != spacing:
            spacing, median = coarser, median_shape(fingerprint, coarser)
            notes.append(
                f"coarsened to {_mm(spacing)} mm: a CPU learns more from whole organs at {_x(median)} voxels than "
                "from small pieces at full resolution; give preprocess.spacing to decide otherwise"
            )
    return Grid(dimensions, spacing, median, tuple(notes))


def target_spacing(fingerprint: Fingerprint) -> FloatTriple:
    """The median, but for a thick axis of few voxels its 10th percentile, never finer than the other axes."""
    spacings = np.array([c.spacing for c in fingerprint.cases])
    target = np.median(spacings, axis=0)
    size = np.median([c.cropped_shape for c in fingerprint.cases], axis=0)
    worst = int(target.argmax())
    others = [a for a in range(3) if a != worst]
    if target[worst] > ANISOTROPY * target[others].max() and size[worst] * ANISOTROPY < size[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), float(target[others].max()))
    return _steady(target)


def median_shape(fingerprint: Fingerprint, spacing: FloatTriple) -> IntTriple:
    """Of the cropped cases, once on `spacing`."""
    shapes = [
        [max(1, round(n * old / new)) for n, old, new in zip(c.cropped_shape, c.spacing, spacing, strict=True)]
        for c in fingerprint.cases
    ]
    z, y, x = (max(1, round(n)) for n in np.median(shapes, axis=0))
    return z, y, x


def choose_size(recipe: Recipe, fingerprint: Fingerprint, grid: Grid, device: Device) -> tuple[IntTriple, str]:
    """Classification's input: the median picture, its longest side bounded; and why."""
    if recipe.preprocess.size != "auto":
        return recipe.preprocess.size, f"input {_x(recipe.preprocess.size)}: given"
    if recipe.preprocess.spacing != "auto":
        return grid.median, f"input {_x(grid.median)}: the median case at the given spacing"
    z, y, x = (float(n) for n in np.median([c.cropped_shape for c in fingerprint.cases], axis=0))
    limit = LONGEST_SIDE[device, grid.dimensions]
    factor = min(1.0, limit / max(y, x))
    plane = [round(n) if factor == 1 else max(4, 4 * round(n * factor / 4)) for n in (y, x)]
    depth = 1 if grid.dimensions == 2 else max(1, min(limit, round(z)))
    size = (depth, plane[0], plane[1])
    why = "the median image's own" if factor == 1 else f"the median image's proportions within {limit} on this device"
    return size, f"input {_x(size)}: {why}"


def _dimensions(recipe: Recipe, spacing: FloatTriple, median: IntTriple) -> tuple[Literal[2, 3], str]:
    wanted = recipe.network.dimensions
    if wanted == 3 and median[0] == 1:
        raise RecipeError(
            "a 3-D network needs volumes, these are single slices",
            where="network.dimensions",
            hint="leave it out or give 2",
        )
    if wanted != "auto":
        return wanted, f"{wanted}-D: given"
    if median[0] == 1:
        return 2, "2-D: the images are single slices"
    named = NETWORKS.get(recipe.network.name)
    if named is not None and named.dimensions == {3}:
        return 3, f"3-D: {recipe.network.name} looks at volumes"
    if spacing[0] > ANISOTROPY * max(spacing[1:]) and median[0] < FEW_SLICES:
        return 2, f"2-D: {median[0]} slices, {spacing[0] / max(spacing[1:]):.1f} pixels apart, hardly inform each other"
    return 3, "3-D: the images are volumes"


def _coarsened(fingerprint: Fingerprint, spacing: FloatTriple) -> FloatTriple:
    """Finest axes first, as for nnU-Net's low resolution, until the median case is one that a CPU manages."""
    grown = np.array(spacing)
    while math.prod(median_shape(fingerprint, (grown[0], grown[1], grown[2]))) > CPU_VOXELS:
        fine = grown.max() / grown > 1.5
        grown[fine if fine.any() else slice(None)] *= 1.05
    return spacing if (grown == spacing).all() else _steady(grown)


def _steady(spacing: np.ndarray) -> FloatTriple:
    """Three digits, so that a night's new cases seldom move it and prepared arrays stay valid."""
    z, y, x = (float(f"{s:.3g}") for s in spacing)
    return z, y, x


def _mm(spacing: FloatTriple) -> str:
    return " × ".join(f"{s:g}" for s in spacing)


def _x(shape: IntTriple) -> str:
    return " × ".join(map(str, shape))
