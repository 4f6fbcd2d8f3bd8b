"""One setting, and what a recipe asks for is learnt by several processes, which share batch statistics too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from flows.environment import open_stores
from models.recipe import Recipe
from models.settings import Settings
from tasks.preprocess.stored import prepare_planned
from tasks.stores.house import Stores
from tasks.stores.packages import read_package
from tasks.stores.prepared import prepared_keys
from tasks.train import door
from tasks.train.run import train
from tests.tasks.test_nights import RECIPE, House

LEARNT = RECIPE.replace("network.features = [8, 12]", 'network.name = "resnet18"').replace(
    "epochs = 4, steps_per_epoch = 3, batch_size = 8",
    'epochs = 1, steps_per_epoch = 3, batch_size = 5, optimiser = "sgd", precision = "fp32"',
)


def test_the_setting_reaches_the_stores(tmp_path: Path) -> None:
    stores = open_stores(Settings(home=tmp_path, training_processes=3))
    assert stores.locations.training_processes == 3


def test_through_the_door_two_processes_make_the_package_that_one_makes(house_of_one: Stores, tmp_path: Path) -> None:
    stores = Stores(dataclasses.replace(house_of_one.locations, training_processes=2))
    house, recipe = House(stores), Recipe.parse(LEARNT)
    house.patients(range(24))
    ref = house.plan(recipe)
    prepared = prepare_planned(stores, recipe, ref)
    package = door.train.fn(stores, recipe, ref, prepared)
    described, weights = read_package(stores.packages.local(package.key))
    assert described.training.processes == 2
    assert described.training.steps == 3
    assert len(described.training.history) == 2

    plan, dataset = house.planned(ref), stores.datasets.read(described.dataset)
    keys = prepared_keys(dataset, recipe, plan.prepare)
    alone = train(
        plan, recipe, dataset, stores.prepared, keys, tmp_path, staged=tmp_path / "package", key="k", processes=1
    )
    assert alone.training.processes == 1
    _, others = read_package(tmp_path / "package")
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-3)
