"""ResNets and DenseNet-121 under torchvision's parameter names, so that checkpoints made with it fit by name.

He et al. 2016 and Huang et al. 2017, in two and three dimensions. The first of the plan's strides is the stem's: 4
as published (a strided 7 × 7 convolution and a pooling), 2 without the pooling, 1 for small pictures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.blocks import (
    CONV,
    POOL,
    Shrink,
    StochasticDepth,
    depth_rates,
    kernels_of,
    strides_of,
)
from models.networks.norms import SteadyBatchNorm
from models.plan import NetworkPlan

STEM = 4
DENSENET_UNITS = (6, 12, 24, 16)
GROWTH_SHARE = 32
"""DenseNet-121's last level is 32 times as wide as what each of its layers adds."""
NARROWING = 4
"""A bottleneck's inner channels are a quarter of the outer ones."""


def build_resnet18(plan: NetworkPlan) -> nn.Module:
    """Two plain units a level."""
    return ResNet(plan, (2, 2, 2, 2))


def build_resnet34(plan: NetworkPlan) -> nn.Module:
    """Plain units, 3-4-6-3."""
    return ResNet(plan, (3, 4, 6, 3))


def build_resnet50(plan: NetworkPlan) -> nn.Module:
    """Bottleneck units, 3-4-6-3; the strides lie on their 3 × 3 convolutions, as in torchvision."""
    return ResNet(plan, (3, 4, 6, 3), bottleneck=True)


def build_densenet121(plan: NetworkPlan) -> nn.Module:
    """Layers that see all those before them."""
    return DenseNet(plan)


class ResNet(nn.Module):
    """`units` per level; `dilation` is the last level's, in place of its stride. `classify=False`: without a head."""

    def __init__(
        self,
        plan: NetworkPlan,
        units: Sequence[int],
        *,
        bottleneck: bool = False,
        dilation: int = 1,
        classify: bool = True,
    ) -> None:
        super().__init__()
        strides, kernels = strides_of(plan, STEM), kernels_of(plan)
        width = plan.features[0] // NARROWING if bottleneck else plan.features[0]
        self.conv1, self.maxpool = _stem(plan, width)
        self.bn1 = SteadyBatchNorm(width)
        self.relu = nn.ReLU(inplace=True)
        rates = iter(depth_rates(plan, sum(units)))
        self.levels = len(units)
        for level, (count, after) in enumerate(zip(units, plan.features, strict=True)):
            stride = strides[level] if level else (1,) * plan.dimensions
            spread = dilation if level == self.levels - 1 else 1
            stage = []
            for _ in range(count):
                unit = _bottleneck if bottleneck else _basic
                stage.append(unit(plan.dimensions, (width, after), kernels[level], stride, spread, next(rates)))
                width, stride = after, (1,) * plan.dimensions
            self.add_module(f"layer{level + 1}", nn.Sequential(*stage))
        if classify:
            self.dropout = nn.Dropout(plan.dropout)
            self.fc = nn.Linear(width, plan.out_channels)
        _initialise(self)

    def maps(self, x: Tensor) -> list[Tensor]:
        """(b, c, …) → each level's feature map, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        found = []
        for level in range(self.levels):
            x = self.get_submodule(f"layer{level + 1}")(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        logits: Tensor = self.fc(self.dropout(self.maps(x)[-1].flatten(2).mean(dim=2)))
        return logits


class _Unit(nn.Module):
    """Convolutions with a norm each, added to a shortcut; torchvision's names for both kinds."""

    def __init__(self, convolutions: Sequence[nn.Module], shortcut: nn.Module | None, skipped: float) -> None:
        super().__init__()
        self.names = [(f"conv{i}", f"bn{i}") for i in range(1, len(convolutions) + 1)]
        for (conv, bn), convolution in zip(self.names, convolutions, strict=True):
            self.add_module(conv, convolution)
            self.add_module(bn, SteadyBatchNorm(len(convolution.get_parameter("weight"))))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut
        self.skip = StochasticDepth(skipped)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, … / stride)."""
        y = x
        for conv, bn in self.names:
            y = self.get_submodule(bn)(self.get_submodule(conv)(y))
            if (conv, bn) != self.names[-1]:
                y = self.relu(y)
        whole: Tensor = self.skip(y) + (x if self.downsample is None else self.downsample(x))
        return self.relu(whole)


def _basic(
    d: int, channels: tuple[int, int], kernel: Sequence[int], stride: Sequence[int], dilation: int, skipped: float
) -> _Unit:
    """Two convolutions of the plan's kernel."""
    before, after = channels
    convolutions = [
        _conv(d, before, after, kernel, stride, dilation),
        _conv(d, after, after, kernel, (1,) * d, dilation),
    ]
    return _Unit(convolutions, _downsample(d, channels, stride), skipped)


def _bottleneck(
    d: int, channels: tuple[int, int], kernel: Sequence[int], stride: Sequence[int], dilation: int, skipped: float
) -> _Unit:
    """A convolution of the plan's kernel between two of size 1."""
    before, after = channels
    inner, ones = after // NARROWING, (1,) * d
    convolutions = [
        _conv(d, before, inner, ones, ones),
        _conv(d, inner, inner, kernel, stride, dilation),
        _conv(d, inner, after, ones, ones),
    ]
    return _Unit(convolutions, _downsample(d, channels, stride), skipped)


class DenseNet(nn.Module):
    """The last of the plan's features says how wide it is; the first levels follow from it."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, growth = plan.dimensions, max(1, plan.features[-1] // GROWTH_SHARE)
        strides, kernels = strides_of(plan, STEM), kernels_of(plan)
        width = 2 * growth
        conv, pool = _stem(plan, width)
        parts: list[tuple[str, nn.Module]] = [
            ("conv0", conv),
            ("norm0", SteadyBatchNorm(width)),
            ("relu0", nn.ReLU(inplace=True)),
            ("pool0", pool),
        ]
        for level, (count, kernel, stride) in enumerate(zip(DENSENET_UNITS, kernels, strides, strict=True)):
            if level:
                parts.append((f"transition{level}", _transition(d, width, stride)))
                width //= 2
            layers = [(f"denselayer{i + 1}", _Dense(d, width + i * growth, growth, kernel)) for i in range(count)]
            parts.append((f"denseblock{level + 1}", nn.Sequential(OrderedDict(layers))))
            width += count * growth
        parts.append(("norm5", SteadyBatchNorm(width)))
        self.features = nn.Sequential(OrderedDict(parts))
        self.dropout = nn.Dropout(plan.dropout)
        self.classifier = nn.Linear(width, plan.out_channels)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        maps = torch.relu(self.features(x))
        logits: Tensor = self.classifier(self.dropout(maps.flatten(2).mean(dim=2)))
        return logits


class _Dense(nn.Module):
    """Adds `growth` channels to those that it sees, through a bottleneck of four times as many."""

    def __init__(self, dimensions: int, before: int, growth: int, kernel: Sequence[int]) -> None:
        super().__init__()
        ones = (1,) * dimensions
        self.norm1 = SteadyBatchNorm(before)
        self.conv1 = _conv(dimensions, before, 4 * growth, ones, ones)
        self.norm2 = SteadyBatchNorm(4 * growth)
        self.conv2 = _conv(dimensions, 4 * growth, growth, kernel, ones)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(torch.relu(self.norm2(y)))), dim=1)


def _transition(dimensions: int, width: int, stride: Sequence[int]) -> nn.Sequential:
    """Half the channels on a coarser grid. Rounded up, unlike torchvision's, so that one voxel remains one."""
    ones = (1,) * dimensions
    parts: list[tuple[str, nn.Module]] = [
        ("norm", SteadyBatchNorm(width)),
        ("relu", nn.ReLU(inplace=True)),
        ("conv", _conv(dimensions, width, width // 2, ones, ones)),
        ("pool", Shrink(stride)),
    ]
    return nn.Sequential(OrderedDict(parts))


def _stem(plan: NetworkPlan, width: int) -> tuple[nn.Module, nn.Module]:
    """The strided convolution, and the pooling for what is left of the stride."""
    d, stride = plan.dimensions, strides_of(plan, STEM)[0]
    kernel = tuple(7 if k > 1 else 1 for k in kernels_of(plan)[0])
    first = tuple(min(s, 2) for s in stride)
    rest = tuple(s // f for s, f in zip(stride, first, strict=True))
    conv = _conv(d, plan.in_channels, width, kernel, first)
    if max(rest) == 1:
        return conv, nn.Identity()
    wide = tuple(3 if s > 1 else 1 for s in rest)
    return conv, POOL[d](wide, rest, padding=tuple(k // 2 for k in wide))


def _downsample(dimensions: int, channels: tuple[int, int], stride: Sequence[int]) -> nn.Sequential | None:
    before, after = channels
    if before == after and max(stride) == 1:
        return None
    return nn.Sequential(_conv(dimensions, before, after, (1,) * dimensions, stride), SteadyBatchNorm(after))


def _conv(
    dimensions: int, before: int, after: int, kernel: Sequence[int], stride: Sequence[int], dilation: int = 1
) -> nn.Module:
    padding = tuple(dilation * (k // 2) for k in kernel)
    return CONV[dimensions](before, after, tuple(kernel), tuple(stride), padding, dilation, bias=False)


def _initialise(network: nn.Module) -> None:
    """As torchvision."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
