"""The image itself, once it is free of identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import GeometryError
from models.geometry import Geometry

MaskSource = Literal["SEG", "RTSTRUCT", "NIfTI", "model"]
Unit = Literal["HU", "SUVbw", "BQML", "CNTS", "stored", "arbitrary", "colour"]


@dataclass(frozen=True, slots=True)
class Volume:
    """Voxels with their place and meaning.

    `array` is (z, y, x), or (c, z, y, x) for colour; values are in `unit` (slope and intercept applied).
    `attributes` is the de-identified header in the DICOM JSON model (PS3.18 F.2), `instances` the pseudonymous
    SOP Instance UIDs in slice order (one for multi-frame), `notes` what a reader should know (a gantry tilt, a
    PET series left in stored units).
    """

    array: NDArray[Any]
    geometry: Geometry
    modality: str
    unit: Unit = "arbitrary"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    instances: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or self.array.shape[-3:] != self.geometry.shape:
            raise GeometryError(
                f"the array's shape {self.array.shape} does not end in the grid's {self.geometry.shape}"
            )

    @property
    def channels(self) -> int:
        """1 for (z, y, x), c for (c, z, y, x)."""
        return 1 if self.array.ndim == 3 else int(self.array.shape[0])


@dataclass(frozen=True, slots=True)
class Segment:
    """One structure in a mask: its number in the source, its (safe) name, and its code (scheme:value) if coded."""

    number: int
    name: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """Structures on an image's grid; they may overlap.

    `occupancy` is (segment, z, y, x) uint8: 0 outside, 255 inside, between them a fraction.
    """

    occupancy: NDArray[np.uint8]
    segments: tuple[Segment, ...]
    geometry: Geometry
    source: MaskSource
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.occupancy.shape != (len(self.segments), *self.geometry.shape):
            raise GeometryError(
                f"a mask of {len(self.segments)} segments on {self.geometry.shape} cannot be {self.occupancy.shape}"
            )


def inside(labels: NDArray[np.uint8], index: int, *, regions: bool) -> NDArray[np.bool_]:
    """Where the class `index` (from 0) is, in a label map or a region map (`tasks.imaging.masks`) of any shape."""
    return (labels & np.uint8(1 << index)) > 0 if regions else labels == index + 1
