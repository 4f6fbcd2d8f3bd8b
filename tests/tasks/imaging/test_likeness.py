"""How alike two sets of images are: nothing for the same, more for the more different, whatever the machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.imaging.likeness import FEATURES, Spread, fixed_features, frechet, nearest


def images(seed: int, count: int = 40, *, blur: int = 1, shape: tuple[int, ...] = (1, 16, 16)) -> torch.Tensor:
    noise = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, blur, 1, blur // 2) if blur > 1 else noise


def test_the_same_images_are_at_no_distance_and_blurred_ones_are_far() -> None:
    same, other, blurred = (fixed_features(x) for x in (images(0, 200), images(1, 200), images(2, 200, blur=3)))
    assert frechet(same, same) == pytest.approx(0, abs=1e-6)
    assert frechet(same, blurred) > 5 * frechet(same, other)


def test_features_are_those_of_each_image_alone() -> None:
    whole = fixed_features(images(0))
    assert whole.shape == (40, FEATURES)
    parts = np.concatenate([fixed_features(part) for part in images(0).split(7)])
    assert np.allclose(whole, parts, atol=1e-5)
    assert fixed_features(torch.rand(3, 2, 1, 5, 4)).shape == (3, FEATURES)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.1, 3), st.floats(-2, 2))
def test_the_distance_of_normal_distributions_is_the_known_one(seed: int, scale: float, shift: float) -> None:
    """With covariances that commute, it is Σ (μ₁ − μ₂)² + (σ₁ − σ₂)²."""
    rng = np.random.default_rng(seed)
    deviations = rng.uniform(0.5, 2, 5)
    one = Spread(np.zeros(5), np.diag(deviations**2))
    two = Spread(np.full(5, shift), np.diag((scale * deviations) ** 2))
    expected = 5 * shift**2 + (((1 - scale) * deviations) ** 2).sum()
    assert one.distance(two) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert two.distance(one) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_weights_count_an_image_so_often() -> None:
    found = fixed_features(images(0, 6))
    weighted = Spread.of(found, np.array([2.0, 1, 1, 0, 3, 1]))
    repeated = Spread.of(found[[0, 0, 1, 2, 4, 4, 4, 5]])
    assert np.allclose(weighted.mean, repeated.mean)
    assert np.allclose(weighted.covariance, repeated.covariance)


def test_the_nearest_image_is_the_copy() -> None:
    known = images(0).numpy()
    other = images(1, 5).numpy()
    gaps, places = nearest(np.concatenate([known[3:4], other]), known)
    assert places[0] == 3
    assert gaps[0] == pytest.approx(0, abs=1e-6)
    by_hand = [min(np.sqrt(((o - k) ** 2).mean()) for k in known) for o in other]
    assert gaps[1:] == pytest.approx(by_hand)
