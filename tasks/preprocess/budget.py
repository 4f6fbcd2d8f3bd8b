"""How large a network, patch and batch the memory and the minutes at hand can pay for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from models.errors import RecipeError
from models.plan import IntTriple
from models.recipe import Recipe
from tasks.preprocess.grids import Device, Grid
from tasks.preprocess.topology import (
    REFERENCE_BATCH,
    REFERENCE_ELEMENTS,
    REFERENCE_GB,
    Topology,
    feature_elements,
    first_patch,
    pooled,
    shrunk,
    training_flops,
    widths,
)

CPU_FLOPS_PER_CORE = 60e9
GPU_FLOPS = 10e12
"""Sustained in training small U-Nets (measured: 20–100 GFLOP/s a CPU core, by width and load)."""
TRAINING_SHARE = 0.8
"""Of the minutes; the rest goes to validation, checkpoints and start-up."""
CPU_ELEMENT_COST = 2.0
"""A CPU keeps float32 where nnU-Net's reference keeps half precision."""
STEPS_BEFORE_BATCH = 1000
"""A larger batch is worth its time once there are this many steps."""
SHARE_OF_DATA = 0.05
LARGE_PATCH = 64**3
SMALL_PATCH = 24**3
LEAST_PATCH = {2: 32**2, 3: 16**3}
"""Smaller pieces of a larger image show no anatomy."""
WANTED = {32: 8000, 16: 600, 8: 300}
"""Patches that a network of that width should see to be worth it (base channels → patches): on hippocampi base 16
has Dice 0.86 after 320 of them."""
WANTED_EPOCHS = 20
CLASSIFIER_BASES = (64, 48, 32, 24, 16, 8)


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is to spend. `seconds` is None where epochs alone bound the training."""

    device: Device
    memory_gb: float
    seconds: float | None
    cores: int

    @classmethod
    def of(cls, recipe: Recipe, memory_gb: float, device: Device, cores: int | None) -> Budget:
        """The recipe's minutes on this device."""
        minutes = recipe.train.limit_minutes
        seconds = None if minutes is None else minutes * 60 * TRAINING_SHARE
        return cls(device, memory_gb, seconds, cores or os.cpu_count() or 1)

    def patches(self, flops: float) -> float:
        """How many training patches of that cost the time allows."""
        if self.seconds is None:
            return math.inf
        speed = GPU_FLOPS if self.device == "cuda" else CPU_FLOPS_PER_CORE * self.cores
        return self.seconds * speed / flops

    def elements(self, dimensions: int) -> float:
        """Feature-map elements that fit into memory at once."""
        per_gb = REFERENCE_ELEMENTS[dimensions] * REFERENCE_BATCH[dimensions] / REFERENCE_GB
        return self.memory_gb * per_gb / (CPU_ELEMENT_COST if self.device == "cpu" else 1.0)


@dataclass(frozen=True, slots=True)
class Sized:
    """A network's shape, its batch, and the patches that the time allows."""

    topology: Topology
    features: tuple[int, ...]
    batch: int
    patches: float
    notes: tuple[str, ...]

    @property
    def steps(self) -> float:
        """Training steps that the time allows; infinite without a time limit."""
        return self.patches / self.batch


def size_segmentation(
    recipe: Recipe, grid: Grid, budget: Budget, *, cases: int, channels: int, outputs: int, volume: IntTriple
) -> Sized:
    """The largest network and patch that memory holds and that see enough patches in the time.

    `volume` is the median case in three dimensions. Raises RecipeError where nothing fits into memory.
    """
    chosen: tuple[Topology, tuple[int, ...], float] | None = None
    affordable = False
    for topology, features, wanted in _candidates(recipe, grid, budget, outputs):
        patches = budget.patches(training_flops(topology, features, channels))
        chosen, affordable = (topology, features, patches), patches >= wanted
        if affordable:
            break
    if chosen is None:
        raise _too_large(recipe, grid, budget, outputs)
    topology, features, patches = chosen
    batch, why = _batch(recipe, grid, budget, chosen, cases, outputs, volume)
    notes = [_told(topology, features, patches, budget), why]
    if not affordable:
        notes.append("the budget is short even for this smallest network: more minutes would help most")
    covered = math.prod(topology.patch[-grid.dimensions :]) / math.prod(grid.median[-grid.dimensions :])
    if covered < 0.25:
        notes.append(f"the patch shows {covered:.0%} of the median case; a coarser preprocess.spacing shows more of it")
    return Sized(topology, features, batch, patches, tuple(notes))


def size_classification(
    recipe: Recipe, grid: Grid, budget: Budget, *, size: IntTriple, cases: int, channels: int
) -> Sized:
    """Levels until the picture is about 7 wide, a strided stem for large ones, as wide as sees enough epochs."""
    topology = classifier_topology(size, grid.dimensions)
    given = recipe.network.features
    options: Sequence[tuple[int, ...]] = (
        [given]
        if given != "auto"
        else [tuple(min(b * 2**i, 8 * b) for i in range(topology.levels)) for b in CLASSIFIER_BASES]
    )
    if given != "auto" and len(given) != topology.levels:
        topology = _relevelled(topology, len(given))
    wanted = max(WANTED_EPOCHS * cases, 4000)
    for features in options:
        patches = budget.patches(_classifier_flops(topology, features, channels))
        if patches >= wanted:
            break
    elements = sum(5 * math.prod(s) * w for s, w in zip(topology.sizes(), features, strict=True))
    most = int(budget.elements(grid.dimensions) / elements)
    if most < 1:
        raise RecipeError(
            f"an input of {_x(size)} does not fit into {budget.memory_gb:.1f} GB even alone",
            where="preprocess.size",
            hint="give a smaller preprocess.size or more memory",
        )
    given_batch = recipe.train.batch_size
    fair = 2 ** int(math.log2(max(8, min(64, cases / 40))))
    batch = min(most, fair) if given_batch == "auto" else given_batch
    epochs = patches / max(1, cases)
    seen = "" if math.isinf(patches) else f", about {epochs:.0f} epochs in the time"
    note = f"features {_dash(features)}: the widest that sees {WANTED_EPOCHS} epochs{seen}; batch {batch}"
    return Sized(topology, features, batch, patches, (note,))


def classifier_topology(size: IntTriple, dimensions: Literal[2, 3]) -> Topology:
    """Large pictures are halved (from 96 on) or quartered (from 192 on) at once, as ResNet does."""
    stem = [4 if n >= 192 else 2 if n >= 96 else 1 for n in size]
    inner = tuple(-(-n // s) for n, s in zip(size, stem, strict=True))
    base = pooled((1.0, 1.0, 1.0), (inner[0], inner[1], inner[2]), dimensions, most_levels=5)
    return Topology(size, ((stem[0], stem[1], stem[2]), *base.strides[1:]), base.kernels)


def _relevelled(topology: Topology, levels: int) -> Topology:
    """Cut to `levels`, or continued with levels that keep the size."""
    more = levels - topology.levels
    strides = topology.strides[:levels] + ((1, 1, 1),) * more
    return Topology(topology.patch, strides, topology.kernels[:levels] + topology.kernels[-1:] * more)


def _classifier_flops(topology: Topology, features: Sequence[int], channels: int) -> float:
    """As `topology.training_flops`, for four convolutions a level."""
    first = math.prod(topology.sizes()[0]) * math.prod(topology.kernels[0]) * channels * features[0]
    products, before = float(first), features[0]
    for size, kernel, width in zip(topology.sizes(), topology.kernels, features, strict=True):
        products += math.prod(size) * math.prod(kernel) * (before * width + 3 * width * width)
        before = width
    return 6 * products


def _candidates(
    recipe: Recipe, grid: Grid, budget: Budget, outputs: int
) -> Iterator[tuple[Topology, tuple[int, ...], float]]:
    """What fits into memory, best first: narrower, then smaller patches, then narrower still; with patches wanted."""
    given, dims = recipe.network.features, grid.dimensions
    levels = 99 if given == "auto" else len(given)
    if recipe.train.patch_size != "auto":
        z, y, x = recipe.train.patch_size
        start = pooled(grid.spacing, (1 if dims == 2 else z, y, x), dims, levels)
    else:
        start = pooled(grid.spacing, first_patch(grid.spacing, grid.median, dims), dims, levels)
    if given != "auto" and start.levels < len(given):
        start = _relevelled(start, len(given))
    bases = [32, 16, 8] if given == "auto" else [0]
    if given == "auto" and budget.device == "cpu" and budget.seconds is None:
        bases = [16, 8]
    least = min(LEAST_PATCH[dims], math.prod(start.patch))
    for base in bases:
        floor = {32: math.inf, 16: LARGE_PATCH}.get(base, SMALL_PATCH)
        topology: Topology | None = start
        while topology is not None and math.prod(topology.patch) >= least:
            features = widths(base, topology.levels, dims) if given == "auto" else tuple(given)
            if _fits(topology, features, budget, dims, outputs, recipe):
                yield topology, features, WANTED.get(base, 0)
                if math.prod(topology.patch) <= floor:
                    break
            if recipe.train.patch_size != "auto":
                break
            topology = _smaller(topology, grid, levels)


def _smaller(topology: Topology, grid: Grid, levels: int) -> Topology | None:
    less = shrunk(topology, grid.spacing, grid.median, grid.dimensions, levels)
    return _relevelled(less, levels) if less is not None and levels < 99 and less.levels < levels else less


def _fits(topology: Topology, features: Sequence[int], budget: Budget, dims: int, outputs: int, recipe: Recipe) -> bool:
    """Twice where the patch may still be chosen: a batch of one patch trains badly."""
    least = 1 if recipe.train.patch_size != "auto" else 2
    return least * feature_elements(topology, features, outputs) <= budget.elements(dims)


def _batch(
    recipe: Recipe,
    grid: Grid,
    budget: Budget,
    chosen: tuple[Topology, tuple[int, ...], float],
    cases: int,
    outputs: int,
    volume: IntTriple,
) -> tuple[int, str]:
    topology, features, patches = chosen
    if recipe.train.batch_size != "auto":
        return recipe.train.batch_size, f"batch {recipe.train.batch_size}: given"
    most = int(budget.elements(grid.dimensions) / feature_elements(topology, features, outputs))
    share = round(SHARE_OF_DATA * cases * math.prod(volume) / math.prod(topology.patch))
    limits = {
        "memory": max(1, most),
        f"{SHARE_OF_DATA:.0%} of all voxels (nnU-Net)": max(2, share),
        f"{STEPS_BEFORE_BATCH} steps come before a larger batch": max(2, int(min(patches, 1e9)) // STEPS_BEFORE_BATCH),
    }
    why, batch = min(limits.items(), key=lambda item: item[1])
    return batch, f"batch {batch}: {why}"


def _too_large(recipe: Recipe, grid: Grid, budget: Budget, outputs: int) -> RecipeError:
    """Says which patch would fit, if any."""
    given = recipe.network.features
    levels = 99 if given == "auto" else len(given)
    patch = recipe.train.patch_size
    start = first_patch(grid.spacing, grid.median, grid.dimensions) if patch == "auto" else patch
    topology: Topology | None = pooled(grid.spacing, start, grid.dimensions, levels)
    while topology is not None:
        features = widths(8, topology.levels, grid.dimensions) if given == "auto" else tuple(given)[: topology.levels]
        if feature_elements(topology, features, outputs) <= budget.elements(grid.dimensions):
            break
        topology = shrunk(topology, grid.spacing, grid.median, grid.dimensions, levels)
    what = f"the patch {_x(start)}" if patch != "auto" else "the smallest patch"
    advice = f"a train.patch_size of {_x(topology.patch)} fits; or " if topology and patch != "auto" else ""
    return RecipeError(
        f"{what} does not fit into {budget.memory_gb:.1f} GB even at batch 1",
        where="train.patch_size" if patch != "auto" else "network.features",
        hint=f"{advice}give fewer network.features, or more memory",
        reason="patch-exceeds-memory",
    )


def _told(topology: Topology, features: Sequence[int], patches: float, budget: Budget) -> str:
    patch = f"patch {_x(topology.patch)}, features {_dash(features)}"
    if math.isinf(patches):
        return f"{patch}: what {budget.memory_gb:.1f} GB hold"
    return f"{patch}: the largest of which the time allows enough (about {patches:,.0f} patches in training)"


def _x(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _dash(features: Sequence[int]) -> str:
    return "-".join(map(str, features))
