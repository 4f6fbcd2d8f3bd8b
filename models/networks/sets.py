"""What networks over sets are composed of: an encoder of one member, a choice among them, messages between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import Residual, depth_rates, initialise, kernels_of, strides_of
from models.plan import NetworkPlan


class Encoder(nn.Module):
    """One image as numbers: a residual unit a level, averaged over the map. (m, c, …) → (m, features[-1]).

    `dimensions` may be 2 in a 3-D plan: every slice is then an image of its own.
    """

    def __init__(self, plan: NetworkPlan, dimensions: int) -> None:
        super().__init__()
        self.stages = initialise(nn.Sequential(*residual_stages(plan, dimensions, len(plan.features))))

    def forward(self, images: Tensor) -> Tensor:
        """(m, c, …) → (m, features[-1])."""
        numbers: Tensor = self.stages(images).flatten(2).mean(dim=2)
        return numbers


def residual_stages(plan: NetworkPlan, dimensions: int, levels: int) -> list[nn.Module]:
    """The plan's first levels, a residual unit each; a kernel is at least as wide as its stride needs to see all."""
    flat = plan.model_copy(update={"dimensions": dimensions})
    widths = (plan.in_channels, *plan.features)
    kernels, strides = kernels_of(flat)[:levels], strides_of(flat)[:levels]
    return [
        Residual(
            dimensions,
            (widths[i], widths[i + 1]),
            tuple(max(k, 2 * s - 1) for k, s in zip(kernel, stride, strict=True)),
            stride,
            norm_kind="group",
            skipped=rate,
        )
        for i, (kernel, stride, rate) in enumerate(zip(kernels, strides, depth_rates(plan, levels), strict=True))
    ]


class GatedAttention(nn.Module):
    """Which members of a set matter: softmax of w·(tanh(V h) ⊙ σ(U h)) (Ilse et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def weights(self, members: Tensor, present: Tensor | None = None) -> Tensor:
        """(b, n, width) → (b, n) float32, 0 or more, adding up to 1; 0 where not `present` (b, n)."""
        scores = self.score(self.content(members).tanh() * self.gate(members).sigmoid())[..., 0].float()
        if present is not None:
            scores = scores.masked_fill(~present, -torch.inf)
        return scores.softmax(dim=1)

    def forward(self, members: Tensor, present: Tensor | None = None) -> Tensor:
        """(b, n, width) → their weighted mean (b, width), float32."""
        return (self.weights(members, present)[..., None] * members.float()).sum(dim=1)


class Messages(nn.Module):
    """One round of message passing: every node hears the mean of its neighbours (GraphSAGE, Hamilton et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.heard = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.norm, self.activation = nn.LayerNorm(width), nn.GELU()

    def forward(self, nodes: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        """Nodes (m, width) float32, edges (2, e) from → to, their weights (e,) → (m, width) float32."""
        source, target = edges
        said = nodes.index_select(0, source) * weights[:, None]
        total = weights.new_zeros(len(nodes)).index_add_(0, target, weights)
        mean = torch.zeros_like(nodes).index_add_(0, target, said) / total.clamp_min(1e-6)[:, None]
        heard = self.activation(self.norm(self.own(nodes) + self.heard(mean)))
        return nodes + heard.float()
