"""Classifiers: a residual one of ResNet-18's kind (He et al. 2016) and a plain one.

`strides[0]` is the stem's: 1 for small images (28 × 28 keeps its size), 2, or 4 (a pooled stem, ResNet's own).
Group norm in place of batch norm: small batches and averaged weights then need no special care.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.networks.blocks import Residual, Shrink, Unit, depth_rates, initialise, kernels_of, strides_of
from models.plan import NetworkPlan


def build_resnet(plan: NetworkPlan) -> nn.Module:
    """A stem, then two residual units a level."""
    d, features = plan.dimensions, plan.features
    strides, kernels = strides_of(plan), kernels_of(plan)
    ones = (1,) * d
    stages: list[nn.Module] = [stem(plan)]
    rates = iter(depth_rates(plan, 2 * len(features)))
    for i, width in enumerate(features):
        before = features[max(0, i - 1)]
        stride = strides[i] if i else ones
        stages += [
            Residual(d, (before, width), kernels[i], stride, norm_kind="group", skipped=next(rates)),
            Residual(d, (width, width), kernels[i], ones, norm_kind="group", skipped=next(rates)),
        ]
    return Classifier(stages, plan)


def build_cnn(plan: NetworkPlan) -> nn.Module:
    """A stem, then one strided unit a level."""
    strides, kernels = strides_of(plan), kernels_of(plan)
    stages: list[nn.Module] = [stem(plan)]
    for i in range(1, len(plan.features)):
        widths = (plan.features[i - 1], plan.features[i])
        stages.append(Unit(plan.dimensions, widths, kernels[i], strides[i], norm_kind="group"))
    return Classifier(stages, plan)


def stem(plan: NetworkPlan) -> nn.Module:
    d, stride = plan.dimensions, strides_of(plan)[0]
    first = tuple(min(s, 2) for s in stride)
    rest = tuple(s // f for s, f in zip(stride, first, strict=True))
    kernel = tuple(7 if s > 1 else k for s, k in zip(stride, kernels_of(plan)[0], strict=True))
    unit = Unit(d, (plan.in_channels, plan.features[0]), kernel, first, norm_kind="group")
    return nn.Sequential(unit, Shrink(rest, "maximum")) if max(rest) > 1 else unit


class Classifier(nn.Module):
    """Stages, the mean over what is left of the image, and a linear layer."""

    def __init__(self, stages: list[nn.Module], plan: NetworkPlan) -> None:
        super().__init__()
        self.stages = initialise(nn.Sequential(*stages))
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(plan.features[-1], plan.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        pooled = self.stages(x).flatten(2).mean(dim=2)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits
