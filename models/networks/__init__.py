"""The PyTorch networks and the one table that names them.

Adding a network is writing a builder and adding one entry. A builder takes a `NetworkPlan` and returns a module:
- it takes (b, c, y, x) where `plan.dimensions` is 2 and (b, c, z, y, x) where it is 3, of any size;
- for segmentation it returns logits (b, out_channels, …) of the input's size, channel 0 the background; while
  training with deep supervision, a list of them, finest first, the coarser ones of any size;
- for classification it returns logits (b, out_channels);
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

__all__ = ["NETWORKS", "Entry", "build", "entry_for"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One network: who builds it (`module:function`), and what it can do.

    `own_widths` and `own_strides` are for networks whose shape is published rather than planned: the channels per
    level that `network.features = "auto"` takes, and the stride per level along every axis, whatever the plan's
    strides are. The planner sizes patch and batch for them. `measured`: it does so by a trial forward pass; without,
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
    "retinanet": Entry(
        "models.networks.retinanet:build_retinanet",
        frozenset({"detection"}),
        frozenset({2, 3}),
        "one-stage detector: boxes from a feature pyramid, with focal loss",
        measured=False,
    ),
    "resnet": Entry(
        "models.networks.resnet:build_resnet",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "residual classifier of ResNet-18's kind",
        measured=False,
    ),
    "cnn": Entry(
        "models.networks.resnet:build_cnn",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "plain convolutional classifier; small and quick",
        measured=False,
    ),
    "cnn_lstm": Entry(
        "models.networks.slices:build_cnn_lstm",
        frozenset({"classification"}),
        frozenset({3}),
        "2-D encoder of each slice, read in order by an LSTM from both ends",
    ),
    "cnn_gru": Entry(
        "models.networks.slices:build_cnn_gru",
        frozenset({"classification"}),
        frozenset({3}),
        "as cnn_lstm, by a GRU; lighter",
    ),
    "mil": Entry(
        "models.networks.slices:build_mil",
        frozenset({"classification"}),
        frozenset({3}),
        "2-D encoder of each slice, weighed by gated attention: a few slices decide, and it says which",
    ),
    "graph": Entry(
        "models.networks.graph:build_graph",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "graph of supervoxels that tell their neighbours what they look like",
    ),
    "patient_attention": Entry(
        "models.networks.bags:build_patient_attention",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "a patient's series together, weighed by gated attention",
        sets=True,
    ),
    "patient_graph": Entry(
        "models.networks.bags:build_patient_graph",
        frozenset({"classification"}),
        frozenset({2, 3}),
        "as patient_attention, but the series hear each other first",
        sets=True,
    ),
}


def entry_for(plan: NetworkPlan) -> Entry:
    """The table's entry for `plan`. Raises RecipeError: unknown name, or arguments that do not fit together."""
    if plan.name not in NETWORKS:
        near = difflib.get_close_matches(plan.name, NETWORKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NETWORKS)}"
        raise RecipeError(f"there is no network {plan.name!r}", where="network.name", hint=hint)
    entry = NETWORKS[plan.name]
    if plan.dimensions not in entry.dimensions:
        raise RecipeError(f"{plan.name} has no {plan.dimensions}-D variant", where="network.dimensions")
    if not plan.features or min(plan.features) < 1:
        raise RecipeError("give at least one level, each with at least one channel", where="network.features")
    levels = len(plan.features)
    for what, given in (("strides", plan.strides), ("kernels", plan.kernels)):
        if given and len(given) != levels:
            raise RecipeError(f"{levels} levels need {levels} {what}, not {len(given)}", where="network.features")
    return entry


def build(plan: NetworkPlan) -> nn.Module:
    """The network of `plan`, with fresh weights drawn from PyTorch's global generator. Raises RecipeError."""
    module, function = entry_for(plan).builder.split(":")
    network: nn.Module = getattr(importlib.import_module(module), function)(plan)
    return network
