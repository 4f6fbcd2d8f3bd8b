"""A one-stage detector in two and three dimensions (RetinaNet: Lin et al., "Focal loss", 2017).

A residual encoder, a feature pyramid over its levels from the second on (the first is as large as the image and costs
most), and two heads that all levels share. There is one anchor a place, a cube of four strides: with adaptive matching
more of them change nothing (ATSS: Zhang et al. 2020). MONAI's RetinaNet needs torchvision for its encoder and its
matcher, which is why this one is ours.

Each level's output is (b, k + 2d, …): k logits, one a class, each independent, then d offsets and d sizes of the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import RecipeError
from models.networks.blocks import CONV, Residual, Unit, initialise, kernels_of, strides_of
from models.plan import NetworkPlan

PRIOR = 0.01
"""Probability of a lesion that every place starts from, without which the many empty ones drown the first steps."""
ANCHOR_STRIDES = 4
"""An anchor's side, in strides of its level."""
DEPTH = 2
"""Units of each head (four in the paper, for far larger images)."""
_WIDEST = 128
_MOST_LEVELS = 4
_SIZE_LIMIT = math.log(8)


def build_retinanet(plan: NetworkPlan) -> nn.Module:
    """Needs two levels or more; the first level's stride is 1 unless the plan says otherwise."""
    if len(plan.features) < 2:
        raise RecipeError("retinanet needs two levels or more", where="network.features")
    return RetinaNet(plan)


class RetinaNet(nn.Module):
    """(b, c, …) of any size → a list of the levels' outputs, finest first."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, features = plan.dimensions, plan.features
        strides, kernels, ones = strides_of(plan), kernels_of(plan), (1,) * plan.dimensions
        self.dimensions, self.classes = d, plan.out_channels
        self.strides = pyramid_strides(plan)
        self.down = nn.ModuleList(
            Residual(
                d,
                (features[i - 1] if i else plan.in_channels, features[i]),
                kernels[i],
                strides[i],
                norm_kind="group",
                dropout=plan.dropout,
            )
            for i in range(1 + len(self.strides))
        )
        used = range(1, 1 + len(self.strides))
        width = min(_WIDEST, max(features[1], 16))
        self.lateral = nn.ModuleList(CONV[d](features[i], width, 1) for i in used)
        self.smooth = nn.ModuleList(Unit(d, (width, width), kernels[i], ones, norm_kind="group") for i in used)
        self.class_units, self.box_units = _units(d, width), _units(d, width)
        self.class_head = CONV[d](width, plan.out_channels, 3, padding=1)
        self.box_head = CONV[d](width, 2 * d, 3, padding=1)
        initialise(self)
        for head, bias in ((self.class_head, -math.log((1 - PRIOR) / PRIOR)), (self.box_head, 0.0)):
            weights = head.state_dict(keep_vars=True)
            nn.init.normal_(weights["weight"], std=0.01)
            nn.init.constant_(weights["bias"], bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits and boxes of each level."""
        levels: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        merged: list[Tensor] = []
        for lateral, features in zip(reversed(self.lateral), reversed(levels[1:]), strict=True):
            here = lateral(features)
            if merged:
                here = here + functional.interpolate(merged[-1], here.shape[2:], mode="nearest")
            merged.append(here)
        smooth = [unit(features) for unit, features in zip(self.smooth, reversed(merged), strict=True)]
        return [
            torch.cat((self.class_head(self.class_units(f)), self.box_head(self.box_units(f))), dim=1) for f in smooth
        ]


def _units(dimensions: int, width: int) -> nn.Sequential:
    three, ones = (3,) * dimensions, (1,) * dimensions
    return nn.Sequential(*(Unit(dimensions, (width, width), three, ones, norm_kind="group") for _ in range(DEPTH)))


def pyramid_strides(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """The total stride of each level that has a head, along each axis."""
    totals: list[tuple[int, ...]] = []
    for stride in strides_of(plan):
        before = totals[-1] if totals else (1,) * plan.dimensions
        totals.append(tuple(a * b for a, b in zip(before, stride, strict=True)))
    return totals[1 : 1 + _MOST_LEVELS]


def anchors(outputs: Sequence[Tensor], strides: Sequence[Sequence[int]]) -> list[Tensor]:
    """(n, 2d) of each level: middle and side of the anchor of each place, in voxels, in the order of `flattened`."""
    made = []
    for output, stride in zip(outputs, strides, strict=True):
        device = output.device
        lines = [
            (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * s
            for n, s in zip(output.shape[2:], stride, strict=True)
        ]
        middles = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)
        side = torch.tensor([float(ANCHOR_STRIDES * s) for s in stride], device=device)
        made.append(torch.cat((middles, side.expand_as(middles)), dim=1))
    return made


def flattened(outputs: Sequence[Tensor]) -> Tensor:
    """(b, places of all levels, k + 2d), float32."""
    return torch.cat([output.float().flatten(2).transpose(1, 2) for output in outputs], dim=1)


def decoded(deltas: Tensor, places: Tensor) -> Tensor:
    """Boxes (…, 2d) as lowest and highest corner, voxels; from offsets and sizes (…, 2d) at anchors (…, 2d)."""
    d = places.shape[-1] // 2
    middle = places[..., :d] + deltas[..., :d] * places[..., d:]
    # Bounded smoothly: beyond a hard limit a size would never learn to come back.
    half = places[..., d:] * (_SIZE_LIMIT * (deltas[..., d:] / _SIZE_LIMIT).tanh()).exp() / 2
    return torch.cat((middle - half, middle + half), dim=-1)
