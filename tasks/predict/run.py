"""One package on volumes: masks or classes, measured, kept with the package that said so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from models.errors import NotFoundError, NothingToDoError
from models.geometry import Geometry
from models.hashing import content_key
from models.package import ModelPackage
from models.refs import PackageRef, VolumeRef
from models.volume import Mask, Segment, Volume
from tasks.imaging.predictor import Predictor
from tasks.progress import stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.stores.tables import PredictionRow, VolumeRow


@dataclass(frozen=True, slots=True)
class Finding:
    """What the model said of one class: a structure's volume and mean confidence, or a class's probability."""

    class_name: str
    confidence: float
    volume_ml: float | None = None
    called: bool = False


def prediction_key(package: str, volume: str) -> str:
    """By package and volume: predicting again finds it done."""
    return content_key("prediction", package, volume)


def choose_volumes(stores: Stores, package: PackageRef, candidates: Sequence[VolumeRef]) -> tuple[VolumeRef, ...]:
    """Those of `candidates` that the package's own recipe would learn from. Raises NothingToDoError without one."""
    described = read_description(stores.packages.local(package.key))
    images = described.recipe.images
    rows = [stores.catalog.get(VolumeRow, ref.key) for ref in candidates]
    fitting = tuple(VolumeRef.to(row.volume) for row in rows if row and images.refusal(row) is None)
    if not fitting:
        seen = ", ".join(sorted({row.modality for row in rows if row})) or "none"
        raise NothingToDoError(
            f"no series fits the model: it wants {'/'.join(images.modality)}, these are {seen}",
            where=described.recipe.name,
            hint="see `images` in the model's recipe, and `nocturne status` for what is in quarantine",
        )
    return fitting


def predict_volumes(stores: Stores, package: PackageRef, volumes: Sequence[VolumeRef]) -> tuple[str, ...]:
    """Apply `package` to each volume, unless that was done; returns the predictions' keys."""
    keys = tuple(prediction_key(package.key, ref.key) for ref in volumes)
    waiting = [(ref, key) for ref, key in zip(volumes, keys, strict=True) if not stores.catalog.get(PredictionRow, key)]
    if not waiting:
        return keys
    described, weights = read_package(stores.packages.local(package.key))
    predictor = Predictor(described, weights)
    with stage("predict", len(waiting), "volumes") as running:
        for ref, key in waiting:
            _predict(stores, described, predictor, ref, key)
            running.advance()
    return keys


def findings(stores: Stores, prediction: str) -> tuple[Finding, ...]:
    """What a stored prediction says. Raises NotFoundError."""
    row = stores.catalog.get(PredictionRow, prediction)
    if row is None:
        raise NotFoundError("no such prediction", where=prediction)
    return tuple(Finding(**finding) for finding in row.result["findings"])


def export(stores: Stores, prediction: str, folder: Path) -> Path:
    """Write the prediction's mask beside others as NIfTI (uint8; 0 background, i + 1 the i-th class)."""
    mask = stores.volumes.open_mask(prediction).read()
    labels = np.zeros(mask.geometry.shape, np.uint8)
    for segment, plane in zip(mask.segments, mask.occupancy, strict=True):
        labels[plane > 127] = segment.number
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prediction}.nii.gz"
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), mask.geometry.to_nifti()), path)
    return path


def _predict(stores: Stores, package: ModelPackage, predictor: Predictor, ref: VolumeRef, key: str) -> None:
    volume = stores.volumes.open(ref.key).read()
    begun = time.monotonic()
    if package.plan.kind == "segmentation":
        found = _segment(stores, package, predictor, volume, key)
    else:
        found = _classify(package, predictor, volume)
    result: dict[str, Any] = {"findings": found}
    stores.catalog.add(
        PredictionRow(
            prediction=key, package=package.key, volume=ref.key, result=result, seconds=time.monotonic() - begun
        )
    )


def _segment(
    stores: Stores, package: ModelPackage, predictor: Predictor, volume: Volume, key: str
) -> list[dict[str, Any]]:
    found = predictor.segment(volume.array, volume.geometry)
    names = package.plan.classes
    stores.volumes.write_mask(key, _mask(found.labels, names, volume.geometry))
    millilitres = [
        float((found.labels == i + 1).sum()) * volume.geometry.voxel_volume / 1000 for i in range(len(names))
    ]
    return [
        {"class_name": name, "confidence": float(found.confidence[i]), "volume_ml": ml, "called": ml > 0}
        for i, (name, ml) in enumerate(zip(names, millilitres, strict=True))
    ]


def _classify(package: ModelPackage, predictor: Predictor, volume: Volume) -> list[dict[str, Any]]:
    probabilities = predictor.classify(volume.array, volume.geometry)
    called = called_class(probabilities, package)
    return [
        {"class_name": name, "confidence": float(p), "volume_ml": None, "called": i == called}
        for i, (name, p) in enumerate(zip(package.plan.classes, probabilities, strict=True))
    ]


def called_class(probabilities: NDArray[np.floating[Any]], package: ModelPackage) -> int:
    """The class that is called: the most probable, or for two classes by the package's threshold."""
    if len(package.plan.classes) != 2 or package.threshold is None:
        return int(np.argmax(probabilities))
    positive = package.recipe.evaluate.positive
    index = package.plan.classes.index(positive) if positive else 1
    return index if probabilities[index] >= package.threshold else 1 - index


def _mask(labels: NDArray[np.uint8], names: Sequence[str], geometry: Geometry) -> Mask:
    occupancy = np.stack([np.where(labels == i + 1, 255, 0).astype(np.uint8) for i in range(len(names))])
    return Mask(occupancy, tuple(Segment(i + 1, name) for i, name in enumerate(names)), geometry, "model")
