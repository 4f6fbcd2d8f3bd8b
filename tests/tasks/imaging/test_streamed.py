"""Slices made when asked for are those of the image prepared whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.recipe import Median
from tasks.imaging.prepare import prepare_image
from tasks.imaging.sliding import Planes
from tasks.imaging.streamed import StreamedImage, prepared_planes

GRID = Geometry.from_spacing((61, 30, 26), (2.0, 0.9, 0.9), (12.0, -7.0, 300.0))


def body(dtype: type = np.float32, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = np.stack([ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2) * 500 + 300 for _ in range(channels)])
    image[:, :2], image[:, :, :4], image[..., -5:] = 0, 0, 0
    return image.astype(dtype)


def plan(**changes: object) -> PreparePlan:
    given: dict = {"dimensions": 3, "spacing": (1.5, 1.2, 1.2), "normalisation": (Normalisation(scheme="none"),)}
    return PreparePlan(**{**given, **changes})


def streamed(image: np.ndarray, how: PreparePlan) -> Planes:
    return prepared_planes(image, GRID, how, whole_bytes=0)[0]


def gathered(planes: Planes, depth: int, step: int) -> np.ndarray:
    """As the sliding window asks: overlapping, rising."""
    size = planes.shape[1]
    starts = [*range(0, max(1, size - depth), step), max(0, size - depth)]
    whole = np.full(planes.shape, np.nan, np.float32)
    for start in starts:
        part = planes.planes(start, min(size, start + depth)).numpy()
        seen = whole[:, start : start + depth]
        known = ~np.isnan(seen)
        np.testing.assert_array_equal(part[known], seen[known])
        seen[...] = part
    return whole


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": (2.0, 1.2, 1.2)},
        {"spacing": None},
        {"spacing": (0.7, 0.9, 0.9)},
        {"spacing": (6.0, 0.8, 1.5)},
        {"crop": "nonzero"},
        {"anisotropic": True, "spacing": (5.0, 0.9, 0.9)},
        {"dimensions": 2, "spacing": (9.0, 1.2, 1.2)},
        {"steps": (Median(step="median"),)},
        {"normalisation": (Normalisation(scheme="ct", low=0, high=500, mean=250, std=90),)},
        {"normalisation": (Normalisation(scheme="zscore"),)},
        {"normalisation": (Normalisation(scheme="percentile", low=0.5, high=99.5),), "crop": "nonzero"},
        {"normalisation": (Normalisation(scheme="minmax"),)},
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_slices_are_those_of_the_whole(changes: dict, dtype: type) -> None:
    image, how = body(dtype), plan(**changes)
    whole = prepare_image(image, GRID, how)
    planes, layout = prepared_planes(image, GRID, how, whole_bytes=0)
    assert isinstance(planes, StreamedImage)
    assert (layout.target, layout.crop) == (whole.geometry, whole.crop)
    scale = float(np.abs(whole.array).max())
    for depth, step in ((16, 8), (1, 1), (33, 20), (500, 500)):
        found = gathered(streamed(image, how), depth, step)
        np.testing.assert_allclose(found, whole.array, atol=2e-6 * scale, rtol=1e-5)


def test_channels_keep_their_own_figures() -> None:
    image, how = body(channels=2), plan(channels=2, normalisation=(Normalisation(scheme="zscore"),) * 2)
    image[1] *= 7
    found = gathered(streamed(image, how), 12, 6)
    np.testing.assert_allclose(found, prepare_image(image, GRID, how).array, atol=2e-5)


def test_a_mapping_that_needs_every_voxel_is_done_whole() -> None:
    for how in (
        plan(normalisation=(Normalisation(scheme="zscore", masked=True),)),
        plan(normalisation=(Normalisation(scheme="zscore"),), steps=(Median(step="median"),)),
        plan(spacing=None, size=(1, 16, 16)),
    ):
        planes = streamed(body(), how)
        assert not isinstance(planes, StreamedImage)
        assert torch.equal(planes.planes(0, 3), torch.from_numpy(prepare_image(body(), GRID, how).array[:, :3]))


def test_no_more_slices_are_kept_than_are_in_use() -> None:
    how = plan(spacing=(2.0, 0.9, 0.9))
    planes = streamed(body(np.int16), how)
    assert isinstance(planes, StreamedImage)
    for start in range(0, 61 - 8, 4):
        assert planes.planes(start, start + 8).shape[1] == 8
        kept = planes._planes._kept
        assert kept is not None
        assert kept.shape[1] <= 8
