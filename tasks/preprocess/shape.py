"""How a network of the table is shaped by a patch, and what it then costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from models.networks import NETWORKS, Entry
from models.plan import IntTriple, NetworkPlan
from models.recipe import Recipe
from tasks.preprocess.grids import Grid
from tasks.preprocess.topology import (
    LEAST_EDGE,
    Cost,
    Topology,
    feature_elements,
    first_patch,
    pooled,
    relevelled,
    shrunk,
    training_flops,
)

if TYPE_CHECKING:
    from tasks.preprocess.trial import Trial

ANY_LEVELS = 99
LEAST_TOKENS = {2: 8, 3: 4}
"""Along each axis, for a classifier that sees tokens."""
CUT = 4
"""A patch of a network with strides of its own loses a fourth of an edge at a time."""


@dataclass(frozen=True)
class Shape:
    """The named network (`entry` is None for "auto"), and what the recipe and the grid say of its shape."""

    entry: Entry | None
    recipe: Recipe
    grid: Grid
    channels: int
    outputs: int
    most_levels: int = ANY_LEVELS

    @classmethod
    def of(cls, recipe: Recipe, grid: Grid, channels: int, outputs: int) -> Shape:
        """Of the recipe's network; as of "auto" where it is none for this kind of model, which is refused later."""
        entry = NETWORKS.get(recipe.network.name)
        use = "segmentation" if recipe.segments else recipe.kind
        able = entry is not None and use in entry.kinds and grid.dimensions in entry.dimensions
        return cls(entry if able else None, recipe, grid, channels, outputs)

    @property
    def own(self) -> bool:
        """Whether the widths are the published ones."""
        return self.recipe.network.features == "auto" and self.entry is not None and bool(self.entry.own_widths)

    @property
    def widths(self) -> tuple[tuple[int, ...], ...]:
        """The channels per level where there is but one choice; else none."""
        if self.own and self.entry is not None:
            return (self.entry.own_widths,)
        given = self.recipe.network.features
        return () if given == "auto" else (given,)

    @property
    def levels(self) -> int:
        """As many as the widths, or as the patch bears."""
        return len(self.widths[0]) if self.widths else self.most_levels

    def first(self, patch: IntTriple | Literal["auto"]) -> Topology:
        """Of the recipe's patch, or of the largest that is worth trying."""
        grid = self.grid
        if patch == "auto":
            patch = first_patch(grid.spacing, grid.median, grid.dimensions)
        z, y, x = patch
        return self._of((1 if grid.dimensions == 2 else z, y, x))

    def _of(self, patch: IntTriple) -> Topology:
        """nnU-Net's, or the network's own."""
        if self._strides:
            return _fixed(patch, self._strides, self.grid.dimensions)
        found = pooled(self.grid.spacing, patch, self.grid.dimensions, self.levels)
        return relevelled(found, self.levels) if self.widths and found.levels < self.levels else found

    def smaller(self, topology: Topology) -> Topology | None:
        """One step smaller along the axis that covers most of the median case; None where nothing is left to take."""
        grid = self.grid
        if not self._strides:
            less = shrunk(topology, grid.spacing, grid.median, grid.dimensions, self.levels)
            return None if less is None else self._of(less.patch)
        order = sorted(range(3 - grid.dimensions, 3), key=lambda a: topology.patch[a] / grid.median[a], reverse=True)
        for axis in order:
            edge, multiple = topology.patch[axis], topology.multiple[axis]
            if edge > multiple:
                less_edge = edge - multiple * max(1, edge // (CUT * multiple))
                z, y, x = (less_edge if a == axis else n for a, n in enumerate(topology.patch))
                return _fixed((z, y, x), self._strides, grid.dimensions)
        return None

    def of_picture(self, size: IntTriple) -> Topology:
        """A classifier's: until the picture is a few elements wide."""
        dims = self.grid.dimensions
        if self._strides:
            least = LEAST_TOKENS[dims] if self.entry is not None and self.entry.positions else LEAST_EDGE
            return _without_the_first(size, self._strides, dims, least)
        found = classifier_topology(size, dims)
        return relevelled(found, self.levels) if self.widths else found

    def cost(self, topology: Topology, features: Sequence[int]) -> Cost:
        """Of one training step on one patch."""
        if self._trial is not None:
            return self._trial.cost(topology, features)
        if self.recipe.learns_masks:
            elements = feature_elements(topology, features, self.outputs)
            return Cost(elements, training_flops(topology, features, self.channels))
        elements = sum(5 * math.prod(s) * w for s, w in zip(topology.sizes(), features, strict=True))
        return Cost(elements, classifier_flops(topology, features, self.channels))

    @property
    def _strides(self) -> tuple[int, ...]:
        return self.entry.own_strides if self.entry is not None else ()

    @cached_property
    def _trial(self) -> Trial | None:
        if self.entry is None or not self.entry.measured:
            return None
        # It needs PyTorch, which takes a second or two to import: most plans do without.
        from tasks.preprocess.trial import Trial

        return Trial(
            NetworkPlan(
                name=self.recipe.network.name,
                dimensions=self.grid.dimensions,
                in_channels=self.channels,
                out_channels=self.outputs,
                features=(1,),
                deep_supervision=self.entry.deep_supervision and self.recipe.train.deep_supervision,
            )
        )


def classifier_topology(size: IntTriple, dimensions: Literal[2, 3]) -> Topology:
    """Large pictures are halved (from 96 on) or quartered (from 192 on) at once, as ResNet does."""
    stem = [4 if n >= 192 else 2 if n >= 96 else 1 for n in size]
    inner = tuple(-(-n // s) for n, s in zip(size, stem, strict=True))
    base = pooled((1.0, 1.0, 1.0), (inner[0], inner[1], inner[2]), dimensions, most_levels=5)
    return Topology(size, ((stem[0], stem[1], stem[2]), *base.strides[1:]), base.kernels)


def classifier_flops(topology: Topology, features: Sequence[int], channels: int) -> float:
    """As `topology.training_flops`, for four convolutions a level."""
    first = math.prod(topology.sizes()[0]) * math.prod(topology.kernels[0]) * channels * features[0]
    products, before = float(first), features[0]
    for size, kernel, width in zip(topology.sizes(), topology.kernels, features, strict=True):
        products += math.prod(size) * math.prod(kernel) * (before * width + 3 * width * width)
        before = width
    return 6 * products


def _fixed(patch: IntTriple, strides: Sequence[int], dimensions: int) -> Topology:
    """The same strides along every axis; the patch is padded to what they divide."""
    flat, total = dimensions == 2, math.prod(strides)
    z, y, x = (1 if flat and a == 0 else -(-n // total) * total for a, n in enumerate(patch))
    return Topology(
        (z, y, x),
        tuple((1 if flat else s, s, s) for s in strides),
        ((1 if flat else 3, 3, 3),) * len(strides),
    )


def _without_the_first(size: IntTriple, strides: Sequence[int], dimensions: int, least: int) -> Topology:
    """Along each axis without as many of the first strides as keep `least` elements; the picture stays as it is."""
    per_axis = []
    for axis, n in enumerate(size):
        left = [1] * len(strides) if dimensions == 2 and axis == 0 else list(strides)
        for level in range(len(left)):
            while left[level] > 1 and math.ceil(n / math.prod(left)) < least:
                left[level] //= 2
        per_axis.append(left)
    kernel = (1 if dimensions == 2 else 3, 3, 3)
    return Topology(size, tuple(zip(*per_axis, strict=True)), (kernel,) * len(strides))  # type: ignore[arg-type]
