"""Channels that are missing: they stay empty whatever augmentation does, and training hides others now and then.

So the network learns to do without each of them (Neverova et al. 2016, ModDrop).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STREAM = 7
"""Apart from what else is drawn from a seed and a step."""


def empty_channels(images: Tensor, dimensions: int) -> Tensor:
    """(…, c): whether a channel of (…, c, *spatial) is zero throughout."""
    return (images.flatten(-dimensions) == 0).all(dim=-1)


def hide_channels(images: Tensor, empty: Tensor, share: float, *, seed: int, step: int) -> Tensor:
    """`images` (…, c, *spatial) with zeros in their `empty` channels (…, c), and in each channel other than the first
    with the chance `share`, drawn from (seed, step)."""
    rng = np.random.default_rng((seed, step, _STREAM))
    drawn = torch.from_numpy(rng.random(tuple(empty.shape)) < share).to(empty.device)
    drawn[..., 0] = False
    hidden = (empty | drawn).view(*empty.shape, *[1] * (images.ndim - empty.ndim))
    return images.masked_fill(hidden, 0.0)
