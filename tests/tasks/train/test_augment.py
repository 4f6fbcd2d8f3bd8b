from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.recipe import Augment
from tasks.train.augment import Draw, augmented, draw
from tests.tasks.train.samples import NO_AUGMENT


def only(**on: Any) -> Augment:
    return NO_AUGMENT.model_copy(update=on)


def images(dimensions: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Blobs whose mask can be read off the image."""
    size = (12, 16, 20)[3 - dimensions :]
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(count, *size, dtype=torch.uint8)
    inner = tuple(slice(n // 4, 3 * n // 4) for n in size)
    masks[(slice(None), *inner)] = 1
    noise = 0.05 * torch.randn(count, 1, *size, generator=generator)
    return masks[:, None].float() + noise, masks


both = pytest.mark.parametrize("dimensions", [2, 3])
EVERY = {
    "rotation": only(rotation=1.0),
    "scaling": only(scaling=1.0),
    "shift": only(shift=1.0),
    "elastic": only(elastic=1.0),
    "noise": only(noise=1.0),
    "blur": only(blur=1.0),
    "brightness": only(brightness=1.0),
    "contrast": only(contrast=1.0),
    "low_resolution": only(low_resolution=1.0),
    "gamma": only(gamma=1.0),
    "gamma_inverted": only(gamma_inverted=1.0),
}
SPATIAL = ("rotation", "scaling", "shift", "elastic")


@both
def test_nothing_drawn_changes_nothing(dimensions: int) -> None:
    before, masks = images(dimensions)
    after, moved = augmented(before, masks, NO_AUGMENT, (), seed=0)
    assert torch.equal(before, after)
    assert moved is not None
    assert torch.equal(masks, moved)


@both
@pytest.mark.parametrize("name", EVERY)
def test_each_transform_changes_images_and_repeats_exactly(dimensions: int, name: str) -> None:
    before, masks = images(dimensions)
    untouched = before.clone()
    first, moved = augmented(before, masks, EVERY[name], (), seed=4)
    second, _ = augmented(before, masks, EVERY[name], (), seed=4)
    other, _ = augmented(before, masks, EVERY[name], (), seed=5)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, untouched)
    assert torch.isfinite(first).all()
    assert first.shape == before.shape
    assert moved is not None
    assert moved.dtype == masks.dtype
    assert torch.equal(moved, masks) == (name not in SPATIAL)


@both
@pytest.mark.parametrize("name", SPATIAL)
def test_masks_move_with_their_images(dimensions: int, name: str) -> None:
    before, masks = images(dimensions)
    after, moved = augmented(before, masks, EVERY[name], (), seed=0)
    assert moved is not None
    agreement = ((after[:, 0] > 0.5) == (moved > 0)).float().mean()
    assert float(agreement) > 0.97


@both
def test_flips_move_images_and_masks_alike(dimensions: int) -> None:
    before, masks = images(dimensions, 16)
    ramp = torch.linspace(0, 1, before.shape[-1])
    before = before + ramp
    masks = (masks * 0 + torch.arange(masks.shape[-1])).to(torch.uint8)
    after, moved = augmented(before, masks, NO_AUGMENT, ("x",), seed=0)
    assert moved is not None
    turned = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert 0 < sum(turned) < 16
    for index, was_turned in enumerate(turned):
        expected = (before[index].flip(-1), masks[index].flip(-1)) if was_turned else (before[index], masks[index])
        assert torch.equal(after[index], expected[0])
        assert torch.equal(moved[index], expected[1])


def test_samples_that_drew_nothing_are_left_alone() -> None:
    before, masks = images(3, 64)
    after, _ = augmented(before, masks, only(rotation=0.3), (), seed=0)
    unchanged = sum(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert 30 <= unchanged <= 58


def test_looking_at_less_enlarges() -> None:
    before, masks = images(3)
    _, grown = augmented(before, masks, only(scaling=1.0, scaling_range=(0.75, 0.75)), (), seed=0)
    _, shrunk = augmented(before, masks, only(scaling=1.0, scaling_range=(1.4, 1.4)), (), seed=0)
    assert grown is not None
    assert shrunk is not None
    assert float(grown.sum() / masks.sum()) == pytest.approx(0.75**-3, rel=0.25)
    assert float(shrunk.sum() / masks.sum()) == pytest.approx(1.4**-3, rel=0.35)


class TestDistribution:
    """nnU-Net's, as its trainer builds the list (2.8): how often each transform acts, and between which bounds."""

    COUNT = 20_000

    def drawn(self, dimensions: int = 3, channels: int = 1, **changes: Any) -> Draw:
        generator = torch.Generator().manual_seed(7)
        flips = ("z", "y", "x")[3 - dimensions :]
        return draw(Augment(**changes), self.COUNT, dimensions, flips, generator, channels=channels)

    @pytest.mark.parametrize(
        ("name", "neutral", "share"),
        [
            ("spatial", 0, 1 - 0.8 * 0.8),  # turned or scaled, apart from each other
            ("noise", 0, 0.1),
            ("blur", 0, 0.2 * 0.5),  # every other channel of such a sample
            ("brightness", 1, 0.15),
            ("contrast", 1, 0.15),
            ("resolution", 1, 0.25 * 0.5),
            ("gamma_inverted", 1, 0.1),
            ("gamma", 1, 0.3),
            ("flips", 0, 0.5),
        ],
    )
    @both
    def test_each_acts_as_often_as_there(self, dimensions: int, name: str, neutral: float, share: float) -> None:
        values = getattr(self.drawn(dimensions), name)
        acting = (values != neutral).float().mean()
        assert float(acting) == pytest.approx(share, abs=0.015)  # four standard deviations of the most uncertain

    @pytest.mark.parametrize(
        ("name", "neutral", "low", "high", "mean"),
        [
            ("noise", 0, 0, 0.1, 0.05),
            ("blur", 0, 0.5, 1, 0.75),
            ("brightness", 1, 0.75, 1.25, 1.0),
            ("contrast", 1, 0.75, 1.25, 1.0),
            ("resolution", 1, 0.5, 1, 0.75),
            # Below and above 1 equally often: the middle of 0.85 and 1.25.
            ("gamma_inverted", 1, 0.7, 1.5, 1.05),
            ("gamma", 1, 0.7, 1.5, 1.05),
        ],
    )
    def test_each_draws_between_the_same_bounds(
        self, name: str, neutral: float, low: float, high: float, mean: float
    ) -> None:
        values = getattr(self.drawn(), name)
        values = values[values != neutral]
        assert low <= float(values.min()) <= low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) <= float(values.max()) <= high
        assert float(values.mean()) == pytest.approx(mean, abs=0.05 * (high - low))

    def test_angles_and_scales_are_drawn_evenly(self) -> None:
        turned = self.drawn(2, scaling=0, rotation=1.0, rotation_degrees=180.0).matrix
        angles = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]) / math.pi
        assert np.histogram(angles, bins=4, range=(-1, 1))[0] / self.COUNT == pytest.approx([0.25] * 4, abs=0.015)
        scaled = self.drawn(3, scaling=1.0, rotation=0).matrix
        sizes = scaled.diagonal(dim1=1, dim2=2)
        assert torch.equal(sizes[:, 0], sizes[:, 1])
        assert torch.equal(sizes[:, 0], sizes[:, 2])
        assert np.histogram(sizes[:, 0], bins=2, range=(0.7, 1.4))[0] / self.COUNT == pytest.approx([0.5] * 2, abs=0.02)
        assert float(sizes.min()) >= 0.7
        assert float(sizes.max()) <= 1.4

    def test_three_angles_turn_about_three_axes_by_up_to_thirty_degrees(self) -> None:
        matrices = self.drawn(3, scaling=0, rotation=1.0).matrix
        assert torch.allclose(matrices @ matrices.mT, torch.eye(3).expand_as(matrices), atol=1e-5)
        # The turn about z comes first: the last row tells it.
        about_first = torch.atan2(matrices[:, 2, 1], matrices[:, 2, 2]).rad2deg()
        assert float(about_first.abs().max()) <= 30.001
        assert np.histogram(about_first, bins=3, range=(-30, 30))[0] / self.COUNT == pytest.approx(
            [1 / 3] * 3, abs=0.02
        )

    def test_channels_draw_their_own_values_but_move_and_rustle_together(self) -> None:
        drawn = self.drawn(channels=2, brightness=1.0, gamma=1.0, blur=1.0, low_resolution=1.0)
        for values in (drawn.brightness, drawn.gamma):
            assert float(torch.corrcoef(values.T)[0, 1].abs()) < 0.05
        acting = torch.stack([(drawn.blur > 0).all(2), drawn.resolution != 1]).float()
        assert acting.mean((1, 2)).tolist() == pytest.approx([0.5, 0.5], abs=0.015)
        assert drawn.noise.shape == (self.COUNT,)

    def test_of_several_channels_each_is_changed_by_what_it_drew(self) -> None:
        before, _ = images(3)
        several = before.repeat(1, 3, 1, 1, 1)
        after, _ = augmented(several, None, only(brightness=1.0), (), seed=2)
        factors = (after / several).flatten(2).median(2).values
        assert torch.allclose(after, several * factors[:, :, None, None, None], atol=1e-5)
        assert len(factors.unique()) > 3


def test_rotation_is_rigid_in_millimetres() -> None:
    # A square of 16 mm on pixels of 4 × 1 mm, turned by up to 90°, keeps its area.
    masks = torch.zeros(12, 16, 64, dtype=torch.uint8)
    masks[:, 6:10, 24:40] = 1
    turning = only(rotation=1.0, rotation_degrees=90.0)
    _, right = augmented(masks[:, None].float(), masks, turning, (), seed=0, spacing=(1, 4, 1))
    _, wrong = augmented(masks[:, None].float(), masks, turning, (), seed=0, spacing=(1, 1, 1))
    assert right is not None
    assert wrong is not None
    widths = (right.sum(1) > 0).sum(1)
    assert int(widths.max()) <= 26
    assert int((wrong.sum(1) > 0).sum(1).min()) < 10 < int(widths.min())


def test_coarse_slices_turn_scale_and_coarsen_in_plane_only() -> None:
    before, _ = images(3, 8)
    after, _ = augmented(before, None, only(low_resolution=1.0), (), seed=0, in_plane=True)
    flat = before[:, :, :, :1, :1].expand_as(before)  # each slice has one value
    kept, _ = augmented(flat, None, only(low_resolution=1.0), (), seed=0, in_plane=True)
    assert not torch.equal(before, after)
    assert torch.allclose(kept, flat, atol=1e-6)
    drawn = draw(only(rotation=1.0, scaling=1.0), 8, 3, (), torch.Generator().manual_seed(0), in_plane=True)
    assert torch.allclose(drawn.matrix[:, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(drawn.matrix[:, :, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert not torch.allclose(drawn.matrix[:, 1:, 1:], torch.eye(2))


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_keeps_mean_and_spread(name: str) -> None:
    before, _ = images(3)
    after, _ = augmented(before, None, EVERY[name], (), seed=0)
    assert torch.allclose(before.flatten(1).mean(1), after.flatten(1).mean(1), atol=1e-4)
    assert torch.allclose(before.flatten(1).std(1), after.flatten(1).std(1), atol=1e-3)


def test_contrast_stays_within_the_images_values() -> None:
    before, _ = images(2)
    after, _ = augmented(before, None, only(contrast=1.0, contrast_range=(1.5, 2.0)), (), seed=0)
    assert (after.flatten(1).amax(1) <= before.flatten(1).amax(1) + 1e-6).all()


def test_a_constant_image_survives_everything() -> None:
    everything = Augment(**dict.fromkeys(EVERY, 1.0))  # type: ignore[arg-type]
    after, _ = augmented(torch.full((2, 1, 8, 8, 8), 3.0), None, everything, ("z", "y", "x"), seed=0)
    assert torch.isfinite(after).all()
