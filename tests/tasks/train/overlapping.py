"""Small things to learn where classes do not exclude each other: nested and crossing balls, bright corners."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from models.dataset import Dataset, DatasetRow
from models.recipe import Recipe
from tests.tasks.train.samples import NO_AUGMENT, MemoryCase, MemoryStore, World, balls, pictures

SHAPE = (12, 20, 20)
REGIONS = ("left", "right")
CORNERS = ("top", "bottom")
_MATCH = '[{name = "left", match = ["one", "both"]}, {name = "right", match = ["two", "both"]}]'


def crossing(seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """An image (z, y, x) and where two balls that cross are (2, z, y, x): each adds its own brightness."""
    rng = np.random.default_rng(seed)
    y, z = rng.uniform(8, 12), rng.uniform(5, 7)
    grid = np.indices(SHAPE)
    there = np.stack([np.sqrt((grid[0] - z) ** 2 + (grid[1] - y) ** 2 + (grid[2] - x) ** 2) < 4.6 for x in (7.5, 12.5)])
    image = there[0] * 1.5 - there[1] * 1.5 + there.all(0) * 4.0 + rng.normal(0, 0.2, SHAPE)
    return image.astype(np.float32), there


def packed(there: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A region map."""
    return (there * (1 << np.arange(len(there)))[:, None, None, None]).sum(0).astype(np.uint8)


def regions_world(*, train: int = 8, validation: int = 2, **changes: object) -> World:
    """Two regions that overlap."""
    world = balls(train=train, validation=validation, **{"loss": "dice_bce", "augment": NO_AUGMENT, **changes})
    recipe = Recipe.parse(
        'name = "balls"\nkind = "segmentation"\nimages.modality = "MR"\n'
        f'labels.source = "SEG"\nlabels.regions = true\nlabels.classes = {_MATCH}'
    )
    network = world.plan.network.model_copy(update={"out_channels": len(REGIONS), "dropout": 0.0})
    plan = world.plan.model_copy(update={"classes": REGIONS, "regions": True, "network": network})
    cases = {}
    for number, row in enumerate(world.dataset.rows):
        image, there = crossing(number)
        locations = {i + 1: np.argwhere(part) for i, part in enumerate(there)}
        cases[row.volume] = MemoryCase(image[None].astype(np.float16), packed(there), locations)
    return World(plan, recipe, dataclasses.replace(world.dataset, classes=REGIONS), MemoryStore(cases))


def corners(seed: int, shows: tuple[int, ...]) -> NDArray[np.float32]:
    """(1, y, x): the upper left corner is bright, the lower right one, both, or neither."""
    image = np.random.default_rng(seed).normal(0, 0.5, (1, 16, 16)).astype(np.float32)
    image[:, :6, :6] += 2.5 * shows[0]
    image[:, 10:, 10:] += 2.5 * shows[1]
    return image


def shown(number: int) -> tuple[int, int]:
    """All four combinations in turn."""
    return number % 2, number // 2 % 2


def corners_world(*, train: int = 32, validation: int = 12, **changes: object) -> World:
    """Images that show several classes, or none."""
    world = pictures(train=train, validation=validation, **{"loss": "bce", **changes})
    recipe = Recipe.parse(
        'name = "corners"\nkind = "classification"\nimages.modality = "CR"\n'
        'labels.source = "CSV"\nlabels.several = true\nlabels.classes = ["top", "bottom"]'
    )
    rows: list[DatasetRow] = []
    cases = {}
    for number in range(train + validation):
        name, split = f"picture{number}", "train" if number < train else "validation"
        row = next(r for r in world.dataset.rows if r.volume == name)
        rows.append(dataclasses.replace(row, target=-1, classes=shown(number), split=split))  # type: ignore[arg-type]
        cases[name] = MemoryCase(corners(number, shown(number))[None].astype(np.float16))
    plan = world.plan.model_copy(update={"classes": CORNERS, "several": True})
    return World(plan, recipe, Dataset("corners", "classification", CORNERS, tuple(rows)), MemoryStore(cases))
