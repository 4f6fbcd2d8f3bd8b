"""Classifiers that look at a volume slice by slice: one 2-D encoder for all, then what the slices say together.

Any number of slices is taken, one too. The strides and kernels of the plan count in the slices' plane alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.sets import Encoder, GatedAttention
from models.plan import NetworkPlan


def build_cnn_lstm(plan: NetworkPlan) -> nn.Module:
    """Slices in order, read from both ends by an LSTM (Hochreiter & Schmidhuber 1997)."""
    return _Recurrent(plan, nn.LSTM)


def build_cnn_gru(plan: NetworkPlan) -> nn.Module:
    """As `build_cnn_lstm`, by a GRU (Cho et al. 2014)."""
    return _Recurrent(plan, nn.GRU)


def build_mil(plan: NetworkPlan) -> nn.Module:
    """Slices in any order, weighed by gated attention: multiple-instance learning (Ilse et al. 2018)."""
    return AttentiveSlices(plan)


class _Slices(nn.Module):
    """The encoder over slices."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.encoder = Encoder(plan, 2)
        self.dropout = nn.Dropout(plan.dropout)

    def slices(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) → (b, z, features[-1]) float32."""
        b, c, z = x.shape[:3]
        flat = x.movedim(2, 1).reshape(b * z, c, *x.shape[3:])
        numbers: Tensor = self.encoder(flat).float().view(b, z, -1)
        return numbers


class _Recurrent(_Slices):
    """The greatest that either direction says of each number over the slices, so that no slice is too far away."""

    def __init__(self, plan: NetworkPlan, cell: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__(plan)
        width = plan.features[-1]
        self.reader = cell(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, plan.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) → logits (b, classes)."""
        slices = self.slices(x)
        # In float32: over many slices bfloat16 forgets.
        with torch.autocast(x.device.type, enabled=False):
            read, _ = self.reader(slices)
        logits: Tensor = self.head(self.dropout(read.amax(dim=1)))
        return logits


class AttentiveSlices(_Slices):
    """`attention` says which slices decided."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__(plan)
        self.pool = GatedAttention(plan.features[-1])
        self.head = nn.Linear(plan.features[-1], plan.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) → logits (b, classes)."""
        logits: Tensor = self.head(self.dropout(self.pool(self.slices(x))))
        return logits

    @torch.inference_mode()
    def attention(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) → how much each slice counts (b, z), adding up to 1."""
        return self.pool.weights(self.slices(x))
