"""How large a network, patch and batch the memory and the minutes at hand can pay for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from models.errors import RecipeError
from models.plan import IntTriple
from models.recipe import Recipe
from tasks.preprocess.grids import Device, Grid
from tasks.preprocess.shape import ANY_LEVELS, Shape
from tasks.preprocess.topology import REFERENCE_BATCH, REFERENCE_ELEMENTS, REFERENCE_GB, Topology, widths

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
BYTES_PER_PARAMETER = 20
"""Weights, gradients, AdamW's two moments and the average."""
LARGE_PATCH = 64**3
SMALL_PATCH = 24**3
LEAST_PATCH = {2: 32**2, 3: 16**3}
"""Smaller pieces of a larger image show no anatomy."""
OWN, GIVEN = -1, 0
WANTED = {32: 8000, 16: 600, 8: 300, OWN: 600}
"""Patches that a network of that width should see to be worth it (base channels → patches): on hippocampi base 16
has Dice 0.86 after 320 of them. A network of OWN width is that wide whatever the budget; so is one of GIVEN width."""
WANTED_EPOCHS = 20
CLASSIFIER_BASES = (64, 48, 32, 24, 16, 8)


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is to spend. `seconds` is None where epochs alone bound the training.

    `together`: how many images one case may consist of, which are in memory at once. `speed`: operations a second, as
    a dry run has shown; `least`: patches that must be seen whatever the network; `levels`: at most as many.
    """

    device: Device
    memory_gb: float
    seconds: float | None
    cores: int
    together: int = 1
    speed: float | None = None
    least: int = 0
    levels: int = ANY_LEVELS

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
        return self.seconds * self.flops_a_second / flops

    @property
    def flops_a_second(self) -> float:
        """Measured, or what such devices usually do."""
        usual = GPU_FLOPS if self.device == "cuda" else CPU_FLOPS_PER_CORE * self.cores
        return usual if self.speed is None else self.speed

    def elements(self, dimensions: int, parameters: int = 0) -> float:
        """Feature-map elements of one image that fit into memory at once, beside `parameters` that nnU-Net does not
        reckon with.
        """
        per_gb = REFERENCE_ELEMENTS[dimensions] * REFERENCE_BATCH[dimensions] / REFERENCE_GB
        left = self.memory_gb - parameters * BYTES_PER_PARAMETER / 1e9
        return max(0.0, left) * per_gb / (CPU_ELEMENT_COST if self.device == "cpu" else 1.0) / self.together


@dataclass(frozen=True, slots=True)
class Sized:
    """A network's shape, its batch, and the patches that the time allows."""

    topology: Topology
    features: tuple[int, ...]
    batch: int
    patches: float
    notes: tuple[str, ...]
    hurried: bool = False  # the time, not memory, set the patch
    flops: float = 0.0  # of one patch
    wanted: int = 0  # patches that such a network should see

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
    shape = replace(Shape.of(recipe, grid, channels, outputs), most_levels=budget.levels)
    chosen: _Candidate | None = None
    patches, affordable, largest = math.inf, False, 0
    for chosen in _candidates(recipe, shape, budget):
        largest = max(largest, math.prod(chosen.topology.patch))
        patches = budget.patches(chosen.flops)
        affordable = patches >= max(chosen.wanted, budget.least)
        if affordable:
            break
    if chosen is None:
        raise _too_large(recipe, shape, budget)
    batch, why = _batch(recipe, chosen, patches, cases, volume)
    notes = [_told(chosen.topology, chosen.features, patches, budget), why]
    if not affordable:
        notes.append("the budget is short even for this smallest network: more minutes would help most")
    covered = math.prod(chosen.topology.patch[-grid.dimensions :]) / math.prod(grid.median[-grid.dimensions :])
    if covered < 0.25:
        notes.append(f"the patch shows {covered:.0%} of the median case; a coarser preprocess.spacing shows more of it")
    hurried = not affordable or math.prod(chosen.topology.patch) < largest
    return Sized(chosen.topology, chosen.features, batch, patches, tuple(notes), hurried, chosen.flops, chosen.wanted)


def size_classification(
    recipe: Recipe, grid: Grid, budget: Budget, *, size: IntTriple, cases: int, channels: int
) -> Sized:
    """Levels until the picture is about 7 wide, a strided stem for large ones, as wide as sees enough epochs."""
    shape = Shape.of(recipe, grid, channels, outputs=2)
    topology = shape.of_picture(size)
    wanted = max(WANTED_EPOCHS * cases, 4000)
    for features in shape.widths or _doubled(topology):
        cost = shape.cost(topology, features)
        patches = budget.patches(cost.flops)
        if patches >= wanted:
            break
    most = int(budget.elements(grid.dimensions, cost.parameters) / cost.elements)
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
    why = "its own" if shape.own else f"the widest that sees {WANTED_EPOCHS} epochs"
    told = f"features {_dash(features)}: {why}{seen}; batch {batch}"
    return Sized(topology, features, batch, patches, (told,), flops=cost.flops, wanted=wanted)


def _doubled(topology: Topology) -> list[tuple[int, ...]]:
    """A classifier's channels per level, the widest first."""
    return [tuple(min(base * 2**i, 8 * base) for i in range(topology.levels)) for base in CLASSIFIER_BASES]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A network and patch that memory holds. `most` is how many patches it holds, `wanted` how many are to be seen."""

    topology: Topology
    features: tuple[int, ...]
    flops: float
    most: float
    wanted: int


def _candidates(recipe: Recipe, shape: Shape, budget: Budget) -> Iterator[_Candidate]:
    """What fits into memory, best first: narrower, then smaller patches, then narrower still; with patches wanted."""
    dims, given_patch = shape.grid.dimensions, recipe.train.patch_size != "auto"
    start = shape.first(recipe.train.patch_size)
    bases = [32, 16, 8] if budget.device == "cuda" or budget.seconds is not None else [16, 8]
    if shape.widths:
        bases = [OWN if shape.own else GIVEN]
    least = min(LEAST_PATCH[dims], math.prod(start.patch))
    for base in bases:
        floor = {32: math.inf, 16: LARGE_PATCH}.get(base, SMALL_PATCH)
        topology: Topology | None = start
        while topology is not None and math.prod(topology.patch) >= least:
            features = shape.widths[0] if shape.widths else widths(base, topology.levels, dims)
            cost = shape.cost(topology, features)
            most = budget.elements(dims, cost.parameters) / cost.elements
            # A batch of one patch trains badly, so two where the patch may still be chosen.
            if most >= (1 if given_patch else 2):
                yield _Candidate(topology, features, cost.flops, most, WANTED.get(base, 0))
                if math.prod(topology.patch) <= floor:
                    break
            topology = None if given_patch else shape.smaller(topology)


def _batch(recipe: Recipe, chosen: _Candidate, patches: float, cases: int, volume: IntTriple) -> tuple[int, str]:
    if recipe.train.batch_size != "auto":
        return recipe.train.batch_size, f"batch {recipe.train.batch_size}: given"
    share = round(SHARE_OF_DATA * cases * math.prod(volume) / math.prod(chosen.topology.patch))
    limits = {
        "memory": max(1, int(chosen.most)),
        f"{SHARE_OF_DATA:.0%} of all voxels (nnU-Net)": max(2, share),
        f"{STEPS_BEFORE_BATCH} steps come before a larger batch": max(2, int(min(patches, 1e9)) // STEPS_BEFORE_BATCH),
    }
    why, batch = min(limits.items(), key=lambda item: item[1])
    return batch, f"batch {batch}: {why}"


def _too_large(recipe: Recipe, shape: Shape, budget: Budget) -> RecipeError:
    """Says which patch would fit, if any."""
    dims, patch = shape.grid.dimensions, recipe.train.patch_size
    start = shape.first(patch)
    topology: Topology | None = start
    while topology is not None:
        features = shape.widths[0] if shape.widths else widths(8, topology.levels, dims)
        cost = shape.cost(topology, features)
        if cost.elements <= budget.elements(dims, cost.parameters):
            break
        topology = shape.smaller(topology)
    what = "the smallest patch" if patch == "auto" else f"the patch {_x(patch)}"
    advice = f"a train.patch_size of {_x(topology.patch)} fits; or " if topology and patch != "auto" else ""
    narrower = "another network.name" if shape.own else "fewer network.features"
    return RecipeError(
        f"{what} does not fit into {budget.memory_gb:.1f} GB even at batch 1",
        where="train.patch_size" if patch != "auto" else "network.features",
        hint=f"{advice}give {narrower}, or more memory",
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
