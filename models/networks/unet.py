"""A small residual U-Net: residual units down, one unit a level up, deep supervision heads where asked for.

Encoder after nnU-Net's ResEnc presets (Isensee et al. 2024), far narrower and one residual unit a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.blocks import CONV, UPCONV, Padded, Residual, Unit, initialise, kernels_of, strides_of, upsample
from models.plan import NetworkPlan


def build_unet(plan: NetworkPlan) -> nn.Module:
    """Any number of levels; `strides[0]` above 1 works on a coarser grid and interpolates the logits back."""
    return Padded(initialise(UNet(plan)), strides_of(plan))


class UNet(nn.Module):
    """Sizes must be multiples of the product of the strides."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, features = plan.dimensions, plan.features
        strides, kernels = strides_of(plan), kernels_of(plan)
        levels = range(len(features))
        widths = [plan.in_channels, *features]
        self.down = nn.ModuleList(
            Residual(d, (widths[i], features[i]), kernels[i], strides[i], dropout=plan.dropout) for i in levels
        )
        self.up = nn.ModuleList(
            UPCONV[d](features[i + 1], features[i], strides[i + 1], strides[i + 1]) for i in levels[:-1]
        )
        ones = (1,) * d
        self.merge = nn.ModuleList(
            Unit(d, (2 * features[i], features[i]), kernels[i], ones, dropout=plan.dropout) for i in levels[:-1]
        )
        # The coarsest decoder level gets no head: nnU-Net weighs it with zero.
        heads = max(1, len(features) - 2) if plan.deep_supervision else 1
        self.heads = nn.ModuleList(CONV[d](features[i], plan.out_channels, 1) for i in range(heads))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, c, …) → logits (b, k, …); while training, with more than one head, a list, finest first."""
        size = x.shape[2:]
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
