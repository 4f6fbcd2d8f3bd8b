"""What augmentation does to the values of one channel, in place; nnU-Net's transforms as batchgeneratorsv2 has them.

A channel is float32 (z, y, x) or (y, x). Nothing here waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-7


def blur(channel: Tensor, sigmas: Sequence[float]) -> None:
    """A Gaussian of so many voxels along each axis, mirrored at the border."""
    for axis, sigma in enumerate(sigmas):
        weights = _taps(sigma, channel.shape[axis] - 1)
        before = channel.clone()
        channel.mul_(weights[0])
        for reach, weight in enumerate(weights[1:], start=1):
            _add_neighbours(channel, before, axis, reach, weight)


def _taps(sigma: float, most: int) -> list[float]:
    """The middle weight and those to one side; as many as batchgeneratorsv2 takes, but no more than `most` neighbours.

    Its kernel has the odd number nearest to 6σ + ½.
    """
    reach = min(max(0, math.floor((6 * sigma + 0.5) / 2)), most)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(reach + 1)]
    whole = weights[0] + 2 * sum(weights[1:])
    return [weight / whole for weight in weights]


def _add_neighbours(channel: Tensor, before: Tensor, axis: int, reach: int, weight: float) -> None:
    n = channel.shape[axis]
    inner, lower, upper = n - reach, before.narrow(axis, 1, reach), before.narrow(axis, n - 1 - reach, reach)
    channel.narrow(axis, reach, inner).add_(before.narrow(axis, 0, inner), alpha=weight)
    channel.narrow(axis, 0, inner).add_(before.narrow(axis, reach, inner), alpha=weight)
    channel.narrow(axis, 0, reach).add_(lower.flip(axis), alpha=weight)
    channel.narrow(axis, inner, reach).add_(upper.flip(axis), alpha=weight)


def contrast(channel: Tensor, factor: float) -> None:
    """Away from the mean by `factor`, within the values that there are."""
    mean, (low, high) = channel.mean(), torch.aminmax(channel)
    channel.mul_(factor).add_(mean * (1 - factor)).clamp_(low, high)


def coarsen(channel: Tensor, factor: float, *, in_plane: bool) -> None:
    """Down to `factor` of its size, by the nearest voxel, and back up; `in_plane` keeps the slices."""
    size = tuple(channel.shape)
    small = [max(1, round(n * factor)) for n in size]
    if in_plane:
        small[0] = size[0]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    low = functional.interpolate(channel[None, None], small, mode="nearest-exact")
    channel.copy_(functional.interpolate(low, size, mode=mode, align_corners=False)[0, 0])


def gamma(channel: Tensor, exponent: float, *, inverted: bool) -> None:
    """x → x^γ between the least and the greatest value, mean and spread kept; of the negative where `inverted`."""
    if inverted:
        channel.neg_()
    mean, (low, high) = channel.mean(), torch.aminmax(channel)
    spread = _spread(channel, mean)
    # A power is a product of logarithms, which are faster; that of 0 is −∞, and −∞ · 0 would be no number.
    channel.sub_(low).div_((high - low).clamp_min(_TINY)).log2_().clamp_min_(-1e4).mul_(exponent).exp2_()
    bent = channel.mean()
    scale = spread / _spread(channel, bent).clamp_min(_TINY)
    shift = mean - bent * scale
    channel.mul_(-scale if inverted else scale).add_(-shift if inverted else shift)


def _spread(channel: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation; torch's own takes ten times as long."""
    return torch.linalg.vector_norm(channel - mean) / math.sqrt(max(1, channel.numel() - 1))
