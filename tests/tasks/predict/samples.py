"""An installation with packages of small untrained networks, and volumes for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.geometry import Geometry
from models.hashing import content_key
from models.package import Environment, ModelPackage, TrainingRecord
from models.plan import CaseFacts, Fingerprint
from models.refs import PackageRef, StudyVersionRef, VolumeRef
from models.volume import Volume
from tasks.imaging.facts import channel_levels, orientation
from tasks.stores.house import Locations, Stores
from tasks.stores.packages import write_package, write_weights
from tasks.stores.tables import DatasetRecord, PackageRow, SeriesRow, StudyRow, StudyVersionRow, VolumeRow
from tests.tasks.train.samples import World

SHAPE = (18, 24, 20)
ORIGIN = (5.0, -7.0, 11.0)


class Levels(nn.Module):
    """Class 1 where the image is about 1, class 2 where it is about 2; remembers how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.sharpness = 20.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        levels = torch.arange(3.0).view(1, 3, *[1] * (x.ndim - 2))
        return -self.sharpness * (x - levels) ** 2


def stores_at(home: Path) -> Stores:
    return Stores(
        Locations(
            home=home,
            database=f"sqlite:///{home / 'catalog.db'}",
            volumes=str(home / "volumes"),
            prepared=str(home / "prepared"),
            datasets=str(home / "datasets"),
            evaluations=str(home / "evaluations"),
            packages=str(home / "packages"),
            spool=home / "spool",
            tracking=f"sqlite:///{home / 'mlflow.db'}",
            secret=b"s" * 32,
            vault_key=b"v" * 32,
            workers=1,
        )
    )


def a_package(stores: Stores, world: World, name: str = "one", *, wrong: bool = False, **changes: object) -> PackageRef:
    """Published, with weights drawn from its name; `wrong` weights are another network's."""
    from models.networks import build

    torch.manual_seed(int(content_key(name)[:8], 16))
    plan = world.plan.network
    network = build(plan.model_copy(update={"features": (4, 4)}) if wrong else plan)
    key, dataset = content_key("package", name), content_key("dataset", name)
    with stores.packages.staging() as folder:
        values: dict[str, object] = {
            "key": key,
            "recipe": world.recipe,
            "plan": world.plan,
            "dataset": dataset,
            "weights_sha256": write_weights(folder, network.state_dict()),
            "training": TrainingRecord(
                steps=1,
                epochs=1,
                seconds=1.0,
                stopped_by="epochs",
                device="cpu",
                precision="fp32",
                batch_size=2,
                parameters=1,
                best_metric=0.5,
                best_step=1,
            ),
            "environment": Environment(nocturne="0", code="c", python="3", torch="2", platform="p"),
        }
        package = ModelPackage.model_validate(values | changes)
        write_package(folder, package)
        stores.packages.publish(folder, key)
    kind, classes = world.plan.kind, list(world.plan.classes)
    stores.catalog.add(
        DatasetRecord(dataset=package.dataset, name=world.recipe.name, kind=kind, classes=classes, counts={}),
        PackageRow(package=key, name=world.recipe.name, dataset=package.dataset, weights_sha256=package.weights_sha256),
    )
    return PackageRef.to(key)


def a_study(stores: Stores, study: str = "2.25.1") -> StudyVersionRef:
    """A version of a study, complete."""
    version = content_key("version", study)
    stores.catalog.add(
        StudyRow(study=study, patient="P-1"),
        StudyVersionRow(version=version, study=study, number=1, instances=[], why="quiet"),
    )
    return StudyVersionRef.to(version)


def a_volume(
    stores: Stores,
    array: NDArray[np.generic],
    geometry: Geometry | None = None,
    *,
    study: str = "2.25.1",
    series: str = "series",
    modality: str = "MR",
    patient: str = "P-1",
) -> VolumeRef:
    """Stored, with the rows of its study and series."""
    grid = geometry or Geometry.from_spacing(array.shape[-3:], (1.0, 1.0, 1.0), ORIGIN)
    key, uid = content_key("volume", study, series), f"2.25.{content_key(series)[:8]}"
    stores.volumes.write(key, Volume(array, grid, modality))
    (z, y, x), (dz, dy, dx) = grid.shape, grid.spacing
    stores.catalog.add(
        StudyRow(study=study, patient=patient),
        SeriesRow(series=content_key(series), series_uid=uid, study=study, patient=patient, modality=modality),
        VolumeRow(
            volume=key,
            series=content_key(series),
            series_uid=uid,
            study=study,
            patient=patient,
            modality=modality,
            unit="arbitrary",
            frame_of_reference=None,
            shape_z=z,
            shape_y=y,
            shape_x=x,
            spacing_z=dz,
            spacing_y=dy,
            spacing_x=dx,
            geometry=grid.to_json(),
            channels=1 if array.ndim == 3 else len(array),
            description=series,
        ),
    )
    return VolumeRef.to(key)


def scene(seed: int | None = None) -> NDArray[np.float32]:
    """A body of 1 with a core of 2 and an island, in nothing; with a `seed`, in noise."""
    image = np.zeros(SHAPE, np.float32)
    image[4:12, 6:18, 4:14] = 1
    image[6:10, 9:15, 6:12] = 2
    image[15:17, 2:5, 15:18] = 1
    if seed is not None:
        image += np.random.default_rng(seed).normal(0, 0.1, SHAPE).astype(np.float32)
    return image


def seen(volumes: Sequence[tuple[NDArray[np.generic], Geometry]], modality: str = "MR") -> Fingerprint:
    """What training would keep of these."""
    cases = tuple(
        CaseFacts(
            volume=f"v{number}",
            shape=geometry.shape,
            spacing=geometry.spacing,
            cropped_shape=geometry.shape,
            median=0.0,
            iqr=1.0,
            orientation=orientation(geometry),
            levels=channel_levels(array),
        )
        for number, (array, geometry) in enumerate(volumes)
    )
    return Fingerprint(dataset="d", modality=modality, cases=cases, intensities=(), crop_ratio=1.0)
