from __future__ import annotations

import numpy as np
import pytest

from models.recipe import Clahe, Median, Wavelet, Window
from tasks.imaging.filters import apply_filters


@pytest.fixture
def clean() -> np.ndarray:
    """Two slices of blocks in HU."""
    image = np.full((2, 64, 64), -1000, np.float32)
    image[:, 10:50, 10:50] = 40
    image[:, 20:30, 20:40] = 300
    return image


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


def test_median_removes_salt_and_keeps_edges(clean: np.ndarray) -> None:
    noisy = clean.copy()
    noisy.reshape(-1)[np.random.default_rng(0).choice(noisy.size, 200, replace=False)] = 3000
    got = apply_filters(noisy, [Median(step="median", size=3)])
    assert got.max() < 3000
    assert rms(got, clean) < 0.3 * rms(noisy, clean)
    np.testing.assert_array_equal(got[:, 12:18, 12:48].round(-2).min(), 0)


def test_median_does_not_look_across_slices(clean: np.ndarray) -> None:
    clean[1] = 0
    np.testing.assert_array_equal(apply_filters(clean, [Median(step="median", size=5)])[1], 0)


def test_wavelet_shrinks_noise_without_moving_values(clean: np.ndarray) -> None:
    noisy = clean + np.random.default_rng(0).normal(0, 60, clean.shape).astype(np.float32)
    got = apply_filters(noisy, [Wavelet(step="wavelet")])
    assert rms(got, clean) < 0.75 * rms(noisy, clean)
    assert got[:, 35:45, 15:45].mean() == pytest.approx(40, abs=5)
    assert got[:, 55:, 55:].mean() == pytest.approx(-1000, abs=8)


def test_clahe_raises_local_contrast_within_the_slices_own_range() -> None:
    rng = np.random.default_rng(0)
    image = (1000 + 50 * rng.normal(size=(2, 96, 96))).astype(np.float32)
    image[:, :, 48:] += 3000
    got = apply_filters(image, [Clahe(step="clahe", clip_limit=0.05)])
    assert got[:, :, 8:40].std() > 2 * image[:, :, 8:40].std()
    assert got.min() >= image.min() - 1
    assert got.max() <= image.max() + 1


@pytest.mark.parametrize("step", [Median(step="median"), Wavelet(step="wavelet"), Clahe(step="clahe")])
def test_small_and_constant_slices_pass(step: Median | Wavelet | Clahe) -> None:
    flat = np.full((1, 9, 11), -5, np.int16)
    np.testing.assert_array_equal(apply_filters(flat, [step]), flat)
    tiny = np.arange(99, dtype=np.int16).reshape(1, 9, 11)
    got = apply_filters(tiny, [step])
    assert np.isfinite(got).all()
    assert got.shape == tiny.shape


def test_steps_run_in_their_order(clean: np.ndarray) -> None:
    got = apply_filters(
        clean, [Window(step="window", center=0, width=200), Window(step="window", center=100, width=100)]
    )
    assert (got.min(), got.max()) == (50, 100)
    assert clean.min() == -1000
