"""Trainings that blend images, weigh borders or tell classes apart one by one: the same bits, also across a kill."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.train.learner import Learner
from tasks.train.patches import Batch, Cases, ImageSampler
from tests.tasks.train.overlapping import corners_world, regions_world
from tests.tasks.train.samples import World, balls, pictures, trained

WORLDS = {
    "mixup and cutmix": lambda: pictures(mixup=0.4, cutmix=1.0, label_smoothing=0.1, validations=1),
    "mixup of several classes": lambda: corners_world(mixup=0.4, validations=1),
    "boundary": lambda: balls(loss="dice_ce_boundary", validations=1),
    "regions": lambda: regions_world(validations=1),
}


@pytest.mark.parametrize("name", WORLDS)
def test_two_runs_and_an_interrupted_one_give_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WORLDS[name]()
    whole = trained(world, tmp_path / "whole")
    cancel, step = threading.Event(), Learner.step

    def stopping(self: Learner, batch: Batch, progress: float) -> float | None:
        loss = step(self, batch, progress)
        if self.position.step == 4:
            cancel.set()
        return loss

    monkeypatch.setattr(Learner, "step", stopping)
    with pytest.raises(SystemExit, match="143"):
        trained(world, tmp_path / "parts", cancel=cancel)
    monkeypatch.undo()
    torch.rand(7)  # whatever else drew in between
    assert trained(world, tmp_path / "parts").weights_sha256 == whole.weights_sha256
    assert trained(world, tmp_path / "again").weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("change", [{"mixup": 0.4}, {"cutmix": 1.0}, {"label_smoothing": 0.1}])
def test_what_is_asked_for_changes_the_weights(change: dict[str, float], tmp_path: Path) -> None:
    plain, changed = pictures(epochs=1), pictures(epochs=1, **change)
    assert trained(plain, tmp_path / "a").weights_sha256 != trained(changed, tmp_path / "b").weights_sha256


def test_each_class_and_none_come_up_equally_often() -> None:
    world = corners_world()
    rows = world.dataset.split("train")
    # Most images show nothing; one alone shows the second class.
    targets = tuple((int(i % 4 == 0), int(i == 1)) for i in range(len(rows)))
    sampler = ImageSampler(Cases(world.store, [row.volume for row in rows]), targets, True, 0)
    batches = [sampler.batch(step, 6).targets for step in range(20)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    drawn = torch.cat(batches).numpy()
    assert np.abs(drawn.mean(0) - 1 / 3).max() < 0.05
    assert np.array_equal(sampler.batch(3, 6).targets, batches[3])


def test_a_given_threshold_is_every_classes(tmp_path: Path) -> None:
    world = corners_world(epochs=1, validations=1)
    recipe = world.recipe.model_validate(world.recipe.model_dump() | {"evaluate": {"threshold": 0.25}})
    given = World(world.plan, recipe, world.dataset, world.store)
    assert trained(given, tmp_path).thresholds == (0.25, 0.25)


@pytest.mark.parametrize(("keep", "expected"), [(True, ("left", "right")), (False, ())])
def test_regions_may_keep_their_largest_component(keep: bool, expected: tuple[str, ...], tmp_path: Path) -> None:
    world = regions_world(epochs=1, validations=1)
    infer = world.plan.infer.model_copy(update={"keep_largest": keep})
    plan = world.plan.model_copy(update={"infer": infer})
    assert trained(World(plan, world.recipe, world.dataset, world.store), tmp_path).keep_largest == expected
