"""How alike two sets of images are, without a network that was trained on other people's pictures.

A network with fixed random weights gives features that tell textures and shapes apart; the distance between two sets is
Fréchet's, as in the FID (Heusel et al. 2017; with random features: Naeem et al. 2020). The same images give the same
figures on every machine and for every version of a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]

FEATURES = 64
_WIDTHS = (16, 32, 32)
_BATCH_VOXELS = 2**21


@torch.inference_mode()
def fixed_features(images: Tensor) -> Floats:
    """(n, c, …) in two or three dimensions → (n, 64): means over each level's responses, on the CPU in float32."""
    voxels = max(1, math.prod(images.shape[1:]))
    parts = images.float().cpu().split(max(1, _BATCH_VOXELS // voxels))
    return np.concatenate([_features(part) for part in parts]).astype(np.float64)


def _features(images: Tensor) -> NDArray[Any]:
    generator = torch.Generator().manual_seed(0)
    d = images.ndim - 2
    convolve = functional.conv2d if d == 2 else functional.conv3d
    x, found = images, []
    for width in _WIDTHS:
        fan = x.shape[1] * 3**d
        weights = torch.randn(width, x.shape[1], *[3] * d, generator=generator) / math.sqrt(fan)
        step = tuple(2 if n > 2 else 1 for n in x.shape[2:])
        x = functional.leaky_relu(convolve(x, weights, stride=step, padding=1), 0.2)
        found.append(x.flatten(2).mean(2))
    mixed = torch.cat(found, dim=1)
    to = torch.randn(mixed.shape[1], FEATURES, generator=generator) / math.sqrt(mixed.shape[1])
    return (mixed @ to).numpy()


@dataclass(frozen=True, slots=True)
class Spread:
    """A set of features as a normal distribution: mean (f,) and covariance (f, f)."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, features: Floats, weights: Floats | None = None) -> Self:
        """Of (n, f); `weights` (n,) count each one so often."""
        shares = np.ones(len(features)) if weights is None else weights
        total = shares.sum()
        mean = shares @ features / total
        gaps = features - mean
        return cls(mean, (gaps * shares[:, None]).T @ gaps / max(total - 1, 1.0))

    def distance(self, other: Spread) -> float:
        """Fréchet's, ≥ 0."""
        gap, root = self.mean - other.mean, _square_root(self.covariance)
        values = np.linalg.eigvalsh(root @ other.covariance @ root)
        between = np.sqrt(np.clip(values, 0, None)).sum()
        both = np.trace(self.covariance) + np.trace(other.covariance)
        return max(0.0, float(gap @ gap + both - 2 * between))


def frechet(first: Floats, second: Floats) -> float:
    """The distance between the normal distributions of two sets of features (n, f), (m, f); at least two of each."""
    return Spread.of(first).distance(Spread.of(second))


def _square_root(matrix: Floats) -> Floats:
    """Of a symmetric matrix without negative eigenvalues, up to rounding."""
    values, vectors = np.linalg.eigh(matrix)
    scaled: Floats = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return scaled


def nearest(images: NDArray[Any], others: NDArray[Any]) -> tuple[Floats, NDArray[np.intp]]:
    """The least root mean square difference of each image (n, …) from any of `others` (m, …), and from which."""
    one = images.reshape(len(images), -1).astype(np.float64)
    two = others.reshape(len(others), -1).astype(np.float64)
    squares = (one**2).sum(1)[:, None] - 2 * one @ two.T + (two**2).sum(1)
    return np.sqrt(np.clip(squares.min(1), 0, None) / one.shape[1]), squares.argmin(1)
