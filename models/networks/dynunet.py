"""nnU-Net's plain U-Net, by MONAI. MONAI is imported here alone, so that the other networks run without it."""

from __future__ import annotations

from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from models.errors import RecipeError
from models.networks.blocks import SLOPE, Padded, initialise, kernels_of, strides_of
from models.plan import NetworkPlan


def build_dynunet(plan: NetworkPlan) -> nn.Module:
    """Needs three levels or more."""
    if len(plan.features) < 3:
        raise RecipeError("dynunet needs three levels or more", where="network.features")
    strides, kernels = strides_of(plan), kernels_of(plan)
    heads = max(0, len(plan.features) - 3) if plan.deep_supervision else 0
    network = DynUNet(
        spatial_dims=plan.dimensions,
        in_channels=plan.in_channels,
        out_channels=plan.out_channels,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(plan.features),
        dropout=plan.dropout or None,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"negative_slope": SLOPE, "inplace": True}),
        deep_supervision=heads > 0,
        deep_supr_num=max(1, heads),
    )
    return Padded(initialise(_Listed(network)), strides)


class _Listed(nn.Module):
    """DynUNet stacks its heads along an axis; here they are a list."""

    def __init__(self, network: DynUNet) -> None:
        super().__init__()
        self.network = network
        # Its skip layers hold every block a second time; as a plain attribute they stay out of the state.
        skips = network._modules.pop("skip_layers")
        object.__setattr__(network, "skip_layers", skips)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits: Tensor = self.network(x)
        return list(logits.unbind(1)) if logits.ndim > x.ndim else logits
