"""A small classifier that looks at several scales in each level (Szegedy et al. 2015, 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.blocks import POOL, Unit, kernels_of, strides_of
from models.networks.resnet import Classifier, stem
from models.plan import NetworkPlan


def build_inception(plan: NetworkPlan) -> nn.Module:
    """A stem, then two inception units a level."""
    strides, kernels, ones = strides_of(plan), kernels_of(plan), (1,) * plan.dimensions
    stages: list[nn.Module] = [stem(plan)]
    for i, width in enumerate(plan.features):
        before = plan.features[max(0, i - 1)]
        stages.append(Inception(plan, (before, width), kernels[i], strides[i] if i else ones))
        stages.append(Inception(plan, (width, width), kernels[i], ones))
    return Classifier(stages, plan)


class Inception(nn.Module):
    """Four branches side by side: one voxel, one convolution, two in a row, the neighbourhood's maximum."""

    def __init__(
        self, plan: NetworkPlan, channels: tuple[int, int], kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        d, (before, after) = plan.dimensions, channels
        ones = (1,) * d
        shares = [len(range(i, after, 4)) for i in range(4)]  # as equal as can be, never lost
        inner = max(1, after // 4)

        def unit(first: int, last: int, size: Sequence[int], step: Sequence[int]) -> Unit:
            return Unit(d, (first, last), size, step, norm_kind="group")

        self.branches = nn.ModuleList()
        if shares[0]:
            self.branches.append(unit(before, shares[0], ones, stride))
        if shares[1]:
            self.branches.append(nn.Sequential(unit(before, inner, ones, ones), unit(inner, shares[1], kernel, stride)))
        if shares[2]:
            self.branches.append(
                nn.Sequential(
                    unit(before, inner, ones, ones),
                    unit(inner, inner, kernel, ones),
                    unit(inner, shares[2], kernel, stride),
                )
            )
        if shares[3]:
            pool = POOL[d](tuple(kernel), tuple(stride), tuple(k // 2 for k in kernel))
            self.branches.append(nn.Sequential(pool, unit(before, shares[3], ones, ones)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, … / stride)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)
