"""What the networks are composed of, in two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

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
_MEANS: dict[int, Callable[..., Tensor]] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAXIMA: dict[int, Callable[..., Tensor]] = {2: functional.max_pool2d, 3: functional.max_pool3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def strides_of(plan: NetworkPlan, stem: int = 1) -> list[tuple[int, ...]]:
    """Per level, in the network's dimensions; without strides `stem` is the first level's, the others halve."""
    given = plan.strides or ((stem,) * 3, *[(2, 2, 2)] * (len(plan.features) - 1))
    return [in_dimensions(s, plan.dimensions) for s in given]


def kernels_of(plan: NetworkPlan) -> list[tuple[int, ...]]:
    """Per level, in the network's dimensions; 3 by default."""
    given = plan.kernels or ((3, 3, 3),) * len(plan.features)
    return [in_dimensions(k, plan.dimensions) for k in given]


def in_dimensions(values: IntTriple, dimensions: int) -> tuple[int, ...]:
    """(z, y, x), or (y, x) in two dimensions."""
    return tuple(values)[3 - dimensions :]


def depth_rates(plan: NetworkPlan, units: int) -> list[float]:
    """How often each residual unit is skipped: rising linearly to the plan's share at the last one."""
    return [plan.stochastic_depth * (i + 1) / units for i in range(units)]


class StochasticDepth(nn.Module):
    """Skips a residual unit's branch for a share of the samples while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(b, …): whole samples become zero, the others are scaled up to keep the mean."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))


def norm(kind: str, dimensions: int, channels: int) -> nn.Module:
    """`instance`, or `group` of about eight channels each; neither depends on the batch."""
    if kind == "instance":
        return INSTANCE[dimensions](channels, affine=True)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


class Shrink(nn.Module):
    """The mean or the maximum of every `stride` elements and of what remains at the far end, however little it is."""

    def __init__(self, stride: Sequence[int], how: Literal["mean", "maximum"] = "mean") -> None:
        super().__init__()
        self.stride, self.how = tuple(stride), how

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → (b, c, … / stride, rounded up)."""
        window = tuple(min(s, n) for s, n in zip(self.stride, x.shape[2:], strict=True))
        pool = _MEANS[x.ndim - 2] if self.how == "mean" else _MAXIMA[x.ndim - 2]
        return pool(x, window, self.stride, ceil_mode=True)


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
        skipped: float = 0.0,
    ) -> None:
        super().__init__()
        before, after = channels
        ones = (1,) * dimensions
        self.first = Unit(dimensions, (before, after), kernel, stride, norm_kind=norm_kind, dropout=dropout)
        self.second = Unit(dimensions, (after, after), kernel, ones, norm_kind=norm_kind, active=False)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(Shrink(stride))
        if before != after:
            shortcut.append(Unit(dimensions, channels, ones, ones, norm_kind=norm_kind, active=False))
        self.shortcut = nn.Sequential(*shortcut)
        self.skip = StochasticDepth(skipped)

    def start_as_shortcut(self) -> None:
        """The last norm begins at zero: deep networks then learn sooner."""
        last: Any = self.second[1]
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, … / stride)."""
        return self.activation(self.skip(self.second(self.first(x))) + self.shortcut(x))


class Padded(nn.Module):
    """Any size for a network that needs multiples of its total stride: zeros are added, then cut off again."""

    def __init__(self, network: nn.Module, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        self.multiple = tuple(math.prod(axis) for axis in zip(*strides, strict=True))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(b, c, …) → logits of the same size, or a list whose coarser members keep the padding."""
        size = x.shape[2:]
        least = list(self.multiple)
        if all(n <= m for n, m in zip(size, self.multiple, strict=True)):
            least[-1] *= 2  # a single element has no instance statistics
        padded = pad(x, self.multiple, least)
        if padded is x:
            return self.network(x)
        logits = self.network(padded)
        if isinstance(logits, list):
            raise ValueError("deep supervision needs a patch that the network's strides divide")
        return logits[(..., *(slice(n) for n in size))]


def pad(x: Tensor, multiple: Sequence[int], least: Sequence[int]) -> Tensor:
    """(b, c, …) with zeros at the far ends up to multiples, and up to `least`; itself where nothing is missing."""
    wanted = (max(k, math.ceil(n / m) * m) for n, m, k in zip(x.shape[2:], multiple, least, strict=True))
    extra = [w - n for w, n in zip(wanted, x.shape[2:], strict=True)]
    return functional.pad(x, [amount for n in reversed(extra) for amount in (0, n)]) if any(extra) else x


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
    with uncast(logits):
        return functional.interpolate(logits.float(), tuple(size), mode=mode, align_corners=False)


def uncast(x: Tensor) -> AbstractContextManager[Any]:
    """Computing in x's own precision, where x has values (the planner's trial has shapes alone)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
