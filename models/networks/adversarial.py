"""A generator and a discriminator that know the classes: images of a class from numbers.

Residual, after Miyato and Koyama (2018): the class enters the generator's norms, and the discriminator by projection.
Spectral normalisation (Miyato et al. 2018) keeps the discriminator's slope bounded, for the hinge loss; with a gradient
penalty (Gulrajani et al. 2017) it is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from models.errors import RecipeError
from models.networks.blocks import AVERAGE, CONV, SLOPE, norm, strides_of
from models.plan import NetworkPlan


def build_gan(plan: NetworkPlan) -> nn.Module:
    """Needs the size of the images that it makes; `out_channels` are the classes."""
    if plan.size is None:
        raise RecipeError("a generator makes images of one size: none is planned", where="preprocess.size")
    return Adversaries(plan)


class Adversaries(nn.Module):
    """Both sides. Only the generator is needed once training is over; both are kept, so that it can go on."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.latent = plan.latent
        self.generator = Generator(plan)
        self.discriminator = Discriminator(plan)

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, …) → how real each looks as an image of each class, (b, classes): no bounds, the higher the more."""
        scores: Tensor = self.discriminator(images)
        return scores

    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """New images (b, c, …) of `classes` (b,) int64; the numbers are drawn from `generator`, on the CPU."""
        numbers = torch.randn(len(classes), self.latent, generator=generator)
        images: Tensor = self.generator(numbers.to(classes.device), classes)
        return images


class Generator(nn.Module):
    """Numbers and a class → an image of the planned size."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, widths = plan.dimensions, plan.features[::-1]
        assert plan.size is not None  # noqa: S101 - asked for by build_gan
        self.size = plan.size[3 - d :]
        strides = strides_of(plan)[1:]
        self.steps = [tuple(s) for s in reversed(strides)]
        total = [math.prod(axis) for axis in zip(*strides, strict=True)] or [1] * d
        self.base = tuple(max(1, math.ceil(n / t)) for n, t in zip(self.size, total, strict=True))
        self.start = nn.Linear(plan.latent, widths[0] * math.prod(self.base))
        self.rising = nn.ModuleList(
            _Rising(d, before, after, plan.out_channels) for before, after in itertools.pairwise(widths)
        )
        self.norm = norm("group", d, widths[-1])
        self.end = CONV[d](widths[-1], plan.in_channels, 3, padding=1)

    def forward(self, numbers: Tensor, classes: Tensor) -> Tensor:
        """(b, latent), (b,) → (b, c, …)."""
        x = self.start(numbers).unflatten(1, (-1, *self.base))
        for block, step in zip(self.rising, self.steps, strict=True):
            x = block(x, classes, step)
        image: Tensor = self.end(functional.leaky_relu(self.norm(x), SLOPE))
        inside: tuple[Any, ...] = (..., *(slice(n) for n in self.size))
        return image[inside]


class _Rising(nn.Module):
    """A residual block that enlarges, its norms shifted and scaled by the class."""

    def __init__(self, dimensions: int, before: int, after: int, classes: int) -> None:
        super().__init__()
        conv = CONV[dimensions]
        self.first_norm, self.second_norm = norm("group", dimensions, before), norm("group", dimensions, after)
        self.first_shift, self.second_shift = nn.Embedding(classes, 2 * before), nn.Embedding(classes, 2 * after)
        for shift in (self.first_shift, self.second_shift):
            nn.init.normal_(shift.weight, std=0.02)
        self.first, self.second = conv(before, after, 3, padding=1), conv(after, after, 3, padding=1)
        self.shortcut = conv(before, after, 1)

    def forward(self, x: Tensor, classes: Tensor, step: Sequence[int]) -> Tensor:
        """(b, before, …) → (b, after, … × step)."""
        scale = tuple(float(s) for s in step)
        # One point at a time, the shortcut costs less before it is enlarged.
        larger = functional.interpolate(self.shortcut(x), scale_factor=scale, mode="nearest")
        y = _shifted(self.first_norm(x), self.first_shift(classes))
        y = self.first(functional.interpolate(functional.leaky_relu(y, SLOPE), scale_factor=scale, mode="nearest"))
        y = self.second(functional.leaky_relu(_shifted(self.second_norm(y), self.second_shift(classes)), SLOPE))
        return y + larger


def _shifted(x: Tensor, by: Tensor) -> Tensor:
    scale, offset = by.view(*by.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
    return x * (1 + scale) + offset


class Discriminator(nn.Module):
    """An image → how real it looks as each class."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        d, features = plan.dimensions, plan.features
        widths = (plan.in_channels, *features)
        strides = strides_of(plan)
        self.falling = nn.ModuleList(_Falling(d, widths[i], widths[i + 1], strides[i]) for i in range(len(features)))
        self.real = spectral_norm(nn.Linear(features[-1], 1))
        self.kind = spectral_norm(nn.Linear(features[-1], plan.out_channels, bias=False))

    def features(self, images: Tensor) -> Tensor:
        """(b, c, …) → (b, f)."""
        x = images
        for block in self.falling:
            x = block(x)
        return functional.leaky_relu(x, SLOPE).flatten(2).mean(2)

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, …) → (b, classes)."""
        found = self.features(images)
        scores: Tensor = self.real(found) + self.kind(found)
        return scores


class _Falling(nn.Module):
    """A residual block that shrinks, without norms: the slope is bounded by the weights."""

    def __init__(self, dimensions: int, before: int, after: int, stride: Sequence[int]) -> None:
        super().__init__()
        conv = CONV[dimensions]
        self.first = spectral_norm(conv(before, after, 3, padding=1))
        self.second = spectral_norm(conv(after, after, 3, padding=1))
        self.shortcut = spectral_norm(conv(before, after, 1))
        self.shrink: nn.Module = (
            AVERAGE[dimensions](tuple(stride), ceil_mode=True) if max(stride) > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, …) → (b, after, … / stride)."""
        y = self.second(functional.leaky_relu(self.first(functional.leaky_relu(x, SLOPE)), SLOPE))
        whole: Tensor = self.shrink(y) + self.shortcut(self.shrink(x))
        return whole
