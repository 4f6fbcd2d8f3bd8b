"""Classifiers of a patient: one encoder for all of its series, then what they say together.

A set is (b, n, c, …): n series of one patient. A series that is not there is NaN in every voxel, which no prepared
image is; so that which series are there travels with them. A single image (b, c, …) is a set of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.sets import Encoder, GatedAttention, Messages
from models.plan import NetworkPlan

_ROUNDS = 2


def build_patient_attention(plan: NetworkPlan) -> nn.Module:
    """Series weighed by gated attention (Ilse et al. 2018)."""
    return AttentiveSeries(plan)


def build_patient_graph(plan: NetworkPlan) -> nn.Module:
    """Every series hears all the others, twice, before they are weighed."""
    return _SeriesGraph(plan)


def present(sets: Tensor) -> Tensor:
    """Which series of (b, n, c, …) are there: (b, n)."""
    return ~sets.flatten(2).isnan().all(dim=2)


class AttentiveSeries(nn.Module):
    """`attention` says which series decided."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.dimensions = plan.dimensions
        self.encoder = Encoder(plan, plan.dimensions)
        self.pool = GatedAttention(plan.features[-1])
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(plan.features[-1], plan.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c, …) or (b, c, …) → logits (b, classes)."""
        series, there = self.series(x)
        logits: Tensor = self.head(self.dropout(self.pool(series, there)))
        return logits

    def series(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each series as numbers (b, n, features[-1]), float32, 0 where there is none; and which are there (b, n)."""
        sets = x[:, None] if x.ndim == self.dimensions + 2 else x
        there = present(sets)
        # What is not there is not computed either.
        known = self.encoder(sets[there]).float()
        series = known.new_zeros(*there.shape, known.shape[1])
        return series.masked_scatter(there[..., None], known), there

    @torch.inference_mode()
    def attention(self, x: Tensor) -> Tensor:
        """(b, n, c, …) → how much each series counts (b, n), adding up to 1; 0 for one that is not there."""
        return self.pool.weights(*self.series(x))


class _SeriesGraph(AttentiveSeries):
    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan)
        self.rounds = nn.ModuleList(Messages(plan.features[-1]) for _ in range(_ROUNDS))

    def series(self, x: Tensor) -> tuple[Tensor, Tensor]:
        series, there = super().series(x)
        edges = _everyone(there)
        nodes = series.flatten(0, 1)
        for messages in self.rounds:
            nodes = messages(nodes, edges, torch.ones(edges.shape[1], device=nodes.device))
        return nodes.view(series.shape), there


def _everyone(there: Tensor) -> Tensor:
    """Edges (2, e) between all series of a patient that are there, numbered b · n + series."""
    n = there.shape[1]
    both = there[:, :, None] & there[:, None, :] & ~torch.eye(n, dtype=torch.bool, device=there.device)
    patient, source, target = both.nonzero(as_tuple=True)
    return torch.stack((patient * n + source, patient * n + target))
