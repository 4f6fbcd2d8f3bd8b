"""What is chosen on cases that were not learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from models.recipe import Recipe
from tasks.imaging.calibration import calibration_error, tempered
from tasks.train.choosing import VOXELS_OF_A_CASE, MaskTrial, choose_temperature
from tests.tasks.imaging.test_calibration import cohort, softmax
from tests.tasks.train.samples import balls


def recipe(calibrate: bool = True) -> Recipe:
    return Recipe.model_validate(balls().recipe.model_dump() | {"infer": {"calibrate": calibrate}})


def test_an_over_confident_model_is_calibrated_and_the_note_says_what_it_does() -> None:
    said, targets, _ = cohort(400, 3.0)
    temperature, (note,) = choose_temperature(recipe(), said, targets, 400)
    assert temperature > 2
    assert "→" in note
    assert "on 400 cases" in note
    fresh, truth, _ = cohort(2000, 3.0, seed=5)
    before, after = (
        calibration_error(p.max(1), p.argmax(1) == truth) for p in (fresh, tempered(fresh, temperature, axis=1))
    )
    assert after < before / 2


def test_nothing_is_scaled_where_it_would_not_help_or_nobody_asks() -> None:
    said, targets, _ = cohort(400, 3.0)
    assert choose_temperature(recipe(calibrate=False), said, targets, 400) == (1.0, ())
    few, (note,) = choose_temperature(recipe(), said[:9], targets[:9], 9)
    assert few == 1
    assert "9 cases" in note
    assert choose_temperature(recipe(), said[:0], targets[:0], 0)[0] == 1
    # Sure of nine in ten and right in nine of ten, but at times surprised: cooler would be less honest.
    honest = np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1))
    true = (np.arange(100) >= 90).astype(int)
    assert choose_temperature(recipe(), honest, true, 100)[0] == pytest.approx(1, abs=0.05)


def test_voxels_of_masks_make_a_segmentation_honest() -> None:
    """Twelve cases whose voxels are drawn by honest probabilities, told three times too surely."""
    rng = np.random.default_rng(0)
    trial = MaskTrial(balls().plan, components=False, voxels=True)
    for _ in range(12):
        logits = rng.normal(0, 1.2, (16 * 20 * 16, 3))
        mask = (softmax(logits).cumsum(1) < rng.random((len(logits), 1))).sum(1).astype(np.uint8)
        said = softmax(3 * logits).astype(np.float32).T.reshape(3, 16, 20, 16)
        trial.take(said, mask.reshape(16, 20, 16))
    assert trial.cases == 12
    assert len(trial.targets) == 12 * VOXELS_OF_A_CASE
    temperature, (note,) = choose_temperature(recipe(), trial.probabilities, trial.targets, trial.cases)
    assert temperature == pytest.approx(3, rel=0.25)
    assert "12 cases" in note
    assert trial.keep_largest == ()


def test_voxels_far_from_everything_are_not_looked_at() -> None:
    trial = MaskTrial(balls().plan, components=False, voxels=True)
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:12, 10:12, 10:12] = 1
    said = np.zeros((3, 30, 30, 30), np.float32)
    said[0] = 1
    trial.take(said, mask)
    trial.take(said, np.zeros_like(mask))  # a case without anything tells nothing
    assert 8 < len(trial.targets) < 8**3
    assert trial.cases == 2
