"""Small things to learn: balls in noise, and bright against dark images; all in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dataset import Dataset, DatasetRow
from models.package import ModelPackage
from models.plan import InferPlan, NetworkPlan, Normalisation, Plan, PreparePlan, TrainPlan
from models.recipe import Augment, Recipe
from tasks.train.run import train

NO_AUGMENT = Augment.none()


@dataclass(frozen=True)
class MemoryCase:
    image: NDArray[Any]
    mask: NDArray[np.uint8] | None = None
    locations: Mapping[int, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryStore:
    """Stands for the prepared store."""

    cases: Mapping[str, MemoryCase]

    def open(self, key: str) -> MemoryCase:
        return self.cases[key]


def ball(seed: int, shape: tuple[int, int, int] = (12, 20, 16)) -> MemoryCase:
    """A bright ball (class 1) with a brighter core (class 2) somewhere in noise."""
    rng = np.random.default_rng(seed)
    centre = [rng.uniform(0.35 * n, 0.65 * n) for n in shape]
    radius = rng.uniform(4, 5.5)
    grid = np.indices(shape)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    mask = (distance < radius).astype(np.uint8) + (distance < radius / 2)
    image = mask * 1.5 - 0.5 + rng.normal(0, 0.2, shape)
    locations = {c: np.argwhere(mask == c) for c in (1, 2)}
    return MemoryCase(image[None].astype(np.float16), mask.astype(np.uint8), locations)


def picture(seed: int, target: int, size: int = 16) -> MemoryCase:
    """Class 1 has a bright square."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.5, (size, size))
    if target:
        y, x = rng.integers(0, size - 6, 2)
        image[y : y + 6, x : x + 6] += 2
    return MemoryCase(image[None, None].astype(np.float16))


def _row(name: str, split: Any, target: int) -> DatasetRow:
    return DatasetRow(name, "study", "series", name, "label", split, target, "MR", "", "", 12, 20, 16, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class World:
    """Everything that `train` takes."""

    plan: Plan
    recipe: Recipe
    dataset: Dataset
    store: MemoryStore

    @property
    def keys(self) -> dict[tuple[str, str], str]:
        return {(row.volume, row.label): row.volume for row in self.dataset.rows}


def train_plan(**changes: object) -> TrainPlan:
    values: dict[str, object] = {
        "patch_size": (8, 16, 16),
        "batch_size": 2,
        "steps_per_epoch": 5,
        "epochs": 2,
        "minutes": None,
        "optimiser": "adamw",
        "learning_rate": 1e-2,
        "weight_decay": 1e-2,
        "schedule": "poly",
        "warmup": 0.02,
        "loss": "dice_ce",
        "class_balance": True,
        "label_smoothing": 0.0,
        "clip": 12.0,
        "ema": 0.9,
        "oversample_foreground": 0.33,
        "precision": "fp32",
        "compile": False,
        "patience": None,
        "validations": 2,
        "checkpoint_minutes": 60.0,
        "device": "cpu",
        "augment": Augment(),
        "flip_axes": ("z", "y", "x"),
    }
    return TrainPlan.model_validate(values | changes)


def balls(*, train: int = 6, validation: int = 2, dimensions: int = 3, **changes: object) -> World:
    """Segmentation in three dimensions, or slice by slice in two."""
    names = [f"ball{i}" for i in range(train + validation)]
    rows = [_row(n, "train" if i < train else "validation", -1) for i, n in enumerate(names)]
    flat = {"patch_size": (1, 16, 16), "flip_axes": ("y", "x")} if dimensions == 2 else {}
    training = train_plan(**(flat | changes))
    recipe = Recipe.model_validate(
        {"name": "balls", "kind": "segmentation", "images": {"modality": "MR"}, "labels": {"source": "SEG"}}
    )
    plan = Plan(
        recipe=recipe.learning_key,
        kind="segmentation",
        seed=3,
        classes=("ball", "core"),
        prepare=PreparePlan(
            dimensions=3 if dimensions == 3 else 2, spacing=(1, 1, 1), normalisation=(Normalisation(scheme="none"),)
        ),
        network=NetworkPlan(
            name="unet",
            dimensions=3 if dimensions == 3 else 2,
            in_channels=1,
            out_channels=3,
            features=(6, 12, 12),
            dropout=0.1,
            deep_supervision=True,
        ),
        train=training,
        infer=InferPlan(tile=training.patch_size, overlap=0.5, mirror_axes=(), keep_largest="auto"),
    )
    dataset = Dataset("balls", "segmentation", plan.classes, tuple(rows))
    return World(plan, recipe, dataset, MemoryStore({n: ball(i) for i, n in enumerate(names)}))


def pictures(*, train: int = 24, validation: int = 12, **changes: object) -> World:
    """Binary classification of 16 × 16 images, a third of them positive."""
    names = [f"picture{i}" for i in range(train + validation)]
    targets = [int(i % 3 == 0) for i in range(train + validation)]
    rows = [
        _row(n, "train" if i < train else "validation", t) for i, (n, t) in enumerate(zip(names, targets, strict=True))
    ]
    values: dict[str, object] = {
        "patch_size": (1, 16, 16),
        "loss": "ce",
        "batch_size": 8,
        "flip_axes": (),
        "augment": NO_AUGMENT,
    }
    recipe = Recipe.model_validate(
        {"name": "pictures", "kind": "classification", "images": {"modality": "CR"}, "labels": {"source": "CSV"}}
    )
    plan = Plan(
        recipe=recipe.learning_key,
        kind="classification",
        seed=1,
        classes=("plain", "square"),
        prepare=PreparePlan(
            dimensions=2, spacing=None, size=(1, 16, 16), normalisation=(Normalisation(scheme="none"),)
        ),
        network=NetworkPlan(name="resnet", dimensions=2, in_channels=1, out_channels=2, features=(8, 16)),
        train=train_plan(**(values | changes)),
        infer=InferPlan(tile=(1, 16, 16), overlap=0.5, mirror_axes=(), keep_largest="auto"),
    )
    dataset = Dataset("pictures", "classification", plan.classes, tuple(rows))
    return World(
        plan,
        recipe,
        dataset,
        MemoryStore({n: picture(i, t) for i, (n, t) in enumerate(zip(names, targets, strict=True))}),
    )


def trained(world: World, folder: Path, **more: Any) -> ModelPackage:
    """What `world` teaches; `folder` keeps the checkpoints, and the package in `package`."""
    given = {"staged": folder / "package", "key": "package1", **more}
    return train(world.plan, world.recipe, world.dataset, world.store, world.keys, folder, **given)
