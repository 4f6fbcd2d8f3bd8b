from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.geometry import Triple
from tasks.imaging.surfaces import surface, surface_distances

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.4, 3.0, 1.1), (2.0, 2.0, 0.25)]


def blob(shape: tuple[int, int, int], seed: int, shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """Ragged, never empty; it may reach the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.roll(noise > np.quantile(noise, 0.7), shift, (0, 1, 2))


def by_transform(origin: np.ndarray, target: np.ndarray, spacing: Triple) -> np.ndarray:
    """By a distance transform of the whole grid."""
    erode = ndimage.binary_erosion
    there = ndimage.distance_transform_edt(~(target & ~erode(target)), sampling=spacing)
    return there[origin & ~erode(origin)]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(2, 20)),
    shift=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)),
    spacing=st.sampled_from(SPACINGS),
)
def test_distances_are_those_of_a_distance_transform(
    seed: int, shape: tuple[int, int, int], shift: tuple[int, int, int], spacing: Triple
) -> None:
    truth, prediction = blob(shape, seed), blob(shape, seed, shift)
    found = surface_distances(truth, prediction, spacing)
    for got, expected in (
        (found.truth_to_prediction, by_transform(truth, prediction, spacing)),
        (found.prediction_to_truth, by_transform(prediction, truth, spacing)),
    ):
        np.testing.assert_allclose(np.sort(got), np.sort(expected), rtol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_what_is_near_and_what_is_far_off_are_both_exact(spacing: Triple) -> None:
    truth, prediction = np.zeros((30, 40, 50), bool), np.zeros((30, 40, 50), bool)
    truth[4:12, 5:15, 6:18] = True
    prediction[5:12, 5:16, 6:17] = True
    prediction[25:28, 33:38, 40:49] = True  # a false finding in the far corner
    found = surface_distances(truth, prediction, spacing)
    expected = by_transform(prediction, truth, spacing)
    np.testing.assert_allclose(np.sort(found.prediction_to_truth), np.sort(expected), rtol=1e-12)
    assert found.hausdorff(100) == pytest.approx(expected.max())
    assert found.truth_to_prediction.max() < found.prediction_to_truth.max()


def test_opposite_borders_are_no_neighbours() -> None:
    truth, prediction = np.zeros((4, 6, 9), bool), np.zeros((4, 6, 9), bool)
    truth[:, :, 0], prediction[:, :, -1] = True, True
    assert set(surface_distances(truth, prediction, (1.0, 1.0, 1.0)).truth_to_prediction) == {8.0}


def test_a_surface_is_what_erosion_takes_and_a_flat_axis_has_none() -> None:
    mask = blob((9, 12, 11), 3)
    np.testing.assert_array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))
    slab = blob((1, 12, 11), 4)
    outline = slab[0] & ~ndimage.binary_erosion(slab[0])
    np.testing.assert_array_equal(surface(slab, (True, False, False))[0], outline)
