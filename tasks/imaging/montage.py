"""Slices of an image side by side, with an outline for each structure: for people to glance at. Nothing is written in.

Colours are Okabe & Ito's, told apart also by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

COLOURS: Final = ((230, 159, 0), (86, 180, 233), (0, 200, 150), (240, 228, 66), (204, 121, 167), (255, 127, 63))
TILE: Final = 256
_ACROSS: Final = 4
_HU: Final = (-160.0, 240.0)
_PERCENTILES: Final = (1.0, 99.0)


def spread(marked: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Up to `count` of these slices, evenly spread, first and last among them."""
    picks = np.unique(np.linspace(0, len(marked) - 1, min(count, len(marked))).round().astype(int))
    return marked[picks]


def montage(
    slices: Sequence[NDArray[Any]],
    structures: Sequence[Sequence[NDArray[np.bool_]]],
    spacing: Sequence[float],
    unit: str,
) -> Image.Image:
    """RGB tiles of `slices` (y, x), each with its `structures` (y, x) outlined; `spacing` (y, x) in mm.

    HU are shown in a soft tissue window, other units between the first and the last percentile.
    """
    seen = [_brightness(part) for part in slices]
    low, high = _window(seen, unit)
    tiles = [_tile(image, planes, spacing, low, high) for image, planes in zip(seen, structures, strict=True)]
    across = min(_ACROSS, len(tiles))
    sheet = Image.new("RGB", (across * TILE, -(-len(tiles) // across) * TILE))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * TILE, number // across * TILE))
    return sheet


def _brightness(values: NDArray[Any]) -> NDArray[np.float32]:
    """(y, x); of a colour slice (c, y, x) the mean of its channels."""
    return values.astype(np.float32).reshape(-1, *values.shape[-2:]).mean(axis=0)


def _window(slices: Sequence[NDArray[np.float32]], unit: str) -> tuple[float, float]:
    if unit == "HU":
        return _HU
    seen = np.concatenate([part[np.isfinite(part)] for part in slices])
    low, high = np.percentile(seen, _PERCENTILES) if seen.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _tile(
    image: NDArray[np.float32], planes: Sequence[NDArray[np.bool_]], spacing: Sequence[float], low: float, high: float
) -> Image.Image:
    """One slice in a square, its pixels' shape kept."""
    grey = np.nan_to_num(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    height, width = image.shape[0] * spacing[0], image.shape[1] * spacing[1]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB")).copy()
    for number, plane in enumerate(planes):
        shown = np.asarray(Image.fromarray(plane.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        pixels[shown & ~ndimage.binary_erosion(shown)] = COLOURS[number % len(COLOURS)]
    tile = Image.new("RGB", (TILE, TILE))
    tile.paste(Image.fromarray(pixels), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
