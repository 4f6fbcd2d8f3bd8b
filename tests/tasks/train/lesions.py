"""Small images with bright balls to find; all in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.dataset import Dataset, DatasetRow
from models.plan import InferPlan, NetworkPlan, Normalisation, Plan, PreparePlan
from models.recipe import Detection, Recipe
from tests.tasks.train.samples import NO_AUGMENT, MemoryCase, MemoryStore, World, train_plan

SHAPE = (16, 32, 32)


def spots(seed: int, shape: tuple[int, int, int] = SHAPE, most: int = 3) -> MemoryCase:
    """None to `most` bright balls in noise, apart from each other."""
    rng = np.random.default_rng(seed)
    flat = shape[0] == 1
    mask = np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    placed: list[tuple[Any, float]] = []
    for _ in range(int(rng.integers(0 if seed % 4 == 3 else 1, most + 1))):
        radius = rng.uniform(2.5, 4.5)
        margin = [0 if flat and axis == 0 else radius + 1 for axis in range(3)]
        centre = np.array([rng.uniform(m, n - 1 - m) for m, n in zip(margin, shape, strict=True)])
        if flat:
            centre[0] = 0
        if all(np.linalg.norm(centre - other) > radius + size + 2 for other, size in placed):
            placed.append((centre, radius))
            mask[np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(0)) <= radius] = 1
    image = mask * 2.0 - 0.5 + rng.normal(0, 0.3, shape)
    return MemoryCase(image[None].astype(np.float16), mask, {1: np.argwhere(mask == 1)})


def lesions(method: str, *, dimensions: int = 3, train: int = 8, validation: int = 4, **changes: object) -> World:
    """What `train` takes, for a detection by `method`."""
    shape = SHAPE if dimensions == 3 else (1, 48, 48)
    names = [f"spots{i}" for i in range(train + validation)]
    rows = [
        DatasetRow(n, "s", "r", n, "label", "train" if i < train else "validation", -1, "CT", "", "", *shape, 1, 1, 1)
        for i, n in enumerate(names)
    ]
    components = method == "components"
    training = train_plan(
        **(
            {
                "patch_size": (16, 32, 32) if dimensions == 3 else (1, 32, 32),
                "augment": NO_AUGMENT,
                "flip_axes": (),
                "learning_rate": 1e-2 if components else 3e-3,
                "oversample_foreground": 0.5,
                "loss": "dice_ce" if components else "auto",
            }
            | changes
        )
    )
    recipe = Recipe.model_validate(
        {
            "name": "spots",
            "kind": "detection",
            "images": {"modality": "CT"},
            "labels": {"source": "SEG"},
            "detection": {"method": method},
        }
    )
    plan = Plan(
        recipe=recipe.learning_key,
        kind="detection",
        seed=5,
        classes=("spot",),
        prepare=PreparePlan(
            dimensions=3 if dimensions == 3 else 2, spacing=(1, 1, 1), normalisation=(Normalisation(scheme="none"),)
        ),
        network=NetworkPlan(
            name="unet" if components else "retinanet",
            dimensions=3 if dimensions == 3 else 2,
            in_channels=1,
            out_channels=2 if components else 1,
            features=(6, 12, 12) if components else (8, 16, 16),
        ),
        train=training,
        infer=InferPlan(tile=training.patch_size, overlap=0.5, mirror_axes=(), keep_largest=False),
        detection=Detection.model_validate({"method": method}),
    )
    dataset = Dataset("spots", "detection", plan.classes, tuple(rows))
    return World(plan, recipe, dataset, MemoryStore({n: spots(i, shape) for i, n in enumerate(names)}))
