"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): images of a batch are blended, and their classes with them.

First everything is drawn (`draw_mixing`), then it is applied without chance. What is drawn depends on (seed, step)
alone, so that a resumed training blends as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_STREAM = 1  # apart from the sampler's own draws of the same step


@dataclass(frozen=True, slots=True)
class Mixing:
    """Each sample keeps `share` of itself and takes the rest from the one at its place in `partners`.

    With a `box` (a slice for each spatial axis) the partner's voxels are pasted there; without, all are blended.
    """

    partners: tuple[int, ...]
    share: float
    box: tuple[slice, ...] | None = None

    def images(self, images: Tensor) -> Tensor:
        """(b, c, …)."""
        partners = images[list(self.partners)]
        if self.box is None:
            return self.share * images + (1 - self.share) * partners
        mixed = images.clone()
        place = (slice(None), slice(None), *self.box)
        mixed[place] = partners[place]
        return mixed

    def rows(self, rows: Tensor) -> Tensor:
        """Shares of classes, or other numbers of whole samples: (b, n)."""
        return self.share * rows + (1 - self.share) * rows[list(self.partners)]


def draw_mixing(count: int, size: Sequence[int], mixup: float, cutmix: float, *, seed: int, step: int) -> Mixing | None:
    """What `count` images of the spatial `size` share in a step; None where nothing is to be mixed.

    `mixup` and `cutmix` are the alphas of their Beta distributions, 0 for none; with both, either has every other
    step on average.
    """
    if count < 2 or not (mixup or cutmix):
        return None
    rng = np.random.default_rng((seed, step, _STREAM))
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share, partners = float(rng.beta(alpha, alpha)), tuple(rng.permutation(count).tolist())
    if not cut:
        return Mixing(partners, share)
    box = _box(size, share, rng)
    pasted = np.prod([part.stop - part.start for part in box]) / np.prod(size)
    return Mixing(partners, 1 - float(pasted), box)


def class_shares(targets: Tensor, classes: int) -> Tensor:
    """(b, k) float32 shares of classes (b,); what are shares already stays."""
    return targets if targets.ndim == 2 else functional.one_hot(targets.long(), classes).to(torch.float32)


def _box(size: Sequence[int], share: float, rng: np.random.Generator) -> tuple[slice, ...]:
    """Of 1 − `share` of the volume and the image's proportions, anywhere; what lies outside the image is cut off."""
    axes = [n for n in size if n > 1]
    scale = (1 - share) ** (1 / max(1, len(axes)))
    parts = []
    for n in size:
        half, middle = (n * scale / 2, rng.uniform(0, n)) if n > 1 else (0.5, 0.5)
        parts.append(slice(max(0, round(middle - half)), min(n, round(middle + half))))
    return tuple(parts)
