"""Real radiographs that a small model was shown, and packages that say what they learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dataset import Dataset, DatasetRow
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import CaseFacts, Fingerprint
from models.refs import PackageRef, VolumeRef
from models.registration import Serving
from tasks.imaging.facts import image_facts
from tasks.predict.run import predict_volumes
from tasks.stores.house import Stores
from tasks.stores.tables import Base, PredictionRow, SeriesRow, StudyRow, VolumeRow
from tests.tasks.predict.samples import a_package, a_volume
from tests.tasks.train.samples import pictures

STEP = 0.2
WORLD = pictures()


def radiographs(folder: Path, count: int, first: int = 0) -> NDArray[np.float32]:
    """Chest radiographs of children, (n, 28, 28)."""
    with np.load(folder / "pneumonia" / "pneumoniamnist.npz") as data:
        return data["train_images"][first : first + count].astype(np.float32)


def grid(step: float = STEP) -> Geometry:
    return Geometry.from_spacing((1, 28, 28), (1.0, step, step))


def shown(
    stores: Stores, package: PackageRef, images: NDArray[np.float32], *, maker: str = "A", step: float = STEP
) -> list[VolumeRef]:
    """Each image of a patient of its own, stored and predicted."""
    refs = []
    for image in images:
        name = content_key(image.tobytes().hex(), maker, step)[:12]
        ref = a_volume(
            stores, image[None], grid(step), study=_uid(name), series=name, modality="CR", patient=f"P-{name}"
        )
        stores.catalog.change(VolumeRow, VolumeRow.volume == ref.key, manufacturer=maker, model_name=f"{maker} one")
        refs.append(ref)
    predict_volumes(stores, package, refs)
    return refs


def recorded(stores: Stores, package: PackageRef, images: NDArray[np.float32]) -> list[str]:
    """Predictions as rows alone, that say nothing yet; returns their keys."""
    series = content_key("series", "all")
    rows: list[Base] = []
    geometry = grid()
    rows.append(StudyRow(study="2.25.9", patient="P"))
    rows.append(SeriesRow(series=series, series_uid="2.25.8", study="2.25.9", patient="P", modality="CR"))
    for number, image in enumerate(images):
        key = content_key("recorded", number)
        rows.append(
            VolumeRow(
                volume=key,
                series=series,
                series_uid="2.25.8",
                study="2.25.9",
                patient=f"P-{number}",
                modality="CR",
                unit="arbitrary",
                frame_of_reference=None,
                shape_z=1,
                shape_y=28,
                shape_x=28,
                spacing_z=1.0,
                spacing_y=STEP,
                spacing_x=STEP,
                geometry=geometry.to_json(),
                manufacturer="A",
                model_name="A one",
            )
        )
        facts = image_facts(key, image[None], geometry).model_dump(mode="json")
        rows.append(PredictionRow(prediction=key, package=package.key, volume=key, result={}, facts=facts))
    stores.catalog.add(*rows)
    return [content_key("recorded", number) for number in range(len(images))]


def facts_of(images: NDArray[np.float32]) -> list[CaseFacts]:
    """As training keeps them."""
    return [image_facts(content_key("trained", n), image[None], grid()) for n, image in enumerate(images)]


def trained_on(stores: Stores, facts: Sequence[CaseFacts], name: str, *, maker: str = "A", **changes: Any) -> Serving:
    """A version that learnt from these images, all of one manufacturer, and serves."""
    rows = tuple(_row(case, maker) for case in facts)
    dataset = stores.datasets.write(Dataset("pictures", "classification", WORLD.plan.classes, rows))
    seen = Fingerprint(dataset=dataset.key, modality="CR", cases=tuple(facts), intensities=(), crop_ratio=1.0)
    package = a_package(stores, WORLD, name, fingerprint=seen.model_dump(mode="json"), dataset=dataset.key, **changes)
    return Serving(name=WORLD.recipe.name, version=name, package=package)


def _uid(name: str) -> str:
    return f"2.25.{int(name, 16)}"


def _row(facts: CaseFacts, maker: str) -> DatasetRow:
    z, y, x = facts.shape
    return DatasetRow(
        patient=f"T-{facts.volume[:16]}",
        study=_uid(facts.volume[:12]),
        series="1",
        volume=facts.volume,
        label=content_key("label", facts.volume),
        split="train",
        target=0,
        modality="CR",
        manufacturer=maker,
        model_name=f"{maker} one",
        shape_z=z,
        shape_y=y,
        shape_x=x,
        spacing_z=1.0,
        spacing_y=STEP,
        spacing_x=STEP,
    )
