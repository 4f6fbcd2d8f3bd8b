"""Residual U-Nets: residual units down, one unit a level up, deep supervision heads where asked for.

After nnU-Net's ResEnc presets (Isensee et al. 2024): `resenc` has their units per level, `unet` one a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.blocks import (
    CONV,
    UPCONV,
    Padded,
    Residual,
    Unit,
    depth_rates,
    initialise,
    kernels_of,
    strides_of,
    upsample,
)
from models.plan import NetworkPlan

RESENC_UNITS = (1, 3, 4, 6)
"""Of nnU-Net's ResEnc M, L and XL; deeper levels have as many as the last."""


def build_unet(plan: NetworkPlan) -> nn.Module:
    """Any number of levels; `strides[0]` above 1 works on a coarser grid and interpolates the logits back."""
    return Padded(initialise(UNet(plan)), strides_of(plan))


def build_resenc(plan: NetworkPlan) -> nn.Module:
    """A stem and RESENC_UNITS; each residual unit starts as its shortcut, as nnU-Net's do."""
    levels = len(plan.features)
    units = (RESENC_UNITS + RESENC_UNITS[-1:] * levels)[:levels]
    network = initialise(UNet(plan, units, stem=True))
    for module in network.modules():
        if isinstance(module, Residual):
            module.start_as_shortcut()
    return Padded(network, strides_of(plan))


class UNet(nn.Module):
    """Sizes must be multiples of the product of the strides. `units` are the residual ones per level."""

    def __init__(self, plan: NetworkPlan, units: Sequence[int] = (), *, stem: bool = False) -> None:
        super().__init__()
        d, features = plan.dimensions, plan.features
        strides, kernels = strides_of(plan), kernels_of(plan)
        levels = range(len(features))
        ones = (1,) * d
        self.stem = Unit(d, (plan.in_channels, features[0]), kernels[0], ones) if stem else nn.Identity()
        widths = [features[0] if stem else plan.in_channels, *features]
        self.down = nn.ModuleList(
            _stage(plan, (widths[i], features[i]), kernels[i], strides[i], rates)
            for i, rates in enumerate(_shared_out(plan, units or (1,) * len(features)))
        )
        self.up = nn.ModuleList(
            UPCONV[d](features[i + 1], features[i], strides[i + 1], strides[i + 1]) for i in levels[:-1]
        )
        self.merge = nn.ModuleList(
            Unit(d, (2 * features[i], features[i]), kernels[i], ones, dropout=plan.dropout) for i in levels[:-1]
        )
        # The coarsest decoder level gets no head: nnU-Net weighs it with zero.
        heads = max(1, len(features) - 2) if plan.deep_supervision else 1
        self.heads = nn.ModuleList(CONV[d](features[i], plan.out_channels, 1) for i in range(heads))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, c, …) → logits (b, k, …); while training, with more than one head, a list, finest first."""
        size = x.shape[2:]
        x = self.stem(x)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        supervised = self.training and len(self.heads) > 1
        outputs = [self.heads[-1](x)] if len(self.down) == 1 else []
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat((skips[level], self.up[level](x)), dim=1))
            if level == 0 or (supervised and level < len(self.heads)):
                outputs.append(self.heads[level](x))
        finest = outputs[-1]
        if finest.shape[2:] != size:
            finest = upsample(finest, size)
        return [finest, *outputs[-2::-1]] if supervised else finest


def _shared_out(plan: NetworkPlan, units: Sequence[int]) -> list[list[float]]:
    """Per level, how often each of its units is skipped."""
    rates = iter(depth_rates(plan, sum(units)))
    return [[next(rates) for _ in range(count)] for count in units]


def _stage(
    plan: NetworkPlan,
    channels: tuple[int, int],
    kernel: Sequence[int],
    stride: Sequence[int],
    rates: Sequence[float],
) -> nn.Module:
    """One residual unit a rate; the first has the stride."""
    d, (before, after), ones = plan.dimensions, channels, (1,) * plan.dimensions
    first = Residual(d, (before, after), kernel, stride, dropout=plan.dropout, skipped=rates[0])
    others = [Residual(d, (after, after), kernel, ones, dropout=plan.dropout, skipped=rate) for rate in rates[1:]]
    return nn.Sequential(first, *others) if others else first
