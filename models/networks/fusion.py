"""Images and clinical variables in one classifier: late fusion.

Any classifier of the table says what it sees as an embedding instead of classes; the variables pass a small network of
their own; both together become the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import SLOPE
from models.plan import NetworkPlan

EMBEDDING = 64
"""Numbers in which a classifier sums up an image."""
HIDDEN = 32


class Fusion(nn.Module):
    """`classifier` maps images to (b, EMBEDDING)."""

    def __init__(self, classifier: nn.Module, variables: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.classifier, self.count = classifier, variables
        self.variables = nn.Sequential(
            nn.Linear(variables, HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(SLOPE)
        )
        self.norm, self.dropout = nn.LayerNorm(EMBEDDING), nn.Dropout(dropout)
        self.head = nn.Linear(EMBEDDING + HIDDEN, classes)

    def forward(self, images: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Images as the classifier takes them and (b, variables) → logits (b, classes); without, all are average."""
        if clinical is None:
            clinical = images.new_zeros((len(images), self.count))
        seen = nn.functional.leaky_relu(self.norm(self.classifier(images)), SLOPE)
        logits: Tensor = self.head(self.dropout(torch.cat((seen, self.variables(clinical).to(seen.dtype)), dim=1)))
        return logits


def build_fusion(plan: NetworkPlan) -> nn.Module:
    """The plan's classifier with a head for its variables too."""
    # Here, because the table names this module.
    from models.networks import build

    alone = plan.model_copy(update={"variables": 0, "out_channels": EMBEDDING})
    return Fusion(build(alone), plan.variables, plan.out_channels, plan.dropout)
