"""Montages: the right slices, the right window, outlines where structures are."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.imaging.montage import COLOURS, TILE, montage, spread


def test_slices_are_spread_with_the_ends_among_them() -> None:
    assert spread(np.arange(10, 40), 4).tolist() == [10, 20, 29, 39]
    assert spread(np.array([7]), 4).tolist() == [7]


def test_the_outline_lies_where_the_structure_is() -> None:
    image, plane = np.full((64, 64), 40.0), np.zeros((64, 64), bool)
    plane[16:48, 16:48] = True
    sheet = np.asarray(montage([image, image], [[plane], [np.zeros_like(plane)]], (1.0, 1.0), "HU"))
    assert sheet.shape == (TILE, 2 * TILE, 3)
    coloured = (sheet == COLOURS[0]).all(axis=-1)
    rows, columns = np.nonzero(coloured)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (64, 191, 64, 191)
    assert not coloured[96:160, 96:160].any(), "the inside stays to be seen"


def test_oblong_pixels_keep_their_shape() -> None:
    sheet = np.asarray(montage([np.full((10, 40), 240.0)], [[]], (4.0, 0.5), "HU"))
    rows, columns = np.nonzero(sheet[..., 0])
    assert rows.max() - rows.min() + 1 == TILE
    assert columns.max() - columns.min() + 1 == TILE // 2


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_other_units_are_windowed_by_what_is_there(scale: float) -> None:
    ramp = np.tile(np.linspace(0, scale, 256), (256, 1))
    ramp[0, 0] = np.nan
    sheet = np.asarray(montage([ramp], [[]], (1.0, 1.0), "arbitrary"))[..., 0]
    assert sheet.min() == 0
    assert sheet.max() == 255
    assert 120 < sheet[128, 128] < 136


def test_colour_slices_become_grey() -> None:
    sheet = np.asarray(montage([np.full((3, 8, 8), 240.0)], [[]], (1.0, 1.0), "HU"))
    assert (sheet == 255).all()
