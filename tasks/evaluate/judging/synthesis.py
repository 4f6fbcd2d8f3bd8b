"""Made images beside the test images."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
import pandas as pd
import torch

from models.dataset import Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation, Picture
from models.hashing import content_key
from models.networks.adversarial import Adversaries
from models.package import ModelPackage
from models.schemas import CASE_METRICS_SYNTHESIS, check
from tasks.evaluate.cost import Stopwatch
from tasks.evaluate.judging import Judged, image_of
from tasks.evaluate.synthesis import Images, MadeImages, compare_synthesis, evaluate_synthesis
from tasks.imaging.likeness import nearest
from tasks.imaging.montage import montage
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.progress import Stage
from tasks.stores.house import Stores

MOST = 2000
"""Training images that are looked through for copies."""
_SHOWN = 8


def judge(
    stores: Stores,
    package: ModelPackage,
    predictor: Predictor,
    dataset: Dataset,
    rows: tuple[DatasetRow, ...],
    running: Stage,
) -> Judged:
    """Fidelity and copies."""
    rng = np.random.default_rng(int(content_key("partners", dataset.key)[:16], 16))
    train = _at_most(dataset.split("train"), MOST, rng)
    training = _prepared(stores, package, train)
    real = []
    for row in rows:
        real.append(_prepared(stores, package, (row,))[0])
        running.advance()
    classes = tuple(row.target for row in rows)
    by_class = {c: [i for i, row in enumerate(train) if row.target == c] for c in set(classes)}
    partners = np.stack([training[int(rng.choice(by_class[c] or range(len(train))))] for c in classes])
    network, timed = cast(Adversaries, predictor.network), Stopwatch()
    with torch.inference_mode():
        chance = torch.Generator().manual_seed(package.plan.seed)
        asked = torch.tensor(classes, device=predictor.device)
        made = timed(lambda: network.draw(asked, chance).cpu().numpy())
    images = MadeImages(
        tuple(row.patient for row in rows),
        tuple(row.volume for row in rows),
        classes,
        _flat(np.stack(real), package),
        made,
        _flat(partners, package),
        _flat(training, package),
    )
    evaluation, frame = evaluate_synthesis(
        images,
        dataset.classes,
        package=package.key,
        dataset=dataset.key,
        bootstrap=package.recipe.evaluate.bootstrap,
    )
    table = check(frame, CASE_METRICS_SYNTHESIS, where="evaluation")
    each = timed.seconds[0] / len(rows)  # all are made at once
    return Judged(evaluation, table, (_beside(images, dataset.classes),), (each,) * len(rows))


def compare(
    champion_cases: pd.DataFrame, challenger_cases: pd.DataFrame, champion: Evaluation, challenger: Evaluation
) -> Comparison:
    """Differences on the same test images."""
    return compare_synthesis(champion, challenger)


def _at_most(rows: tuple[DatasetRow, ...], most: int, rng: np.random.Generator) -> tuple[DatasetRow, ...]:
    chosen = sorted(rng.permutation(len(rows))[:most].tolist())
    return tuple(rows[i] for i in chosen)


def _prepared(stores: Stores, package: ModelPackage, rows: tuple[DatasetRow, ...]) -> Images:
    """(n, c, z, y, x)."""
    found = []
    for row in rows:
        volume = image_of(stores, package, row)
        found.append(prepare_image(volume.array, volume.geometry, package.plan.prepare).array)
    return np.stack(found)


def _flat(images: Images, package: ModelPackage) -> Images:
    return images[:, :, 0] if package.plan.network.dimensions == 2 else images


def _beside(images: MadeImages, class_names: tuple[str, ...]) -> Picture:
    """Some made images, and under each the training image that is nearest to it."""
    chosen = np.linspace(0, len(images.made) - 1, min(_SHOWN, len(images.made))).round().astype(int)
    made = [_slice(images.made[i]) for i in chosen]
    _, places = nearest(images.made[chosen], images.training)
    near = [_slice(images.training[place]) for place in places]
    pairs = [part for start in range(0, len(made), 4) for part in (*made[start : start + 4], *near[start : start + 4])]
    sheet = montage(pairs, [[]] * len(pairs), (1.0, 1.0), "")
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    names = ", ".join(class_names[images.classes[i]] for i in chosen)
    return Picture(
        name="made",
        title="Made images, and under each the nearest training image",
        alt=f"Made images of the classes {names}, in rows of four; under each row the nearest training images.",
        data=data.getvalue(),
        media_type="image/png",
    )


def _slice(image: Images) -> Images:
    """The middle slice of the first channel (y, x)."""
    first = image[0]
    return first if first.ndim == 2 else first[len(first) // 2]
