"""Balls on two grids, for cascades."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry
from models.package import ModelPackage
from models.plan import Plan
from tasks.imaging.prepare import prepare_image, prepare_mask
from tasks.train.run import train
from tests.tasks.train.samples import MemoryStore, World, balls

LOW_SPACING = (2.0, 2.0, 2.0)
LOW = "low-"
"""Before the name of a case on the coarser grid."""


@dataclasses.dataclass(frozen=True)
class Place:
    geometry: Geometry


@dataclasses.dataclass(frozen=True)
class PlacedCase:
    image: NDArray[Any]
    mask: NDArray[np.uint8]
    about: Place
    locations: Mapping[int, NDArray[Any]]


def grid(shape: tuple[int, int, int]) -> Geometry:
    return Geometry.from_spacing(shape, (1.0, 1.0, 1.0))


def cascade(*, world: World | None = None, **changes: object) -> World:
    """`balls`, or another world, of which a network sees all at half the resolution first."""
    world = world or balls(**changes)  # type: ignore[arg-type]
    plan = two_stages(world.plan)
    assert plan.low
    cases = {}
    for name, case in world.store.cases.items():
        assert case.mask is not None
        geometry = grid(case.mask.shape)
        coarse = prepare_image(case.image.astype(np.float32), geometry, plan.low.prepare)
        mask = prepare_mask(case.mask, geometry, plan.low.prepare, coarse)
        cases[name] = placed(case.image, case.mask, geometry)
        cases[LOW + name] = placed(coarse.array.astype(np.float16), mask, coarse.geometry)
    return dataclasses.replace(world, plan=plan, store=MemoryStore(cases))  # type: ignore[arg-type]


def placed(image: NDArray[Any], mask: NDArray[np.uint8], geometry: Geometry) -> PlacedCase:
    return PlacedCase(image, mask, Place(geometry), {c: np.argwhere(mask == c) for c in (1, 2)})


def two_stages(plan: Plan) -> Plan:
    """With a first stage at half the resolution, of patches that show as much."""
    patch = tuple(n // 2 for n in plan.train.patch_size)
    low = plan.model_copy(
        update={
            "seed": plan.seed + 1,
            "resolution": "low",
            "prepare": plan.prepare.model_copy(update={"spacing": LOW_SPACING}),
            "train": plan.train.model_copy(update={"patch_size": patch}),
            "infer": plan.infer.model_copy(update={"tile": patch}),
            "network": plan.network.model_copy(update={"features": (6, 8)}),
        }
    )
    network = plan.network.model_copy(update={"told": len(plan.classes), "told_regions": plan.regions})
    return plan.model_copy(update={"low": low, "network": network})


def coarse_keys(world: World) -> dict[str, dict[tuple[str, str], str]]:
    """The cases on the coarser grid, by how they are prepared."""
    way = world.plan.prepare.model_copy(update={"spacing": LOW_SPACING})
    return {way.key: {case: LOW + name for case, name in world.keys.items()}}


def trained(world: World, folder: Path, **more: Any) -> ModelPackage:
    """What `world` teaches in two stages."""
    given = {"staged": folder / "package", "key": "package1", "more_keys": coarse_keys(world), **more}
    return train(world.plan, world.recipe, world.dataset, world.store, world.keys, folder, **given)
