"""What augmentation does to values, against scipy and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from tasks.train.values import blur, coarsen, contrast, gamma


def channel(*size: int) -> Tensor:
    return torch.randn(size or (9, 12, 15), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(9, 12, 15), (20, 17)])
@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
def test_blur_is_a_gaussian_mirrored_at_the_border(size: tuple[int, ...], sigma: float) -> None:
    before = channel(*size)
    after, sigmas = before.clone(), [sigma] * (len(size) - 1) + [0.6]
    blur(after, sigmas)
    reach = [int((6 * s + 0.5) / 2) for s in sigmas]
    expected = before.numpy()
    for axis, (s, r) in enumerate(zip(sigmas, reach, strict=True)):
        expected = ndimage.gaussian_filter1d(expected, s, axis, mode="mirror", radius=r)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_blur_of_a_single_slice_or_of_few() -> None:
    for size in ((1, 12, 12), (2, 12, 12)):
        after = channel(*size)
        blur(after, [1.0, 1.0, 1.0])
        assert torch.isfinite(after).all()
        assert float(after.std()) < 0.6


def test_contrast_keeps_the_mean_and_the_bounds() -> None:
    before = channel()
    weaker, stronger = before.clone(), before.clone()
    contrast(weaker, 0.75)
    contrast(stronger, 1.25)
    assert torch.allclose(weaker, (before - before.mean()) * 0.75 + before.mean(), atol=1e-6)
    assert float(stronger.max()) == float(before.max())
    assert float(stronger.min()) == float(before.min())


def test_coarsening_takes_the_nearest_and_comes_back_linearly() -> None:
    ramp = torch.arange(16.0).expand(4, 8, 16).clone()
    coarsen(ramp, 0.5, in_plane=False)
    assert torch.allclose(ramp[0, 0, 2:-2], torch.arange(16.0)[2:-2] + 0.5)
    slices = torch.arange(4.0)[:, None, None].expand(4, 8, 16).clone()
    coarsen(slices, 0.5, in_plane=True)
    assert torch.equal(slices[:, 0, 0], torch.arange(4.0))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_a_power_that_keeps_mean_and_spread(exponent: float, *, inverted: bool) -> None:
    before = channel()
    after = before.clone()
    gamma(after, exponent, inverted=inverted)
    x = -before.double() if inverted else before.double()
    bent = ((x - x.min()) / (x.max() - x.min())) ** exponent
    expected = (bent - bent.mean()) / bent.std() * x.std() + x.mean()
    assert torch.allclose(after.double(), -expected if inverted else expected, atol=1e-4)


def test_nothing_is_not_a_number_where_all_values_are_one() -> None:
    for change in (
        lambda c: gamma(c, 0.7, inverted=True),
        lambda c: contrast(c, 1.2),
        lambda c: blur(c, [0.7, 0.7]),
        lambda c: coarsen(c, 0.5, in_plane=False),
    ):
        flat = torch.full((6, 7), 3.0)
        change(flat)
        assert torch.allclose(flat, torch.full((6, 7), 3.0), atol=1e-5)
