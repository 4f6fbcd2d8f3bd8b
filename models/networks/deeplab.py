"""DeepLabv3+: a dilated ResNet, context at several scales, and a small decoder (Chen et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import CONV, DROPOUT, Padded, Unit, initialise, norm, upsample
from models.networks.imagenet import ResNet
from models.plan import NetworkPlan

STRIDES = (4, 2, 2, 1)
"""The last level is dilated in place of a stride: a sixteenth of the image's resolution remains."""
RATES = {2: (6, 12, 18), 3: (2, 4, 6)}
"""Volumes are trained on patches a few hundred millimetres wide at most, on which wider rates see only the padding."""
FINE_SHARE = 3 / 16
"""Of the decoder's width, for the fine features: 48 of 256."""


def build_deeplabv3plus(plan: NetworkPlan) -> nn.Module:
    """ResNet-50 under torchvision's names (`backbone.conv1`, …) within."""
    strides = tuple((s, s, s) for s in STRIDES)
    network = DeepLab(plan.model_copy(update={"strides": strides}))
    return Padded(network, [s[3 - plan.dimensions :] for s in strides])


class DeepLab(nn.Module):
    """Sizes must be multiples of 16. The first of the plan's features is the width of context and decoder."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, width = plan.dimensions, plan.features[0]
        ones = (1,) * d
        fine = max(1, round(FINE_SHARE * width))
        self.context = initialise(_Context(plan, plan.features[-1], width))
        self.fine = initialise(Unit(d, (width, fine), ones, ones, norm_kind="group"))
        self.merge = initialise(
            nn.Sequential(
                Unit(d, (width + fine, width), (3,) * d, ones, norm_kind="group", dropout=plan.dropout),
                Unit(d, (width, width), (3,) * d, ones, norm_kind="group", dropout=plan.dropout),
                CONV[d](width, plan.out_channels, 1),
            )
        )
        self.backbone = ResNet(plan, (3, 4, 6, 3), bottleneck=True, dilation=2, classify=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, k, …)."""
        fine, *_, coarse = self.backbone.maps(x)
        context = upsample(self.context(coarse), fine.shape[2:])
        logits = self.merge(torch.cat((context, self.fine(fine)), dim=1))
        return upsample(logits, x.shape[2:])


class _Context(nn.Module):
    """Atrous spatial pyramid pooling: single voxels, three rates, and the whole map."""

    def __init__(self, plan: NetworkPlan, before: int, after: int) -> None:
        super().__init__()
        d = plan.dimensions
        ones = (1,) * d
        self.single = Unit(d, (before, after), ones, ones, norm_kind="group")
        self.spread = nn.ModuleList(
            nn.Sequential(
                CONV[d](before, after, 3, padding=rate, dilation=rate, bias=False),
                norm("group", d, after),
                nn.LeakyReLU(inplace=True),
            )
            for rate in RATES[d]
        )
        self.whole = Unit(d, (before, after), ones, ones, norm_kind="group")
        branches = 2 + len(self.spread)
        self.project = Unit(d, (branches * after, after), ones, ones, norm_kind="group")
        self.dropout = DROPOUT[d](plan.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, …)."""
        axes = tuple(range(2, x.ndim))
        single = self.single(x)
        whole = self.whole(x.mean(dim=axes, keepdim=True)).expand_as(single)
        branches = [single, *(branch(x) for branch in self.spread), whole]
        return self.dropout(self.project(torch.cat(branches, dim=1)))
