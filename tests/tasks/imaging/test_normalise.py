from __future__ import annotations

import numpy as np
import pytest

from models.plan import Normalisation
from tasks.imaging.normalise import normalise


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(40, 120, (6, 20, 22)).astype(np.float32)


def test_ct_clips_to_the_cohorts_range_and_standardises_by_it(image: np.ndarray) -> None:
    got = normalise(image.astype(np.int16), Normalisation(scheme="ct", low=-100, high=200, mean=50, std=80))
    assert got.min() == pytest.approx(-150 / 80)
    assert got.max() == pytest.approx(150 / 80)
    inside = (image > -90) & (image < 190)
    np.testing.assert_allclose(got[inside], (np.trunc(image[inside]) - 50) / 80, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_zscore_does_not_depend_on_the_scanners_unit(image: np.ndarray, scale: float) -> None:
    got = normalise(image * np.float32(scale), Normalisation(scheme="zscore"))
    assert got.mean() == pytest.approx(0, abs=1e-4)
    assert got.std() == pytest.approx(1, abs=1e-3 if scale >= 1 else 0.02)


def test_masked_zscore_looks_at_the_body_alone(image: np.ndarray) -> None:
    body = np.zeros(image.shape, bool)
    body[1:-1, 4:15, 4:15] = True
    head = np.where(body, image + 1000, 0).astype(np.float32)
    head[3, 9, 9] = 0  # a hole inside the body belongs to it
    got = normalise(head, Normalisation(scheme="zscore", masked=True))
    assert (got[~body] == 0).all()
    assert got[body].mean() == pytest.approx(0, abs=1e-4)
    assert got[3, 9, 9] < -4


@pytest.mark.parametrize(
    ("how", "low", "high"),
    [
        (Normalisation(scheme="percentile", low=5, high=95), 5, 95),
        (Normalisation(scheme="minmax"), 0, 100),
    ],
)
def test_unit_schemes_fill_zero_to_one(image: np.ndarray, how: Normalisation, low: float, high: float) -> None:
    got = normalise(image, how)
    assert (got.min(), got.max()) == pytest.approx((0, 1), abs=1e-6)
    inside = (got > 1e-3) & (got < 0.999)
    a, b = np.percentile(image, (low, high))
    np.testing.assert_allclose(got[inside], (image[inside] - a) / (b - a), atol=1e-5)


def test_window_is_absolute(image: np.ndarray) -> None:
    got = normalise(image, Normalisation(scheme="window", low=-160, high=240))
    np.testing.assert_allclose(got, (np.clip(image, -160, 240) + 160) / 400, atol=1e-6)


@pytest.mark.parametrize("scheme", ["zscore", "percentile", "minmax", "ct", "window", "none"])
def test_a_constant_image_stays_finite_and_the_input_untouched(scheme: str) -> None:
    flat = np.full((2, 5, 5), 7, np.int16)
    got = normalise(flat, Normalisation(scheme=scheme, low=0, high=100, masked=True))
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert (flat == 7).all()
