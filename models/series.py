"""What a scan knows of instances before any pixel is read.

These values hold identities. They live in memory and sealed in the vault, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

Numbers = tuple[float, ...]

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED_LITTLE, EXPLICIT_BIG})

MARKS = ("image_type", "echo", "diffusion", "temporal", "contrast", "trigger", "acquisition", "instance")
"""What may tell apart planes that lie at one place, the most meaningful first; `Plane.marks` follows this order."""

Kind = Literal["image", "SEG", "RTSTRUCT"]
SpacingKind = Literal["", "PixelSpacing", "ImagerPixelSpacing"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an instance's bytes are: a file, or a member of an archive file."""

    path: str
    member: str | None = None


@dataclass(frozen=True, slots=True)
class Plane:
    """One frame of an instance: its place, its scale, and what tells it from others at the same place.

    `position` (x, y, z) LPS mm of the first pixel's centre, `orientation` the two unit vectors, `spacing` (row, column)
    mm. Empty tuples and None mean that the header does not say.
    """

    frame: int
    position: Numbers = ()
    orientation: Numbers = ()
    spacing: Numbers = ()
    thickness: float | None = None
    between: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    marks: tuple[str, ...] = ("",) * len(MARKS)

    def to_json(self) -> list[Any]:
        """The fields' values in order."""
        return [getattr(self, name) for name in _PLANE]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        """The inverse of `to_json`."""
        values: list[Any] = [tuple(v) if isinstance(v, list) else v for v in data]
        return cls(*values)


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """One instance: who, what, how its pixels are stored and where its planes lie.

    `pixel_length` is None for encapsulated pixels; `pixel_offset` counts from the file's start (of a deflated
    instance: from the start of the inflated bytes). `mosaic` counts the slices that Siemens laid out side by side in
    one image, 0 for any other, and `planes` has one for each of them. `flaw` tells what is wrong with the header,
    `flaw_reason` its code: such an instance belongs to its series, and keeps it out.
    """

    source: Source
    size: int
    modified: int
    transfer_syntax: str
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    modality: str
    image_type: str
    burned_in: str
    frame_of_reference: str
    instance_number: int | None
    acquired: str
    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    planar_configuration: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    has_pixels: bool
    pixel_offset: int
    pixel_length: int | None
    pixel_vr: str
    spacing_kind: SpacingKind
    rescale_type: str
    modality_lut: bool
    mosaic: int
    planes: tuple[Plane, ...]
    flaw: str = ""
    flaw_reason: str = ""

    @property
    def encapsulated(self) -> bool:
        """Whether the pixels are fragments of a compressed stream."""
        return self.transfer_syntax not in NATIVE_SYNTAXES

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, uncompressed. YBR_FULL_422 shares chroma between two pixels (PS3.3 C.7.6.3.1.2)."""
        samples = 2 if self.photometric == "YBR_FULL_422" and not self.encapsulated else self.samples_per_pixel
        return self.rows * self.columns * samples * self.bits_allocated // 8

    @property
    def tiles(self) -> int:
        """Tiles of a mosaic along each side; 1 for any other image."""
        return math.isqrt(max(0, self.mosaic - 1)) + 1

    @property
    def plane_rows(self) -> int:
        """Rows of one plane: of a tile in a mosaic."""
        return self.rows // self.tiles

    @property
    def plane_columns(self) -> int:
        """Columns of one plane: of a tile in a mosaic."""
        return self.columns // self.tiles

    def to_json(self) -> list[Any]:
        """The fields' values in order."""
        values = [getattr(self, name) for name in _HEADER]
        values[0] = [self.source.path, self.source.member]
        values[_PLANES] = [plane.to_json() for plane in self.planes]
        return values

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        """The inverse of `to_json`."""
        values = list(data)
        values[0] = Source(*values[0])
        values[_PLANES] = tuple(Plane.from_json(plane) for plane in values[_PLANES])
        return cls(*values)


@dataclass(frozen=True, slots=True)
class ScannedSeries:
    """One series as a scan found it: `key` is pseudonymous, everything else is not."""

    key: str
    kind: Kind
    modality: str
    study_uid: str
    series_uid: str
    instances: tuple[InstanceHeader, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, for the vault alone."""
        return {
            "key": self.key,
            "kind": self.kind,
            "modality": self.modality,
            "study_uid": self.study_uid,
            "series_uid": self.series_uid,
            "instances": [header.to_json() for header in self.instances],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        instances = tuple(InstanceHeader.from_json(header) for header in data["instances"])
        return cls(**{**data, "instances": instances})


_PLANE = tuple(field.name for field in fields(Plane))
_HEADER = tuple(field.name for field in fields(InstanceHeader))
_PLANES = _HEADER.index("planes")
