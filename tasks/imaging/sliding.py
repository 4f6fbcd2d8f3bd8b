"""A network over a whole image, tile by tile, blended by a Gaussian (Isensee et al. 2021)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.plan import IntTriple
from tasks.imaging.device import Precision, autocast

_AXES = {"z": -3, "y": -2, "x": -1}


@torch.inference_mode()
def sliding_window(
    network: nn.Module,
    image: Tensor,
    tile: IntTriple,
    overlap: float,
    *,
    mirror_axes: Sequence[str] = (),
    precision: Precision = "auto",
    batch: int = 0,
    device: torch.device | str = "cpu",
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Class probabilities (k, z, y, x), float32 on the CPU, of `image` (c, z, y, x).

    A `tile` of one slice runs a 2-D network over the slices. The network is in evaluation mode on `device`; `batch`
    tiles go through at a time (0: a few on a GPU, one on a CPU, slices by the number of pixels). Raises
    InterruptedError between tiles once `cancelled`.
    """
    device = torch.device(device)
    flat = tile[0] == 1
    padded, inside = _padded(image, tile)
    windows = list(_corners(padded.shape[1:], tile, overlap))
    size = batch or _batch_size(device, tile)
    total: Tensor | None = None
    for chunk in _chunks(windows, size):
        if cancelled():
            raise InterruptedError
        tiles = torch.stack([padded[(slice(None), *_box(corner, tile))] for corner in chunk])
        tiles = tiles.to(device, torch.float32, non_blocking=True)
        probabilities = class_probabilities(network, tiles[:, :, 0] if flat else tiles, mirror_axes, precision)
        if total is None:
            total = _room(probabilities.shape[1], padded.shape[1:], device)
            weight = _gaussian(tile).to(total.device)
        weighed = (probabilities.unsqueeze(2) if flat else probabilities).to(total.device) * weight
        for corner, part in zip(chunk, weighed, strict=True):
            total[(slice(None), *_box(corner, tile))] += part
    assert total is not None  # noqa: S101 - every image has at least one tile
    # The Gaussian is a product of its axes, and so is the sum of the weights.
    total /= _total_weight(padded.shape[1:], tile, overlap).to(total.device)
    return total[(slice(None), *inside)].cpu()


@torch.inference_mode()
def class_probabilities(
    network: nn.Module, images: Tensor, mirror_axes: Sequence[str] = (), precision: Precision = "auto"
) -> Tensor:
    """Float32 softmax of the logits for `images` (b, c, …), the mean over all combinations of mirrored axes."""
    axes = [_AXES[a] for a in mirror_axes if images.ndim == 5 or a != "z"]
    flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    total = torch.zeros((), device=images.device)
    for flip in flips:
        with autocast(images.device, precision):
            logits = network(images.flip(flip) if flip else images)
        probabilities = logits.float().softmax(1)
        total = total + (probabilities.flip(flip) if flip and logits.ndim == images.ndim else probabilities)
    return total / len(flips)


def _padded(image: Tensor, tile: IntTriple) -> tuple[Tensor, tuple[slice, ...]]:
    """The image in the middle of zeros, at least as large as a tile; and where it lies."""
    lacking = [max(0, t - n) for t, n in zip(tile, image.shape[1:], strict=True)]
    before = [n // 2 for n in lacking]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    if not any(lacking):
        return image, inside
    pads = [amount for b, n in zip(before[::-1], lacking[::-1], strict=True) for amount in (b, n - b)]
    return functional.pad(image, pads), inside


def _room(classes: int, size: Sequence[int], device: torch.device) -> Tensor:
    """Zeros to add up in: on the GPU where they take less than half of what is free there."""
    needed = 4 * classes * math.prod(size)
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] / 2:
        device = torch.device("cpu")
    return torch.zeros((classes, *size), device=device)


def _starts(size: int, tile: int, overlap: float) -> list[int]:
    """First voxels along an axis: evenly spread, neighbours sharing at least `overlap` of a tile."""
    step = max(1, int(tile * (1 - overlap)))
    count = math.ceil((size - tile) / step) + 1
    return [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]


def _corners(size: Sequence[int], tile: IntTriple, overlap: float) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(_starts(n, t, overlap) for n, t in zip(size, tile, strict=True)))


def _box(corner: Sequence[int], tile: IntTriple) -> tuple[slice, ...]:
    return tuple(slice(c, c + t) for c, t in zip(corner, tile, strict=True))


def _profile(size: int) -> Tensor:
    """A Gaussian of σ = size/8 along one axis, never below a thousandth of its peak."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    return torch.exp(-0.5 * (offset / max(size / 8, 1e-3)) ** 2).clamp_min(1e-3)


@lru_cache(8)
def _gaussian(tile: IntTriple) -> Tensor:
    z, y, x = (_profile(n) for n in tile)
    return z[:, None, None] * y[:, None] * x


def _total_weight(size: Sequence[int], tile: IntTriple, overlap: float) -> Tensor:
    axes = []
    for n, t in zip(size, tile, strict=True):
        line = torch.zeros(n)
        for start in _starts(n, t, overlap):
            line[start : start + t] += _profile(t)
        axes.append(line)
    return axes[0][:, None, None] * axes[1][:, None] * axes[2]


def _batch_size(device: torch.device, tile: IntTriple) -> int:
    voxels = math.prod(tile)
    budget = 2**22 if device.type == "cuda" else 2**17
    return max(1, budget // voxels)


def _chunks(items: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
