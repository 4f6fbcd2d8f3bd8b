"""Every entry of the table in each of its dimensions, far narrower than it is meant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.networks import NETWORKS, Entry
from models.plan import NetworkPlan

SIZES = {2: (32, 24), 3: (16, 16, 24)}


@dataclass(frozen=True)
class Variant:
    """An entry in one of its dimensions."""

    name: str
    dimensions: int

    @property
    def entry(self) -> Entry:
        return NETWORKS[self.name]

    @property
    def segments(self) -> bool:
        return "segmentation" in self.entry.kinds

    @property
    def widths(self) -> tuple[int, ...]:
        """As many levels as it needs."""
        own, step = self.entry.own_widths, self.entry.width_multiple
        return tuple(-(-max(4, w // 16) // step) * step for w in own) or (4, 8, 8, 12)[: 4 if self.segments else 3]

    def plan(self, **changes: object) -> NetworkPlan:
        values = {
            "name": self.name,
            "dimensions": self.dimensions,
            "in_channels": 2,
            "out_channels": 3,
            "features": self.widths,
            "size": (1, *SIZES[2]) if self.dimensions == 2 else SIZES[3],
        }
        return NetworkPlan.model_validate(values | changes)

    def images(self, sizes: dict[int, tuple[int, ...]], batch: int = 2) -> Tensor:
        return torch.randn(batch, 2, *sizes[self.dimensions], generator=torch.Generator().manual_seed(0))


def variants() -> list[Variant]:
    """Of what segments or classifies; other kinds have contracts of their own."""
    able = {name: entry for name, entry in NETWORKS.items() if entry.kinds & {"segmentation", "classification"}}
    return [Variant(name, d) for name, entry in able.items() for d in sorted(entry.dimensions)]


def planar(variants: list[Variant]) -> list[Variant]:
    """In two dimensions where the network has them: for what does not depend on the dimensions."""
    return [v for v in variants if v.dimensions == min(v.entry.dimensions)]
