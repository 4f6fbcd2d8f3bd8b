"""EfficientNet-B0 by MONAI (Tan and Le 2019), for images of any size and with the plan's strides."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.efficientnet import EfficientNet, MBConvBlock
from torch import nn

from models.networks.blocks import strides_of
from models.networks.norms import steadied
from models.plan import NetworkPlan

BLOCKS = (
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)
WIDEST = 320
STEM = 2


def build_efficientnet(plan: NetworkPlan) -> nn.Module:
    """The last of the plan's features says how wide it is; the strides are the stem's and the strided blocks'."""
    network = EfficientNet(
        list(BLOCKS),
        spatial_dims=plan.dimensions,
        in_channels=plan.in_channels,
        num_classes=plan.out_channels,
        width_coefficient=plan.features[-1] / WIDEST,
        dropout_rate=plan.dropout,
        drop_connect_rate=plan.stochastic_depth,
    )
    strided: list[Any] = [m for m in network.modules() if isinstance(m, MBConvBlock) and m.stride != 1]
    stem, *others = strides_of(plan, STEM)
    network._conv_stem.stride = stem
    for block, stride in zip(strided, others, strict=True):
        block.stride = block._depthwise_conv.stride = stride
    _pad_evenly(network)
    return steadied(network)


def _pad_evenly(network: nn.Module) -> None:
    """MONAI pads for pictures of 224 alone, and by an activation of its own that cannot be compiled."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.padding = tuple(k // 2 for k in module.kernel_size)
        for name, _ in list(module.named_children()):
            if name.endswith("_padding"):
                setattr(module, name, nn.Identity())
            elif name == "_swish":
                setattr(module, name, nn.SiLU())
