"""What a prediction says of each class, measured in the patient; and the mask as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry, Triple
from models.package import ModelPackage
from models.volume import Mask, Segment, inside
from tasks.imaging.detection import Lesions
from tasks.imaging.detector import believed_from
from tasks.imaging.masks import Box, boxes


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
    labels: NDArray[np.uint8],
    geometry: Geometry,
    names: Sequence[str],
    confidence: Sequence[float],
    *,
    regions: bool = False,
) -> tuple[Finding, ...]:
    """One finding per class of a label map or region map (z, y, x), as `tasks.imaging.masks` describes them."""
    found = []
    for index, box in enumerate(boxes(labels, len(names), regions=regions)):
        sure = float(confidence[index])
        if box is None:
            found.append(Finding(names[index], sure, volume_ml=0.0, voxels=0))
        else:
            found.append(_structure(inside(labels[box], index, regions=regions), geometry, names[index], sure, box))
    return tuple(found)


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
    """One finding per class of a classified image; one of them is called, or of several each that is there."""
    called = called_classes(probabilities, package)
    return tuple(
        Finding(name, float(p), called=i in called)
        for i, (name, p) in enumerate(zip(package.plan.classes, probabilities, strict=True))
    )


def called_classes(probabilities: NDArray[np.floating[Any]], package: ModelPackage) -> frozenset[int]:
    """The classes that are called: one, or each of several that reaches its own threshold (0.5 without one)."""
    if not package.plan.several:
        return frozenset({called_class(probabilities, package)})
    thresholds = package.thresholds or (0.5,) * len(package.plan.classes)
    return frozenset(i for i, (p, t) in enumerate(zip(probabilities, thresholds, strict=True)) if p >= t)


def threshold_used(package: ModelPackage) -> float | None:
    """The probability from which a binary model calls its positive class, or a lesion is told; None where the
    likeliest class is called.
    """
    if package.plan.kind == "detection":
        return believed_from(package)
    two = package.plan.kind == "classification" and len(package.plan.classes) == 2 and not package.plan.several
    return package.threshold if two else None


def called_class(probabilities: NDArray[np.floating[Any]], package: ModelPackage) -> int:
    """The class that is called: the most probable, or for two classes by the package's threshold."""
    threshold = threshold_used(package)
    if threshold is None:
        return int(np.argmax(probabilities))
    names, positive = package.plan.classes, package.recipe.evaluate.positive
    index = names.index(positive) if positive in names else 1
    return index if probabilities[index] >= threshold else 1 - index


def as_mask(
    labels: NDArray[np.unsignedinteger[Any]], names: Sequence[str], geometry: Geometry, *, regions: bool = False
) -> Mask:
    """The label map or region map as the volume store writes it, without a copy per class."""
    occupancy = cast("NDArray[np.uint8]", Occupancy(labels, len(names), regions=regions))
    return Mask(occupancy, tuple(Segment(i + 1, name) for i, name in enumerate(names)), geometry, "model")


class Occupancy:
    """A label map or region map seen as (class, z, y, x) uint8, 255 where the class is: made where it is looked at.

    A long scan with a hundred structures would take a hundred times its label map otherwise.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, labels: NDArray[np.unsignedinteger[Any]], count: int, *, regions: bool = False) -> None:
        self.labels, self.count, self.regions = labels, count, regions
        self.shape = (count, *labels.shape)

    def astype(self, dtype: Any, *, copy: bool = True) -> Occupancy | NDArray[Any]:
        """Itself, unless another type is wanted."""
        return self if np.dtype(dtype) == self.dtype else np.asarray(self).astype(dtype, copy=copy)

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> NDArray[np.uint8]:
        part = self.labels[index[1:]]
        wanted = range(*index[0].indices(self.count))
        planes = np.empty((len(wanted), *part.shape), np.uint8)
        for plane, number in zip(planes, wanted, strict=True):
            np.multiply(inside(part, number, regions=self.regions), np.uint8(255), out=plane)
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


def _structure(there: NDArray[np.bool_], geometry: Geometry, name: str, confidence: float, box: Box) -> Finding:
    """`there` in its box."""
    voxels = int(np.count_nonzero(there))
    middle = [
        part.start + float(np.arange(n) @ there.sum(axis=tuple(a for a in range(3) if a != axis))) / voxels
        for axis, (part, n) in enumerate(zip(box, there.shape, strict=True))
    ]
    return Finding(
        class_name=name,
        confidence=confidence,
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
