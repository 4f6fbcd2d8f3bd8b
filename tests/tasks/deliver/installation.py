"""A small installation with a study that was really ingested, and what a model said of it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from models.hashing import content_key
from models.package import PACKAGE_FILE, WEIGHTS_FILE
from models.recipe import Recipe
from models.refs import AnalysisRef
from models.volume import Mask, Segment
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.house import Locations, Stores
from tasks.stores.tables import AnalysisRow, DatasetRecord, PackageRow, PredictionRow, StudyVersionRow, VolumeRow
from tests.components import phantom_study
from tests.tasks.register.samples import a_package

MADE_AT = datetime(2026, 3, 30, 1, 30, 15, 123456, tzinfo=UTC)

Draw = Callable[[tuple[int, int, int]], NDArray[np.bool_]]

CODES = """
    [deliver.codes.liver]
    type = {value = "10200004", meaning = "Liver"}
    [deliver.codes.lesion]
    type = {value = "52988006", meaning = "Lesion"}
    category = {value = "49755003", meaning = "Morphologically Abnormal Structure"}
"""


def ball(z: float, y: float, x: float, radius: float) -> Draw:
    """A ball by its centre's place on each axis, from 0 to 1, and its radius as a share of the shortest axis."""

    def draw(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        grid = np.indices(shape).astype(float)
        centre = np.array([z, y, x]) * np.array(shape)
        away = (grid - centre[:, None, None, None]) ** 2 / np.array(shape)[:, None, None, None] ** 2
        return np.asarray(away.sum(axis=0) <= radius**2)

    return draw


def nowhere(shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.zeros(shape, np.bool_)


def stores_at(home: Path) -> Stores:
    """Stores of an installation whose secret and vault key are known."""
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


LIVER_AND_LESION: dict[str, Draw] = {"liver": ball(0.5, 0.5, 0.4, 0.3), "lesion": ball(0.5, 0.5, 0.85, 0.12)}


@cache
def _phantom(number: int, slices: int) -> tuple[Dataset, ...]:
    return tuple(phantom_study(number, slices=slices))


def write_study(folder: Path, number: int = 1, *, slices: int = 6, **elements: Any) -> list[Dataset]:
    """A CT series of a made-up patient as files; `elements` replace (or, as None, remove) those of every instance."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [copy.deepcopy(ds) for ds in _phantom(number, slices)]
    for place, ds in enumerate(written):
        for name, value in elements.items():
            if value is None:
                ds.pop(name, None)
            else:
                setattr(ds, name, value)
        ds.save_as(folder / f"{place}.dcm", enforce_file_format=True)
    return written


@dataclass(frozen=True)
class Installation:
    """Stores, and the verbs of what lies before delivery."""

    stores: Stores

    def ingest(self, *paths: Path, allow: frozenset[str] = frozenset()) -> list[VolumeRow]:
        """The volumes of every series below `paths`."""
        stores = self.stores
        rules = IngestRules(allow_without_burned_in=allow)
        ingestor = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, rules, workers=1)
        made = [
            ref.key for found in ingestor.scan([str(p) for p in paths]).series for ref in ingestor.ingest(found).volumes
        ]
        rows = {row.volume: row for row in stores.catalog.find(VolumeRow, VolumeRow.volume.in_(made))}
        return [rows[key] for key in made]

    def package(
        self,
        *,
        recipe: str = "",
        classes: Sequence[str] = ("liver", "lesion"),
        kind: str = "segmentation",
        several: bool = False,
    ) -> str:
        """A stored package with these classes; the weights are a few numbers."""
        home = self.stores.locations.home
        sample = a_package(home / "sample")
        source = 'source = "SEG"' if kind != "classification" else 'source = "CSV"\nname = "chest"'
        read = Recipe.parse(f'name = "liver"\nkind = "{kind}"\n[images]\nmodality = "CT"\n[labels]\n{source}\n{recipe}')
        told = {
            "kind": kind,
            "classes": tuple(classes),
            "recipe": read.key,
            "detection": read.detection,
            "several": several,
        }
        plan = sample.plan.model_copy(update=told)
        outputs = len(classes) + (plan.segments and not plan.regions)
        plan = plan.model_copy(update={"network": plan.network.model_copy(update={"out_channels": outputs})})
        key = content_key("package", read.key, list(classes))
        package = sample.model_copy(update={"key": key, "recipe": read, "plan": plan})
        with self.stores.packages.staging() as folder:
            shutil.copy(home / "sample" / WEIGHTS_FILE, folder)
            (folder / PACKAGE_FILE).write_text(package.model_dump_json())
            self.stores.packages.publish(folder, key)
        self.stores.catalog.add(
            DatasetRecord(dataset=package.dataset, name="liver", kind=kind, classes=list(classes), counts={}),
            PackageRow(
                package=key, name="liver", dataset=package.dataset, weights_sha256=package.weights_sha256, version="7"
            ),
        )
        return key

    def segment(
        self,
        package: str,
        volume: VolumeRow,
        structures: dict[str, Draw],
        *,
        confidence: float = 0.93,
        key: str | None = None,
    ) -> str:
        """A prediction with its mask, as the predict room stores it."""
        stored = self.stores.volumes.open(volume.volume)
        geometry = stored.geometry
        planes = [draw(geometry.shape) for draw in structures.values()]
        segments = tuple(Segment(n, name) for n, name in enumerate(structures, start=1))
        mask = Mask(np.stack(planes).astype(np.uint8) * np.uint8(255), segments, geometry, "model")
        key = key or content_key("prediction", package, volume.volume)
        self.stores.volumes.write_mask(key, mask)
        findings = [
            {
                "class_name": name,
                "confidence": confidence if plane.any() else 0.0,
                "volume_ml": float(plane.sum()) * geometry.voxel_volume / 1000,
                "called": bool(plane.any()),
            }
            for name, plane in zip(structures, planes, strict=True)
        ]
        row = PredictionRow(prediction=key, package=package, volume=volume.volume, result={"findings": findings})
        self.stores.catalog.add(row)
        return key

    def detect(self, package: str, volume: VolumeRow, lesions: dict[str, Draw], *, confidence: float = 0.8) -> str:
        """A prediction of lesions, each with its mask; none of `lesions` may mean that there is none."""
        key = self.segment(package, volume, lesions or {"lesion": nowhere}, confidence=confidence)
        row = self.stores.catalog.get(PredictionRow, key)
        assert row is not None
        findings = [
            finding | {"class_name": name, "number": int(number) if number else None}
            for finding in row.result["findings"]
            for name, _, number in [str(finding["class_name"]).partition(" ")]
        ]
        self.stores.catalog.change(PredictionRow, PredictionRow.prediction == key, result={"findings": findings})
        return key

    def classify(
        self, package: str, volume: VolumeRow, probabilities: dict[str, float], *, threshold: float | None = None
    ) -> str:
        """A prediction of classes: the likeliest is called, or all from `threshold` on."""
        least = max(probabilities.values()) if threshold is None else threshold
        findings = [
            {"class_name": name, "confidence": p, "volume_ml": None, "called": p >= least}
            for name, p in probabilities.items()
        ]
        key = content_key("prediction", package, volume.volume)
        row = PredictionRow(prediction=key, package=package, volume=volume.volume, result={"findings": findings})
        self.stores.catalog.add(row)
        return key

    def analysis(
        self, package: str, predictions: Sequence[str], study: str, *, role: str = "champion", version: str = "1"
    ) -> AnalysisRef:
        """What the analyse room would have written."""
        held = content_key("version", study, version)
        key = content_key("analysis", held, package, role)
        self.stores.catalog.add(
            StudyVersionRow(version=held, study=study, number=1, instances=[], why="quiet"),
            AnalysisRow(
                analysis=key,
                version=held,
                study=study,
                package=package,
                name="liver",
                model_version="7",
                role=role,
                predictions=list(predictions),
                created_at=MADE_AT,
            ),
        )
        return AnalysisRef.to(key)

    def row(self, analysis: AnalysisRef) -> AnalysisRow:
        found = self.stores.catalog.get(AnalysisRow, analysis.key)
        assert found is not None
        return found

    def analysed(self, *paths: Path, structures: dict[str, Draw] | None = None, recipe: str = CODES) -> AnalysisRef:
        """Ingest, and say of every volume that these structures are in it."""
        drawn = structures or LIVER_AND_LESION
        volumes = self.ingest(*paths)
        package = self.package(recipe=recipe, classes=tuple(drawn))
        predictions = [self.segment(package, volume, drawn) for volume in volumes]
        return self.analysis(package, predictions, volumes[0].study)
