"""Patients as cases: their series together, drawn by class, with what is missing marked as such."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from models.dataset import Dataset, DatasetRow
from models.errors import LabelError
from models.plan import NetworkPlan
from models.recipe import Augment, Recipe
from tasks.imaging.predictor import Predictor
from tasks.stores.packages import read_package
from tasks.train.learner import Learner
from tasks.train.patches import Batch, Cases
from tasks.train.run import train
from tasks.train.teaching import teaching_for
from tasks.train.teaching.patients import PatientTeaching, by_patient
from tests.tasks.train.samples import MemoryCase, MemoryStore, World, picture, pictures
from tests.tasks.train.test_run import grid

SIDE = 12


def patients(*, train: int = 24, validation: int = 12, **changes: object) -> World:
    """One to three series each; of every second patient one of them, anywhere, shows a bright square."""
    base = pictures(**({"patch_size": (1, SIDE, SIDE), "batch_size": 8} | changes))
    cases: dict[str, MemoryCase] = {}
    rows: list[DatasetRow] = []
    for number in range(train + validation):
        rng, target = np.random.default_rng(number), number % 2
        series = int(rng.integers(1, 4))
        shown = int(rng.integers(series)) if target else -1
        for n in range(series):
            name = f"patient{number}-{n}"
            cases[name] = picture(10 * number + n, int(n == shown), SIDE)
            rows.append(
                dataclasses.replace(
                    base.dataset.rows[0],
                    patient=f"patient{number}",
                    volume=name,
                    split="train" if number < train else "validation",
                    target=target,
                )
            )
    network = NetworkPlan(name="patient_attention", dimensions=2, in_channels=1, out_channels=2, features=(8, 12))
    prepare = base.plan.prepare.model_copy(update={"size": (1, SIDE, SIDE)})
    plan = base.plan.model_copy(update={"of": "patient", "network": network, "prepare": prepare})
    dataset = Dataset("patients", "classification", plan.classes, tuple(rows))
    recipe = Recipe.model_validate(base.recipe.model_dump() | {"labels": {"source": "CSV", "of": "patient"}})
    return World(plan, recipe, dataset, MemoryStore(cases))


def opened(world: World, rows: Sequence[DatasetRow], shares: Sequence[float] | None = None) -> Cases:
    return Cases(world.store, [row.volume for row in rows], shares)


class TestDrawing:
    def test_a_patient_is_all_of_its_series(self) -> None:
        world = patients()
        rows = world.dataset.split("train")
        cases, first = by_patient(opened(world, rows), rows)
        assert [row.patient for row in first] == sorted({row.patient for row in rows})
        for index, row in enumerate(first):
            mine = [r.volume for r in rows if r.patient == row.patient]
            expected = np.stack([world.store.open(volume).image for volume in mine])
            np.testing.assert_array_equal(cases[index].image, expected)

    def test_classes_come_in_equal_parts_and_missing_series_are_marked(self) -> None:
        world = patients()
        rows = world.dataset.split("train")
        sampler = teaching_for(world.plan).sampler(opened(world, rows), rows)
        lengths = set()
        for step in range(6):
            batch = sampler.batch(step, 8)
            assert batch.targets.tolist().count(1) == 4
            there = ~batch.images.flatten(2).isnan().all(2)
            assert not batch.images[there].isnan().any()
            lengths |= set(there.sum(1).tolist())
            assert batch.images.shape[1] == int(there.sum(1).max())
        assert lengths == {1, 2, 3}

    def test_a_step_draws_the_same_again(self) -> None:
        world = patients()
        rows = world.dataset.split("train")
        first, second = (teaching_for(world.plan).sampler(opened(world, rows), rows).batch(7, 4) for _ in range(2))
        assert torch.equal(first.images.nan_to_num(-9), second.images.nan_to_num(-9))
        assert torch.equal(first.targets, second.targets)

    def test_the_most_wanted_series_says_how_often_a_patient_is_drawn(self) -> None:
        world = patients()
        rows = world.dataset.split("train")
        wanted = {"patient1", "patient2"}
        shares = [1.0 if row.patient in wanted and row.volume.endswith("-0") else 0.0 for row in rows]
        cases, first = by_patient(opened(world, rows, shares), rows)
        rng = np.random.default_rng(0)
        seen = {first[cases.draw(rng)].patient for _ in range(50)}
        assert seen == wanted

    def test_series_that_contradict_each_other_are_refused(self) -> None:
        world = patients()
        rows = list(world.dataset.split("train"))
        several = next(i for i, row in enumerate(rows) if row.volume.endswith("-1"))
        rows[several] = dataclasses.replace(rows[several], target=1 - rows[several].target)
        with pytest.raises(LabelError, match="contradict"):
            by_patient(opened(world, rows), rows)


def test_judged_by_patient(tmp_path: Path) -> None:
    world = patients()
    rows = world.dataset.split("validation")
    teaching = teaching_for(world.plan)
    assert isinstance(teaching, PatientTeaching)
    validation = teaching.validation(opened(world, rows), rows, torch.device("cpu"))
    assert validation.decisive
    assert len(validation.targets) == 12

    class Brightest(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            peak = torch.nn.functional.avg_pool2d(x.flatten(0, 2)[:, None], 5).amax((1, 2, 3))
            return torch.stack((torch.zeros(len(x)), peak.view(len(x), -1).amax(1) - 1.2), 1)

    assert validation(Brightest(), "fp32", lambda: False) > 0.95


def test_learns_what_one_series_of_several_shows(tmp_path: Path) -> None:
    world = patients(epochs=24, ema=0.9)
    package = train(
        world.plan, world.recipe, world.dataset, world.store, world.keys, tmp_path, staged=tmp_path / "p", key="k"
    )
    assert package.training.best_metric > 0.9
    assert package.threshold is not None
    predictor = Predictor(*read_package(tmp_path / "p"), "cpu")
    right = 0
    for number in range(20):
        series = [picture(5000 + 10 * number + n, int(number % 2 and n == number % 3), SIDE) for n in range(3)]
        images = [(case.image[0].astype(np.float32), grid((1, SIDE, SIDE))) for case in series]
        said = predictor.classify_many(images)
        assert said.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(said, predictor.classify_many(reversed(images)), atol=1e-5)
        right += (said[1] >= package.threshold) == bool(number % 2)
    assert right >= 17


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_step_changes_each_series_by_itself_and_leaves_what_is_missing(dimensions: int) -> None:
    world = patients(augment=Augment(rotation=1, scaling=1, elastic=1, noise=1, blur=1, gamma=1), flip_axes=("x",))
    network = world.plan.network.model_copy(update={"dimensions": dimensions})
    plan = world.plan.model_copy(update={"network": network})
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, 1, 4, 9, 8)).astype(np.float32))
    images = images.repeat(1, 3, 1, 1, 1, 1)
    images[1, 2] = torch.nan
    seen: list[torch.Tensor] = []
    learner = Learner(plan, torch.device("cpu"))
    learner.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    batch = Batch(images, torch.tensor([0, 1]))
    learner.settle(batch)
    assert learner.step(batch, 0.1) is not None
    given = seen[-1]
    assert given.shape == ((2, 3, 1, 4, 9, 8) if dimensions == 3 else (2, 3, 1, 9, 8))
    assert given[1, 2].isnan().all()
    assert not given[0].isnan().any()
    assert not given[1, :2].isnan().any()
    assert not torch.allclose(given[0, 0], given[0, 1])
