"""nnU-Net's arithmetic: patch, pooling and kernels from spacing and size, and what a network of that shape costs.

Isensee et al. 2021, as in `default_experiment_planner.py` and `network_topology.py` of nnU-Net v2. Axes are (z, y, x);
in two dimensions z has size, stride and kernel 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.plan import FloatTriple, IntTriple

LEAST_EDGE = 4
"""Voxels that every pooled axis keeps at least in the coarsest level."""
ISOTROPIC = 2.0
"""Axes whose spacings differ by less than this are treated alike."""
WHOLE_VOLUME = {2: 2048**2, 3: 256**3}
WIDEST = {2: 512, 3: 320}
REFERENCE_ELEMENTS = {2: 8.5e7, 3: 5.6e8}
REFERENCE_BATCH = {2: 12, 3: 2}
REFERENCE_GB = 8.0


@dataclass(frozen=True, slots=True)
class Topology:
    """A patch and the levels that work on it; `strides[0]` is 1: the first level keeps the size."""

    patch: IntTriple
    strides: tuple[IntTriple, ...]
    kernels: tuple[IntTriple, ...]

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.strides)

    @property
    def multiple(self) -> IntTriple:
        """What the patch must be a multiple of."""
        return _triple(math.prod(axis) for axis in zip(*self.strides, strict=True))

    def sizes(self) -> list[IntTriple]:
        """Each level's grid."""
        size, found = self.patch, []
        for stride in self.strides:
            size = _triple(-(-n // s) for n, s in zip(size, stride, strict=True))
            found.append(size)
        return found


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training step on one patch; `elements` are feature maps as nnU-Net counts them.

    `parameters` are 0 where nnU-Net's reference already makes room for those of such a network.
    """

    elements: float
    flops: float
    parameters: int = 0


def pooled(spacing: FloatTriple, patch: IntTriple, dimensions: int, most_levels: int = 99) -> Topology:
    """Halve each axis while it keeps its least edge and is not yet coarser than the finest by ISOTROPIC.

    An axis gets kernel 3 once its spacing is within ISOTROPIC of the finest, and keeps it. The patch is padded to what
    the strides divide.
    """
    axes = range(3 - dimensions, 3)
    space, size, kernel = list(spacing), list(patch), [1, 1, 1]
    strides: list[IntTriple] = [(1, 1, 1)]
    kernels: list[IntTriple] = []
    while True:
        finest = min(space[a] for a in axes)
        kernel = [3 if a in axes and (kernel[a] == 3 or space[a] / finest < ISOTROPIC) else 1 for a in range(3)]
        large = [a for a in axes if size[a] >= 2 * LEAST_EDGE]
        least = min((space[a] for a in large), default=0.0)
        halved = [a for a in large if space[a] / least < ISOTROPIC]
        # One axis alone is worth a level only while it stays clearly longer than the rest may be.
        ended = not halved or (len(halved) == 1 and size[halved[0]] < 3 * LEAST_EDGE)
        if ended or len(strides) >= most_levels:
            break
        kernels.append(_triple(kernel))
        strides.append(_triple(2 if a in halved else 1 for a in range(3)))
        for a in halved:
            space[a] *= 2
            size[a] = -(-size[a] // 2)
    kernels.append(_triple(3 if a in axes else 1 for a in range(3)))
    multiple = [math.prod(axis) for axis in zip(*strides, strict=True)]
    padded = _triple(-(-n // m) * m for n, m in zip(patch, multiple, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def first_patch(spacing: FloatTriple, median: IntTriple, dimensions: int) -> IntTriple:
    """A cube in mm of nnU-Net's starting volume, no larger than the median case."""
    axes = range(3 - dimensions, 3)
    scale = (WHOLE_VOLUME[dimensions] * math.prod(spacing[a] for a in axes)) ** (1 / dimensions)
    return _triple(max(1, min(round(scale / spacing[a]), median[a])) if a in axes else 1 for a in range(3))


def shrunk(
    topology: Topology, spacing: FloatTriple, median: IntTriple, dimensions: int, most_levels: int = 99
) -> Topology | None:
    """One step smaller along the axis that covers most of the median case; None where nothing is left to take."""
    order = sorted(range(3 - dimensions, 3), key=lambda a: topology.patch[a] / median[a], reverse=True)
    for axis in order:
        edge = topology.patch[axis]
        while edge - topology.multiple[axis] >= 2 * LEAST_EDGE:
            # The pooling of the smaller patch may need a smaller multiple than the larger one did.
            trial = _with(topology.patch, axis, edge - topology.multiple[axis])
            edge -= pooled(spacing, trial, dimensions, most_levels).multiple[axis]
            less = pooled(spacing, _with(topology.patch, axis, edge), dimensions, most_levels)
            if math.prod(less.patch) < math.prod(topology.patch):
                return less
    return None


def relevelled(topology: Topology, levels: int) -> Topology:
    """Cut to `levels`, or continued with levels that keep the size."""
    more = levels - topology.levels
    strides = topology.strides[:levels] + ((1, 1, 1),) * more
    return Topology(topology.patch, strides, topology.kernels[:levels] + topology.kernels[-1:] * more)


def _with(patch: IntTriple, axis: int, edge: int) -> IntTriple:
    return _triple(edge if a == axis else n for a, n in enumerate(patch))


def widths(base: int, levels: int, dimensions: int) -> tuple[int, ...]:
    """Channels per level: doubled from `base`, up to ten (2-D: sixteen) times it, as nnU-Net does from 32."""
    widest = max(base, WIDEST[dimensions] * base // 32)
    return tuple(min(base * 2**level, widest) for level in range(levels))


def feature_elements(topology: Topology, features: Sequence[int], outputs: int) -> float:
    """Elements of all feature maps of one patch, as nnU-Net counts them: its measure of memory."""
    total = 0.0
    for level, (size, width) in enumerate(zip(topology.sizes(), features, strict=True)):
        voxels = math.prod(size)
        total += 2 * voxels * width
        if level < topology.levels - 1:
            total += voxels * (3 * width + outputs)
    return total


def training_flops(topology: Topology, features: Sequence[int], channels: int) -> float:
    """Floating-point operations of one training step on one patch, for the U-Net of the network table.

    Three times the forward pass (once more for the inputs' and for the weights' gradients), two a multiplication.
    """
    products, before, grids = 0.0, channels, topology.sizes()
    for level, (size, kernel, width) in enumerate(zip(grids, topology.kernels, features, strict=True)):
        voxels, taps = math.prod(size), math.prod(kernel)
        products += voxels * (taps * (before * width + width * width) + before * width)
        if level < topology.levels - 1:
            products += voxels * (taps * 2 * width * width + features[level + 1] * width)
        before = width
    return 6 * products


def _triple(values: Iterable[int]) -> IntTriple:
    z, y, x = values
    return z, y, x
