"""A graph network over an image's regions: supervoxels are nodes, those that touch speak to each other.

The regions are found in the forward pass, in plain PyTorch: seeds on a regular grid, and every voxel to the nearest
of the seeds around it in place and intensity, as SLIC does (Achanta et al. 2012), but without its last step: a region
may be in several pieces. They carry no gradient; what is averaged over them does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import initialise
from models.networks.sets import GatedAttention, Messages, residual_stages
from models.plan import NetworkPlan

CELL = 4
"""Voxels of the stem's map between two seeds, along each axis."""
ROUNDS = 3
COMPACTNESS = 1.0
"""A seed's distance in place that counts as much as one standard deviation of intensity."""
_STEM_LEVELS = 2


def build_graph(plan: NetworkPlan) -> nn.Module:
    """A stem of the first two levels, a graph of the last one's width, a round of messages for each further level."""
    return RegionGraph(plan)


class RegionGraph(nn.Module):
    """`attention` says which regions decided."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        levels, width = min(_STEM_LEVELS, len(plan.features)), plan.features[-1]
        self.stem = initialise(nn.Sequential(*residual_stages(plan, plan.dimensions, levels)))
        self.enter = nn.Linear(plan.features[levels - 1] + plan.dimensions + 1, width)
        self.rounds = nn.ModuleList(Messages(width) for _ in range(max(2, len(plan.features) - levels)))
        self.pool = GatedAttention(width)
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(width, plan.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        nodes, present, _ = self.nodes(x)
        logits: Tensor = self.head(self.dropout(self.pool(nodes, present)))
        return logits

    def nodes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The regions (b, r, width) once they have heard each other, which exist (b, r), and their map (b, …)."""
        features = self.stem(x)
        # Sums over a thousand voxels need float32.
        with torch.autocast(x.device.type, enabled=False):
            labels, count = supervoxels(_pooled(x.float(), features.shape[2:]))
            means, sizes = region_means(features.float(), labels, count)
            places, _ = region_means(_places(features).expand(len(x), -1, *features.shape[2:]), labels, count)
            share = (sizes / math.prod(features.shape[2:])).clamp_min(1e-6).log()[..., None]
            edges, weights = contacts(labels, count)
        nodes = self.enter(torch.cat((means, places, share), dim=2)).float().flatten(0, 1)
        for messages in self.rounds:
            nodes = messages(nodes, edges, weights)
        return nodes.view(len(x), count, -1), sizes > 0, labels

    @torch.inference_mode()
    def attention(self, x: Tensor) -> Tensor:
        """(b, c, …) → on the stem's map (b, …), how much the region of each voxel counts; regions add up to 1."""
        nodes, present, labels = self.nodes(x)
        weights = self.pool.weights(nodes, present)
        return weights.gather(1, labels.flatten(1)).view(labels.shape)


@torch.no_grad()
def supervoxels(images: Tensor, cell: int = CELL, rounds: int = ROUNDS) -> tuple[Tensor, int]:
    """Which region each voxel of `images` (b, c, …) is in, (b, …) from 0; and how many there may be.

    Deterministic. A region that no voxel chose is empty.
    """
    size = images.shape[2:]
    grid = [max(1, round(n / cell)) for n in size]
    count = math.prod(grid)
    values = images.flatten(2)
    spread = values.std(dim=2, keepdim=True, correction=0).clamp_min(1e-6)
    values = (values - values.mean(dim=2, keepdim=True)) / spread / math.sqrt(images.shape[1])
    steps = [torch.arange(n, device=images.device) for n in size]
    homes = [step * g // n for step, g, n in zip(steps, grid, size, strict=True)]
    places = torch.stack(
        [
            p.flatten()
            for p in torch.meshgrid(
                *[(s + 0.5) * g / n for s, g, n in zip(steps, grid, size, strict=True)], indexing="ij"
            )
        ]
    )
    told = torch.cat((places.expand(len(images), -1, -1) / COMPACTNESS, values), dim=1).movedim(1, 2)
    around = _candidates(homes, grid)
    labels = around[len(around) // 2].expand(len(images), -1)
    centres = _centres(told, labels, count, None)
    for _ in range(rounds):
        least = torch.full(labels.shape, torch.inf, device=images.device)
        for candidate in around:
            distance = (told - centres.index_select(1, candidate)).square().sum(dim=2)
            labels = torch.where(distance < least, candidate, labels)
            least = torch.minimum(distance, least)
        centres = _centres(told, labels, count, centres)
    return labels.reshape(len(images), *size), count


def region_means(features: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of `features` (b, f, …) over each region (b, r, f), 0 where it is empty; and the regions' sizes (b, r)."""
    b, f = features.shape[:2]
    flat = _numbered(labels, count).flatten()
    sums = features.new_zeros(b * count, f).index_add_(0, flat, features.flatten(2).movedim(1, 2).reshape(-1, f))
    sizes = torch.bincount(flat, minlength=b * count).to(features.dtype)
    return (sums / sizes.clamp_min(1)[:, None]).view(b, count, f), sizes.view(b, count)


def contacts(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Regions that touch: edges (2, e) both ways between the numbers b · count + region, and the faces they share."""
    numbers = _numbered(labels, count)
    total = len(labels) * count
    pairs = []
    for axis in range(1, labels.ndim):
        here = numbers.narrow(axis, 0, labels.shape[axis] - 1).flatten()
        next_ = numbers.narrow(axis, 1, labels.shape[axis] - 1).flatten()
        low, high = torch.minimum(here, next_), torch.maximum(here, next_)
        pairs.append((low * total + high)[low != high])
    codes, faces = torch.unique(torch.cat(pairs), return_counts=True)
    low, high = codes // total, codes % total
    edges = torch.stack((torch.cat((low, high)), torch.cat((high, low))))
    return edges, faces.repeat(2).float()


def _numbered(labels: Tensor, count: int) -> Tensor:
    """Regions by numbers that no other image of the batch has."""
    first = torch.arange(len(labels), device=labels.device) * count
    return labels + first.view(-1, *[1] * (labels.ndim - 1))


def _candidates(homes: Sequence[Tensor], grid: Sequence[int]) -> list[Tensor]:
    """The seeds of the cells around each voxel (voxels,), in order; the middle one is its own."""
    found = []
    for offsets in itertools.product((-1, 0, 1), repeat=len(grid)):
        axes = [(home + o).clamp(0, g - 1) for home, o, g in zip(homes, offsets, grid, strict=True)]
        flat = axes[0]
        for axis, g in zip(axes[1:], grid[1:], strict=True):
            flat = flat[..., None] * g + axis
        found.append(flat.flatten())
    return found


def _centres(told: Tensor, labels: Tensor, count: int, before: Tensor | None) -> Tensor:
    """The mean of each region's voxels (b, r, …); of an empty one as it was."""
    means, sizes = region_means(told.movedim(1, 2), labels, count)
    return means if before is None else torch.where(sizes[..., None] > 0, means, before)


def _pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """The images on the stem's map."""
    if x.shape[2:] == tuple(size):
        return x
    return functional.interpolate(x, tuple(size), mode="area")


def _places(features: Tensor) -> Tensor:
    """(1, d, …) from −1 to 1 along each axis."""
    axes = [(torch.arange(n, device=features.device) + 0.5) * 2 / n - 1 for n in features.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
