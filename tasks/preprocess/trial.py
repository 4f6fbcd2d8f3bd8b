"""What a network of the table costs, by a trial forward pass that computes nothing: its tensors have shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks import NETWORKS, build
from models.plan import IntTriple, NetworkPlan
from tasks.preprocess.topology import Cost, Topology

KEPT_PER_ELEMENT = 2.0
"""What training keeps for the backward pass beside nnU-Net's count of feature maps: 1.97 with dynunet."""
FLOPS_PER_ELEMENT = 300.0
"""Norms and activations multiply little and move much; of a plain U-Net's time they are a tenth."""
_REAL_EDGE = {2: 64, 3: 32}


@dataclass(frozen=True, slots=True)
class _Rise:
    """How a cost grows with the voxels, and with their square where each token attends to all others."""

    linear: float
    square: float = 0.0

    @classmethod
    def through(cls, more: tuple[float, float], less: tuple[float, float]) -> _Rise:
        """Two (voxels, cost); never falling."""
        per_voxel, other = more[1] / more[0], less[1] / less[0]
        square = max(0.0, (per_voxel - other) / (more[0] - less[0])) if more[0] > less[0] else 0.0
        return cls(per_voxel - square * more[0], square)

    def at(self, voxels: float) -> float:
        return voxels * (self.linear + self.square * voxels)


@dataclass
class Trial:
    """Tries `network` in each shape that is asked for, once, on two patches where it attends: the rest is reckoned."""

    network: NetworkPlan
    _tried: dict[NetworkPlan, tuple[_Rise, _Rise, int]] = field(default_factory=dict)

    def cost(self, topology: Topology, features: Sequence[int]) -> Cost:
        """Of one step on one patch of that shape. Raises RecipeError where the network cannot have it."""
        shape = {"features": tuple(features), "strides": topology.strides, "kernels": topology.kernels}
        plan, voxels = self.network.model_copy(update=shape), math.prod(topology.patch)
        if plan not in self._tried:
            self._tried[plan] = self._rises(plan, topology)
        elements, flops, parameters = self._tried[plan]
        return Cost(elements.at(voxels), flops.at(voxels), parameters)

    def _rises(self, plan: NetworkPlan, topology: Topology) -> tuple[_Rise, _Rise, int]:
        patch = topology.patch
        if not NETWORKS[plan.name].positions:
            cost, voxels = tried(plan, patch), math.prod(patch)
            return _Rise(cost.elements / voxels), _Rise(cost.flops / voxels), cost.parameters
        z, y, x = (math.ceil(n / 2 / m) * m for n, m in zip(patch, topology.multiple, strict=True))
        sizes = [patch, (z, y, x)]
        costs = [tried(plan.model_copy(update={"size": size}), size) for size in sizes]
        more, less = (math.prod(size) for size in sizes)
        return (
            _Rise.through((more, costs[0].elements), (less, costs[1].elements)),
            _Rise.through((more, costs[0].flops), (less, costs[1].flops)),
            costs[0].parameters,
        )


def tried(plan: NetworkPlan, patch: IntTriple) -> Cost:
    """What one patch (z, y, x) costs. Networks whose course depends on the values are tried on a small real one."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _tried(build(plan), plan, patch)
        except RuntimeError:
            edge = _REAL_EDGE[plan.dimensions]
            z, y, x = (min(n, edge) for n in patch)
            cost = _tried(build(plan), plan, (z, y, x))
    more = math.prod(patch) / (z * y * x)
    return Cost(cost.elements * more, cost.flops * more, cost.parameters)


def _tried(network: nn.Module, plan: NetworkPlan, patch: IntTriple) -> Cost:
    parameters = list(network.train().parameters())
    weights = {_memory(p) for p in parameters}
    kept: dict[int, Tensor] = {}  # held, so that no other tensor takes its place in memory

    def keep(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in weights:
            kept[_memory(tensor)] = tensor
        return tensor

    images = torch.zeros(1, plan.in_channels, *patch[3 - plan.dimensions :], device=parameters[0].device)
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    elements = sum(t.untyped_storage().nbytes() for t in kept.values()) / images.itemsize / KEPT_PER_ELEMENT
    # Once more for the gradients of the inputs, and once for those of the weights.
    flops = 3 * counter.get_total_flops() + FLOPS_PER_ELEMENT * elements
    return Cost(elements, flops, sum(p.numel() for p in parameters))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
