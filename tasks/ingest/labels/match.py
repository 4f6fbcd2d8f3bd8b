"""Which volume a label belongs to.

The series that it names, where that is in the catalog; else, of the volumes of its study (failing those, of its
patient) in its frame of reference, the one whose grid it fits best. A label in no frame of reference needs its series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement

from models.errors import LabelError
from models.geometry import Geometry
from tasks.ingest.labels.parts import Fit, PlacedLabel
from tasks.stores.catalog import Catalog
from tasks.stores.tables import VolumeRow


@dataclass(frozen=True, slots=True)
class Match:
    """The volume that a label is put on, and why if that is not obvious."""

    volume: VolumeRow
    notes: tuple[str, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The volume's grid."""
        return Geometry.from_json(self.volume.geometry)


def find_volume(label: PlacedLabel, catalog: Catalog) -> Match:
    """The volume of `label`. Raises LabelError: `no-image`, `frame-of-reference-mismatch`, `patient-mismatch`."""
    belonging = label.belonging
    named = list(catalog.find(VolumeRow, VolumeRow.series_uid.in_(belonging.series))) if belonging.series else []
    if named:
        # A patient whose ID was corrected between the image and the label must not be joined by a UID alone.
        ours = [volume for volume in named if volume.patient == belonging.patient]
        if not ours:
            raise LabelError("the image that it names is another patient's", reason="patient-mismatch")
        return Match(_best(label, _sharing(label, ours)))
    if not belonging.frames:
        raise _no_image("it has no frame of reference, and the series that it names is not in the catalog")
    for where, condition in _scopes(label):
        if volumes := _in_frame(label, catalog.find(VolumeRow, condition)):
            said = "names no series" if not belonging.series else "names a series that is not in the catalog"
            return Match(_best(label, volumes), (f"it {said}: placed on the best fitting image of its {where}",))
    _refuse(label, catalog)
    raise _no_image("no image of its patient is in the catalog")


def _no_image(what: str) -> LabelError:
    return LabelError(what, reason="no-image", hint="ingest the label again once its image is there")


def _scopes(label: PlacedLabel) -> Sequence[tuple[str, ColumnElement[bool]]]:
    patient = VolumeRow.patient == label.belonging.patient
    return ("study", (VolumeRow.study == label.belonging.study) & patient), ("patient", patient)


def _in_frame(label: PlacedLabel, volumes: Sequence[VolumeRow]) -> list[VolumeRow]:
    return [volume for volume in volumes if volume.frame_of_reference in label.belonging.frames]


def _sharing(label: PlacedLabel, volumes: Sequence[VolumeRow]) -> list[VolumeRow]:
    """Those in the label's frame of reference; of a label that names none, those whose very voxels it lies on."""
    if label.belonging.frames:
        within = _in_frame(label, volumes)
    else:
        within = [volume for volume in volumes if label.fit(Geometry.from_json(volume.geometry)).same_voxels]
    if within:
        return within
    raise LabelError(
        "it lies in another frame of reference than the image that it names",
        reason="frame-of-reference-mismatch",
        hint="export it on that image, or register the two",
    )


def _refuse(label: PlacedLabel, catalog: Catalog) -> None:
    """Tell a label whose images are all there, in other frames, from one whose image is yet to come."""
    if not label.belonging.series and catalog.count(VolumeRow, VolumeRow.study == label.belonging.study):
        raise LabelError(
            "no image of its study lies in its frame of reference",
            reason="frame-of-reference-mismatch",
            hint="export it on an image of the study, or register the two",
        )


def _best(label: PlacedLabel, volumes: Sequence[VolumeRow]) -> VolumeRow:
    """The best fit; of equal ones the finest grid, then the newest, then by key."""

    def rank(volume: VolumeRow) -> tuple[Fit, float, float, str]:
        geometry = Geometry.from_json(volume.geometry)
        return label.fit(geometry), -geometry.voxel_volume, volume.created_at.timestamp(), volume.volume

    return max(volumes, key=rank)
