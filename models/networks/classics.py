"""Segmentation networks of MONAI's that are built of convolutions: V-Net, Attention U-Net, SegResNet.

Where they use batch norms these become instance norms: patches are few in a batch, and a patch of a single coarsest
voxel must not fail. Norms right before an output go: they would hide how much there is of a class in a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.attentionunet import AttentionBlock, AttentionUnet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.vnet import DownTransition, UpTransition, VNet
from torch import Tensor, nn

from models.errors import RecipeError
from models.networks.blocks import CONV, Padded, Unit, initialise, strides_of
from models.networks.norms import instanced
from models.plan import NetworkPlan

VNET_UNITS = ((1, 2, 3, 2), (2, 2, 1, 1))
"""Convolutions per level, down and up (Milletari et al. 2016)."""
SEGRESNET_UNITS = ((1, 2, 2, 4), (1, 1, 1))
"""Residual units per level, down and up (Myronenko 2018)."""


def build_vnet(plan: NetworkPlan) -> nn.Module:
    """Widths double from level to level: the first of the plan's features says how wide it is."""
    return Padded(initialise(instanced(_VNet(plan))), _halving(plan))


def build_attention_unet(plan: NetworkPlan) -> nn.Module:
    """Two levels or more (Oktay et al. 2018)."""
    strides: Sequence[Any] = strides_of(plan)  # MONAI names one for all axes, and takes one for each
    if len(plan.features) < 2 or max(strides[0]) > 1:
        raise RecipeError("attention_unet needs two levels or more, the first at full size", where="network.features")
    network = AttentionUnet(
        spatial_dims=plan.dimensions,
        in_channels=plan.in_channels,
        out_channels=plan.out_channels,
        channels=plan.features,
        strides=strides[1:],
        dropout=plan.dropout,
    )
    for module in network.modules():
        if isinstance(module, AttentionBlock):
            # A gate whose map is normalised would be half open everywhere, whatever it sees.
            module.psi[1] = nn.Identity()
    return Padded(initialise(instanced(network)), strides)


def build_segresnet(plan: NetworkPlan) -> nn.Module:
    """Widths double from level to level: the first of the plan's features says how wide it is."""
    down, up = SEGRESNET_UNITS
    width = plan.features[0]
    network = SegResNet(
        spatial_dims=plan.dimensions,
        init_filters=width,
        in_channels=plan.in_channels,
        out_channels=plan.out_channels,
        dropout_prob=plan.dropout or None,
        norm=("group", {"num_groups": math.gcd(8, width)}),
        blocks_down=down,
        blocks_up=up,
    )
    return Padded(initialise(network), _halving(plan))


def _halving(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Every axis halved from level to level."""
    return [(1 if level == 0 else 2,) * plan.dimensions for level in range(len(plan.features))]


class _VNet(VNet):
    """MONAI's, of any width, for any number of channels."""

    def __init__(self, plan: NetworkPlan) -> None:
        nn.Module.__init__(self)
        d, width, dropout = plan.dimensions, plan.features[0], plan.dropout
        act = ("elu", {"inplace": True})
        down, up = VNET_UNITS
        self.add_module("in_tr", _Entrance(plan))
        widths = [width * 2**level for level in range(1, 5)]
        self.down_tr32, self.down_tr64, self.down_tr128, self.down_tr256 = (
            DownTransition(d, after // 2, units, act, dropout or None, dropout_dim=d)
            for after, units in zip(widths, down, strict=True)
        )
        pairs = ((16, 16), (16, 8), (8, 4), (4, 2))
        self.up_tr256, self.up_tr128, self.up_tr64, self.up_tr32 = (
            UpTransition(d, before * width, after * width, units, act, (dropout or None, dropout), dropout_dim=d)
            for (before, after), units in zip(pairs, up, strict=True)
        )
        self.add_module("out_tr", CONV[d](2 * width, plan.out_channels, 1))


class _Entrance(nn.Module):
    """The first convolution, around which the channels are repeated as often as they fill the width."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, self.width = plan.dimensions, plan.features[0]
        self.unit = Unit(d, (plan.in_channels, self.width), (5,) * d, (1,) * d, active=False)
        self.activation = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → (b, width, …)."""
        times = -(-self.width // x.shape[1])
        repeated = torch.cat([x] * times, dim=1)[:, : self.width]
        return self.activation(self.unit(x) + repeated)
