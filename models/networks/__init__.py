"""The PyTorch networks and the one table that names them.

Adding a network is writing a builder and adding one entry. A builder takes a `NetworkPlan` and returns a module:
- it takes (b, c, y, x) where `plan.dimensions` is 2 and (b, c, z, y, x) where it is 3, of any size;
- for segmentation it returns logits (b, out_channels, …) of the input's size, channel 0 the background; while
  training with deep supervision, a list of them, finest first, the coarser ones of any size;
- for classification it returns logits (b, out_channels);
- a batch may be one image, of less than the total stride too, in training as in evaluation; every parameter gets a
  gradient, in bfloat16 as well; evaluation is deterministic; the same seed gives the same weights;
- the state holds no tensor twice, so that safetensors can keep it; under `torch.device("meta")` it has shapes alone;
- where the entry says `sets`, it also takes the images of several series as one case, (b, n, c, …), NaN in every voxel
  of a series that is not there.

Importing the table imports no PyTorch: builders are named, and loaded by `build`.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.errors import RecipeError
from models.plan import NetworkPlan
from models.recipe import Kind

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "Entry", "build", "entry_for", "entry_named"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One network: who builds it (`module:function`), and what it can do.

    `own_widths` and `own_strides` are for networks whose shape is published rather than planned: the channels per
    level that `network.features = "auto"` takes, and the stride per level along every axis. What segments has exactly
    these strides, whatever the plan's are; what classifies has the plan's, which leave out the first of its own where
    the picture is too small for them. `measured`: the planner sizes patch and batch by a trial forward pass; without,
    by the arithmetic of `tasks.preprocess.topology`, which was made for these networks.
    """

    builder: str
    kinds: frozenset[Kind]
    dimensions: frozenset[int]
    description: str
    deep_supervision: bool = False
    dropout: bool = True  # honours plan.dropout
    stochastic_depth: bool = False  # honours plan.stochastic_depth
    own_widths: tuple[int, ...] = ()
    own_strides: tuple[int, ...] = ()
    width_multiple: int = 1  # of which every width is
    positions: bool = False  # has position embeddings: needs plan.size, the patch that it is trained on
    measured: bool = True
    compiles: bool = True  # torch.compile works and changes nothing
    package: str = ""  # the package that it needs besides PyTorch
    sets: bool = False  # takes a patient's series as one case


NETWORKS: dict[str, Entry] = {
    "unet": Entry(
        "models.networks.unet:build_unet",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "small residual U-Net; the most for a budget of minutes",
        deep_supervision=True,
        stochastic_depth=True,
        measured=False,
    ),
    "dynunet": Entry(
        "models.networks.dynunet:build_dynunet",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "MONAI's DynUNet, nnU-Net's plain U-Net; for long trainings on a GPU",
        deep_supervision=True,
        measured=False,
        package="monai",
    ),
    "resenc": Entry(
        "models.networks.unet:build_resenc",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "residual-encoder U-Net after nnU-Net's ResEnc presets; the strongest for long trainings",
        deep_supervision=True,
        stochastic_depth=True,
    ),
    "vnet": Entry(
        "models.networks.classics:build_vnet",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "V-Net: residual levels of 5 × 5 × 5 convolutions",
        own_widths=(16, 32, 64, 128, 256),
        own_strides=(1, 2, 2, 2, 2),
        package="monai",
    ),
    "attention_unet": Entry(
        "models.networks.classics:build_attention_unet",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "U-Net whose skip connections are gated by what lies deeper",
        package="monai",
    ),
    "segresnet": Entry(
        "models.networks.classics:build_segresnet",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "SegResNet: deep residual encoder, light decoder",
        own_widths=(32, 64, 128, 256),
        own_strides=(1, 2, 2, 2),
        package="monai",
    ),
    "unetr": Entry(
        "models.networks.transformers:build_unetr",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "UNETR: a transformer as the encoder; for large data sets",
        stochastic_depth=True,
        own_widths=(16, 32, 64, 128, 768),
        own_strides=(1, 2, 2, 2, 2),
        positions=True,
        package="monai",
    ),
    "swin_unetr": Entry(
        "models.networks.transformers:build_swin_unetr",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "Swin UNETR: a transformer of shifted windows as the encoder",
        stochastic_depth=True,
        own_widths=(48, 48, 96, 192, 384, 768),
        own_strides=(1, 2, 2, 2, 2, 2),
        width_multiple=12,
        package="monai",
    ),
    "deeplabv3plus": Entry(
        "models.networks.deeplab:build_deeplabv3plus",
        frozenset({"segmentation"}),
        frozenset({2, 3}),
        "DeepLabv3+ on a dilated ResNet-50; takes ImageNet's weights in two dimensions",
        stochastic_depth=True,
        own_widths=(256, 512, 1024, 2048),
        own_strides=(4, 2, 2, 1),
    ),
    "retinanet": Entry(
        "models.networks.retinanet:build_retinanet",
        frozenset({"detection"}),
        frozenset({2, 3}),
        "one-stage detector: boxes from a feature pyramid, with focal loss",
        measured=False,
    ),
    "gan": Entry(
        "models.networks.adversarial:build_gan",
        frozenset({"synthesis"}),
        frozenset({2, 3}),
        "generator and discriminator that know the classes",
        dropout=False,
        positions=True,
        measured=False,
    ),
    "resnet": Entry(
        "models.networks.resnet:build_resnet",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "residual classifier of ResNet-18's kind",
        stochastic_depth=True,
        measured=False,
    ),
    "cnn": Entry(
        "models.networks.resnet:build_cnn",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "plain convolutional classifier; small and quick",
        measured=False,
    ),
    "inception": Entry(
        "models.networks.inception:build_inception",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "small classifier that looks at several scales in each level",
    ),
    "resnet18": Entry(
        "models.networks.imagenet:build_resnet18",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "ResNet-18 under torchvision's parameter names",
        stochastic_depth=True,
        own_widths=(64, 128, 256, 512),
        own_strides=(4, 2, 2, 2),
    ),
    "resnet34": Entry(
        "models.networks.imagenet:build_resnet34",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "ResNet-34 under torchvision's parameter names",
        stochastic_depth=True,
        own_widths=(64, 128, 256, 512),
        own_strides=(4, 2, 2, 2),
    ),
    "resnet50": Entry(
        "models.networks.imagenet:build_resnet50",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "ResNet-50 under torchvision's parameter names",
        stochastic_depth=True,
        own_widths=(256, 512, 1024, 2048),
        own_strides=(4, 2, 2, 2),
    ),
    "densenet121": Entry(
        "models.networks.imagenet:build_densenet121",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "DenseNet-121 under torchvision's parameter names",
        own_widths=(256, 512, 1024, 1024),
        own_strides=(4, 2, 2, 2),
    ),
    "efficientnet": Entry(
        "models.networks.efficientnet:build_efficientnet",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "EfficientNet-B0: few parameters, many layers",
        stochastic_depth=True,
        own_widths=(16, 24, 40, 112, 320),
        own_strides=(2, 2, 2, 2, 2),
        package="monai",
    ),
    "vit": Entry(
        "models.networks.transformers:build_vit",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "vision transformer (ViT-S); for large data sets",
        stochastic_depth=True,
        own_widths=(384,),
        own_strides=(16,),
        positions=True,
        package="monai",
    ),
    "cnn_lstm": Entry(
        "models.networks.slices:build_cnn_lstm",
        frozenset({"classification"}),
        frozenset({3}),
        "2-D encoder of each slice, read in order by an LSTM from both ends",
        stochastic_depth=True,
    ),
    "cnn_gru": Entry(
        "models.networks.slices:build_cnn_gru",
        frozenset({"classification"}),
        frozenset({3}),
        "as cnn_lstm, by a GRU; lighter",
        stochastic_depth=True,
    ),
    "mil": Entry(
        "models.networks.slices:build_mil",
        frozenset({"classification"}),
        frozenset({3}),
        "2-D encoder of each slice, weighed by gated attention: a few slices decide, and it says which",
        stochastic_depth=True,
    ),
    "graph": Entry(
        "models.networks.graph:build_graph",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "graph of supervoxels that tell their neighbours what they look like",
        stochastic_depth=True,
        compiles=False,  # how many there are changes from batch to batch
    ),
    "patient_attention": Entry(
        "models.networks.bags:build_patient_attention",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "a patient's series together, weighed by gated attention",
        sets=True,
        stochastic_depth=True,
        compiles=False,  # how many there are changes from batch to batch
    ),
    "patient_graph": Entry(
        "models.networks.bags:build_patient_graph",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "as patient_attention, but the series hear each other first",
        sets=True,
        stochastic_depth=True,
        compiles=False,  # how many there are changes from batch to batch
    ),
}


def entry_named(name: str) -> Entry:
    """The table's entry. Raises RecipeError."""
    if name in NETWORKS:
        return NETWORKS[name]
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NETWORKS)}"
    raise RecipeError(f"there is no network {name!r}", where="network.name", hint=hint)


def entry_for(plan: NetworkPlan) -> Entry:
    """The table's entry for `plan`. Raises RecipeError: unknown name, or arguments that do not fit together."""
    entry = entry_named(plan.name)
    if plan.dimensions not in entry.dimensions:
        raise RecipeError(f"{plan.name} has no {plan.dimensions}-D variant", where="network.dimensions")
    if not plan.features or min(plan.features) < 1:
        raise RecipeError("give at least one level, each with at least one channel", where="network.features")
    levels, own = len(plan.features), len(entry.own_widths)
    if own and levels != own:
        raise RecipeError(f"{plan.name} has {own} levels, not {levels}", where="network.features")
    if any(width % entry.width_multiple for width in plan.features):
        needed = f"{plan.name}'s widths are multiples of {entry.width_multiple}"
        raise RecipeError(f"{needed}, unlike {'-'.join(map(str, plan.features))}", where="network.features")
    for what, given in (("strides", plan.strides), ("kernels", plan.kernels)):
        if given and len(given) != levels:
            raise RecipeError(f"{levels} levels need {levels} {what}, not {len(given)}", where="network.features")
    return entry


def build(plan: NetworkPlan) -> nn.Module:
    """The network of `plan`, with fresh weights drawn from PyTorch's global generator. Raises RecipeError.

    With clinical variables, `forward` takes them as a second argument, (b, plan.variables). A network that is told a
    coarser segmentation takes it as one more channel.
    """
    if plan.told:
        from models.networks.told import build_told

        return build_told(plan)
    if plan.variables:
        from models.networks.fusion import build_fusion

        return build_fusion(plan)
    module, function = entry_for(plan).builder.split(":")
    network: nn.Module = getattr(importlib.import_module(module), function)(plan)
    return network
