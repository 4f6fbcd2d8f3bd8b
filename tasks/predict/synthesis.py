"""Made images for a dataset: of the classes that are rare, for the training split alone, and marked as made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import Dataset, DatasetRow
from models.errors import RecipeError
from models.geometry import Geometry
from models.hashing import content_key
from models.networks.adversarial import Adversaries
from models.package import ModelPackage
from models.plan import FloatTriple, Normalisation
from models.recipe import Recipe
from models.refs import DatasetRef, PackageRef
from models.volume import Volume
from tasks.imaging.predictor import Predictor
from tasks.predict.warm import alone_on, predictor_for
from tasks.progress import stage
from tasks.stores.datasets import record_of
from tasks.stores.house import Stores
from tasks.stores.tables import DatasetRecord

BATCH = 32


def add_synthetic(stores: Stores, recipe: Recipe, ref: DatasetRef, source: PackageRef) -> DatasetRef:
    """The dataset with as many made images of each class as the recipe asks for; the same ones for the same model.

    Raises RecipeError where the model makes no images, or none of such a class.
    """
    asked = recipe.synthetic
    if asked is None:
        return ref
    dataset = stores.datasets.read(ref.key)
    package, predictor = predictor_for(stores, source)
    _check(package, dataset, asked.per_class)
    rows: list[DatasetRow] = []
    with stage("synthesise", sum(asked.per_class.values()), "images") as running, alone_on(predictor.device):
        for name, count in sorted(asked.per_class.items()):
            for first in range(0, count, BATCH):
                numbers = range(first, min(first + BATCH, count))
                rows += _made(stores, package, predictor, dataset, name, numbers)
                running.advance(len(numbers))
    whole = Dataset(dataset.name, dataset.kind, dataset.classes, (*dataset.rows, *rows), dataset.variables)
    added = stores.datasets.write(whole)
    if stores.catalog.get(DatasetRecord, added.key) is None:
        stores.catalog.add(record_of(whole))
    return added


def _check(package: ModelPackage, dataset: Dataset, asked: dict[str, int]) -> None:
    if package.plan.kind != "synthesis":
        raise RecipeError(
            f"{package.recipe.name} is a {package.plan.kind}: it makes no images",
            where="synthetic.source",
            hint='name a recipe of kind = "synthesis"',
        )
    for name in asked:
        if name not in package.plan.classes or name not in dataset.classes:
            raise RecipeError(
                f"no images of {name!r} can be made: the model knows {', '.join(package.plan.classes)}, "
                f"the dataset {', '.join(dataset.classes)}",
                where="synthetic.per_class",
            )


def _made(
    stores: Stores, package: ModelPackage, predictor: Predictor, dataset: Dataset, name: str, numbers: range
) -> list[DatasetRow]:
    """Rows of images `numbers` of a class; those that are in the store already are not made again."""
    keys = [content_key("synthetic", package.key, name, number) for number in numbers]
    geometry = _geometry(package, dataset.split("train"))
    if not all(stores.volumes.exists(key) for key in keys):
        images = _draw(package, predictor, name, numbers)
        for key, image in zip(keys, images, strict=True):
            stores.volumes.write(key, _volume(package, image, geometry, dataset))
    return [_row(key, dataset, name, geometry) for key in keys]


@torch.inference_mode()
def _draw(package: ModelPackage, predictor: Predictor, name: str, numbers: range) -> NDArray[np.float32]:
    """(n, c, z, y, x). Each image is drawn alone: it is the same whatever is drawn with it."""
    network = cast(Adversaries, predictor.network)
    wanted = torch.tensor([package.plan.classes.index(name)], device=predictor.device)
    images = []
    for number in numbers:
        seed = int(content_key("synthetic", package.key, name, number)[:15], 16)
        image = network.draw(wanted, torch.Generator().manual_seed(seed))[0].float().cpu().numpy()
        images.append(image[:, None] if image.ndim == 3 else image)
    return np.stack(images)


def _volume(package: ModelPackage, image: NDArray[np.float32], geometry: Geometry, dataset: Dataset) -> Volume:
    ways = package.plan.prepare.normalisation
    values = np.stack([_restored(plane, way) for plane, way in zip(image, ways, strict=True)])
    note = f"made by model package {package.key}: no patient's image"
    modality = dataset.split("train")[0].modality
    return Volume(values[0] if len(values) == 1 else values, geometry, modality, notes=(note,))


def _restored(plane: NDArray[np.float32], way: Normalisation) -> NDArray[np.float32]:
    """Back in the images' own unit where the mapping is one for all images; per-image mappings undo themselves."""
    if way.scheme == "ct":
        return np.clip(plane * max(way.std, 1e-8) + way.mean, way.low, way.high).astype(np.float32)
    if way.scheme == "window":
        return (way.low + np.clip(plane, 0, 1) * (way.high - way.low)).astype(np.float32)
    return plane


def _geometry(package: ModelPackage, rows: Sequence[DatasetRow]) -> Geometry:
    """The planned size, as large in mm as the median training image."""
    assert package.plan.prepare.size is not None  # noqa: S101 - a synthesis is planned with one
    size = package.plan.prepare.size
    extents = [[n * s for n, s in zip(row.shape, row.spacing, strict=True)] for row in rows]
    z, y, x = (float(v) for v in np.median(extents, axis=0))
    spacing: FloatTriple = (z / size[0], y / size[1], x / size[2])
    return Geometry.from_spacing(size, spacing)


def _row(key: str, dataset: Dataset, name: str, geometry: Geometry) -> DatasetRow:
    (depth, height, width), (z, y, x) = geometry.shape, geometry.spacing
    return DatasetRow(
        patient=f"synthetic-{key[:16]}",
        study="",
        series="",
        volume=key,
        label=content_key("synthetic label", name),
        split="train",
        target=dataset.classes.index(name),
        modality=dataset.split("train")[0].modality,
        manufacturer="",
        model_name="",
        shape_z=depth,
        shape_y=height,
        shape_x=width,
        spacing_z=z,
        spacing_y=y,
        spacing_x=x,
        clinical=("",) * len(dataset.variables),
        synthetic=True,
    )
