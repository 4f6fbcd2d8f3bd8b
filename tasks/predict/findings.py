"""What a prediction says of each class, measured in the patient; and the mask as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.geometry import Geometry, Triple
from models.package import ModelPackage
from models.volume import Mask, Segment
from tasks.imaging.detection import Lesions
from tasks.imaging.detector import believed_from


@dataclass(frozen=True, slots=True)
class Finding:
    """What the model said of one class: a structure's size, place and mean confidence, or a class's probability; or
    of one lesion, which has a `number`, from 1 for the surest of the image.

    `centroid_mm` is (x, y, z) LPS, `bounds_mm` the lowest and the highest corner of the box round the structure.
    """

    class_name: str
    confidence: float
    volume_ml: float | None = None
    called: bool = False
    voxels: int | None = None
    centroid_mm: Triple | None = None
    bounds_mm: tuple[Triple, Triple] | None = None
    number: int | None = None

    @property
    def name(self) -> str:
        """The class's, with the lesion's number: as its segment is called."""
        return self.class_name if self.number is None else f"{self.class_name} {self.number}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; what an older prediction does not tell stays None."""
        values = dict(data)
        if values.get("centroid_mm") is not None:
            values["centroid_mm"] = tuple(values["centroid_mm"])
        if values.get("bounds_mm") is not None:
            values["bounds_mm"] = tuple(tuple(corner) for corner in values["bounds_mm"])
        return cls(**values)


def structures(
    labels: NDArray[np.uint8], geometry: Geometry, names: Sequence[str], confidence: Sequence[float]
) -> tuple[Finding, ...]:
    """One finding per class of a label map (z, y, x): 0 background, i + 1 the i-th name."""
    boxes = ndimage.find_objects(labels, max_label=len(names))
    return tuple(
        _structure(labels, geometry, value, name, sure, box)
        for value, (name, sure, box) in enumerate(zip(names, confidence, boxes, strict=True), 1)
    )


def lesions(found: Lesions, geometry: Geometry, names: Sequence[str]) -> tuple[Finding, ...]:
    """One finding for each lesion, the surest first; one that says so for each class that has none.

    A box tells no volume: the lesion fills only part of it.
    """
    measured = tuple(_lesion(found, index, geometry, names) for index in range(len(found)))
    absent = [name for index, name in enumerate(names) if not len(found.of_class(index))]
    return (*measured, *(Finding(name, 0.0, volume_ml=0.0, voxels=0) for name in absent))


def lesion_mask(found: Lesions, geometry: Geometry, names: Sequence[str]) -> Mask:
    """A segment for each lesion, called as its finding is; boxes as such. Without a lesion one a class, empty."""
    called = [finding.name for finding in lesions(found, geometry, names)][: len(found)] or list(names)
    return as_mask(found.drawn(geometry.shape), called, geometry)


def classes(probabilities: NDArray[np.floating[Any]], package: ModelPackage) -> tuple[Finding, ...]:
    """One finding per class of a classified image; one of them is called."""
    called = called_class(probabilities, package)
    return tuple(
        Finding(name, float(p), called=i == called)
        for i, (name, p) in enumerate(zip(package.plan.classes, probabilities, strict=True))
    )


def threshold_used(package: ModelPackage) -> float | None:
    """The probability from which a binary model calls its positive class, or a lesion is told; None where the
    likeliest class is called.
    """
    if package.plan.kind == "detection":
        return believed_from(package)
    two = package.plan.kind == "classification" and len(package.plan.classes) == 2
    return package.threshold if two else None


def called_class(probabilities: NDArray[np.floating[Any]], package: ModelPackage) -> int:
    """The class that is called: the most probable, or for two classes by the package's threshold."""
    threshold = threshold_used(package)
    if threshold is None:
        return int(np.argmax(probabilities))
    names, positive = package.plan.classes, package.recipe.evaluate.positive
    index = names.index(positive) if positive in names else 1
    return index if probabilities[index] >= threshold else 1 - index


def as_mask(labels: NDArray[np.unsignedinteger[Any]], names: Sequence[str], geometry: Geometry) -> Mask:
    """The label map as the volume store writes it, without a copy per class."""
    occupancy = cast("NDArray[np.uint8]", Occupancy(labels, len(names)))
    return Mask(occupancy, tuple(Segment(i + 1, name) for i, name in enumerate(names)), geometry, "model")


class Occupancy:
    """A label map seen as (class, z, y, x) uint8, 255 where the class is: made where it is looked at.

    A long scan with a hundred structures would take a hundred times its label map otherwise.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, labels: NDArray[np.unsignedinteger[Any]], count: int) -> None:
        self.labels, self.count = labels, count
        self.shape = (count, *labels.shape)

    def astype(self, dtype: Any, *, copy: bool = True) -> Occupancy | NDArray[Any]:
        """Itself, unless another type is wanted."""
        return self if np.dtype(dtype) == self.dtype else np.asarray(self).astype(dtype, copy=copy)

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> NDArray[np.uint8]:
        part = self.labels[index[1:]]
        wanted = range(*index[0].indices(self.count))
        planes = np.empty((len(wanted), *part.shape), np.uint8)
        for plane, value in zip(planes, wanted, strict=True):
            np.multiply(part == value + 1, np.uint8(255), out=plane)
        return planes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[(slice(None),) * 4].astype(dtype or self.dtype, copy=False)


def _lesion(found: Lesions, index: int, geometry: Geometry, names: Sequence[str]) -> Finding:
    box = found.boxes[index]
    known = found.numbered is not None
    return Finding(
        class_name=names[int(found.classes[index])],
        confidence=float(found.confidence[index]),
        volume_ml=float(found.sizes[index]) * geometry.voxel_volume / 1000 if known else None,
        called=True,
        voxels=int(found.sizes[index]) if known else None,
        centroid_mm=_point(geometry.to_world(found.centres[index] - 0.5)),
        bounds_mm=_bounds(geometry, list(zip(box[:3], box[3:], strict=True))),
        number=index + 1,
    )


def _structure(
    labels: NDArray[np.uint8],
    geometry: Geometry,
    value: int,
    name: str,
    confidence: float,
    box: tuple[slice, slice, slice] | None,
) -> Finding:
    if box is None:
        return Finding(name, float(confidence), volume_ml=0.0, voxels=0)
    inside = labels[box] == value
    voxels = int(np.count_nonzero(inside))
    middle = [
        part.start + float(np.arange(n) @ inside.sum(axis=tuple(a for a in range(3) if a != axis))) / voxels
        for axis, (part, n) in enumerate(zip(box, inside.shape, strict=True))
    ]
    return Finding(
        class_name=name,
        confidence=float(confidence),
        volume_ml=voxels * geometry.voxel_volume / 1000,
        called=True,
        voxels=voxels,
        centroid_mm=_point(geometry.to_world(middle)),
        bounds_mm=_bounds(geometry, [(s.start, s.stop) for s in box]),
    )


def _bounds(geometry: Geometry, box: Sequence[tuple[float, float]]) -> tuple[Triple, Triple]:
    """Of a box of whole or parted voxels, by their outer borders, along the patient's axes."""
    corners = np.array(np.meshgrid(*[(low - 0.5, high - 0.5) for low, high in box], indexing="ij")).reshape(3, -1).T
    world = geometry.to_world(corners)
    return _point(world.min(axis=0)), _point(world.max(axis=0))


def _point(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
