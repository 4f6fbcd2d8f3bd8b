"""A recipe that names a network of the table is planned, trained and packaged; a new entry is tested by being there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.plan import Plan
from models.recipe import Recipe
from tasks.preprocess.plan import make_plan
from tasks.stores.packages import read_package
from tasks.train.run import train
from tests.models.networks.variants import Variant, planar, variants
from tests.tasks.preprocess.cases import fingerprint
from tests.tasks.train.samples import World, balls, pictures


def planned(variant: Variant, world: World, **network: object) -> tuple[Recipe, Plan]:
    """Two steps of a narrow network."""
    values = world.recipe.model_dump(mode="json")
    values["network"] = {"name": variant.name, "features": variant.widths, "dimensions": variant.dimensions} | network
    values["train"] |= {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "validations": 1, "precision": "fp32"}
    if variant.segments:
        values["train"]["patch_size"] = (8, 16, 16)
    else:
        values["preprocess"]["size"] = (1, 16, 16) if variant.dimensions == 2 else (4, 16, 16)
    recipe = Recipe.model_validate(values)
    shape = (12, 20, 16) if variant.dimensions == 3 or variant.segments else (1, 16, 16)
    found = fingerprint("MR", shape, (1, 1, 1), 4)
    return recipe, make_plan(recipe, found, world.plan.classes, memory_gb=8, device="cpu", cores=2)


@pytest.mark.parametrize("variant", planar(variants()), ids=lambda v: v.name)
def test_a_recipe_names_it_and_it_is_trained(variant: Variant, tmp_path: Path) -> None:
    world = balls(train=2, validation=1, dimensions=2) if variant.segments else pictures(train=6, validation=3)
    recipe, plan = planned(variant, world)
    assert plan.network.name == variant.name
    assert plan.network.features == variant.widths
    world = replace(world, recipe=recipe, plan=plan)
    made = train(
        plan, recipe, world.dataset, world.store, world.keys, tmp_path, staged=tmp_path / "package", key="package"
    )
    assert made.training.steps == 2
    assert made.training.parameters > 0
    described, weights = read_package(tmp_path / "package")
    assert described == made
    assert weights
