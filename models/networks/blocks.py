"""What the networks are composed of, in two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.plan import IntTriple, NetworkPlan

SLOPE = 0.01
_Table = dict[int, Callable[..., nn.Module]]
CONV: _Table = {2: nn.Conv2d, 3: nn.Conv3d}
UPCONV: _Table = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL: _Table = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE: _Table = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
INSTANCE: _Table = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT: _Table = {2: nn.Dropout2d, 3: nn.Dropout3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def strides_of(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Per level, in the network's dimensions; without strides the first level keeps the size, the others halve it."""
    given = plan.strides or ((1, 1, 1), *[(2, 2, 2)] * (len(plan.features) - 1))
    return [_drop_z(s, plan.dimensions) for s in given]


def kernels_of(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Per level, in the network's dimensions; 3 by default."""
    given = plan.kernels or ((3, 3, 3),) * len(plan.features)
    return [_drop_z(k, plan.dimensions) for k in given]


def _drop_z(values: IntTriple, dimensions: int) -> tuple[int, ...]:
    return tuple(values)[3 - dimensions :]


def norm(kind: str, dimensions: int, channels: int) -> nn.Module:
    """`instance`, or `group` of about eight channels each; neither depends on the batch."""
    if kind == "instance":
        return INSTANCE[dimensions](channels, affine=True)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


class Unit(nn.Sequential):
    """Convolution → norm → dropout → leaky ReLU, padded so that only the stride changes the size."""

    def __init__(
        self,
        dimensions: int,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        norm_kind: str = "instance",
        dropout: float = 0.0,
        active: bool = True,
    ) -> None:
        before, after = channels
        padding = tuple(k // 2 for k in kernel)
        super().__init__(
            CONV[dimensions](before, after, tuple(kernel), tuple(stride), padding, bias=False),
            norm(norm_kind, dimensions, after),
            *([DROPOUT[dimensions](dropout)] if dropout else []),
            *([nn.LeakyReLU(SLOPE, inplace=True)] if active else []),
        )


class Residual(nn.Module):
    """Two units and a shortcut (He et al. 2016; averaged before its 1×1 convolution, as in ResNet-D)."""

    def __init__(
        self,
        dimensions: int,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        norm_kind: str = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        before, after = channels
        ones = (1,) * dimensions
        self.first = Unit(dimensions, (before, after), kernel, stride, norm_kind=norm_kind, dropout=dropout)
        self.second = Unit(dimensions, (after, after), kernel, ones, norm_kind=norm_kind, active=False)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(AVERAGE[dimensions](tuple(stride), ceil_mode=True))
        if before != after:
            shortcut.append(Unit(dimensions, channels, ones, ones, norm_kind=norm_kind, active=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, … / stride)."""
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


class Padded(nn.Module):
    """Any size for a network that needs multiples of its total stride: zeros are added, then cut off again."""

    def __init__(self, network: nn.Module, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        self.multiple = tuple(math.prod(axis) for axis in zip(*strides, strict=True))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, c, …) → logits of the same size, or a list whose coarser members keep the padding."""
        size = x.shape[2:]
        target = [math.ceil(n / m) * m for n, m in zip(size, self.multiple, strict=True)]
        if all(t == m for t, m in zip(target, self.multiple, strict=True)):
            target[-1] *= 2  # a single element has no instance statistics
        extra = [t - n for t, n in zip(target, size, strict=True)]
        if not any(extra):
            return self.network(x)
        pads = [amount for n in reversed(extra) for amount in (0, n)]
        logits = self.network(functional.pad(x, pads))
        if isinstance(logits, list):
            raise ValueError("deep supervision needs a patch that the network's strides divide")
        return logits[(..., *(slice(n) for n in size))]


def initialise(network: nn.Module) -> nn.Module:
    """He's normal initialisation for the leaky slope."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation to `size`, in float32."""
    mode = INTERPOLATION[logits.ndim - 2]
    with torch.autocast(logits.device.type, enabled=False):
        return functional.interpolate(logits.float(), tuple(size), mode=mode, align_corners=False)
