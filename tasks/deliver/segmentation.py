"""DICOM Segmentation (PS3.3 A.51) of one volume's mask: BINARY, a frame for each slice of each structure.

highdicom is shown the slices as single images, whatever they were, and the references are then put right: so one way
serves single-frame series, enhanced multi-frame ones of which the volume is a part, mosaics, and flat images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from models.geometry import Geometry
from tasks.deliver.content import MANUFACTURER, Said, Subject, blank_person, concept, finish
from tasks.stores.volumes import StoredMask

_INSIDE: Final = 127
_COLOURS: Final = (
    *((62.0, 58.0, 44.0), (72.0, -48.0, 48.0), (58.0, 6.0, -50.0), (84.0, 4.0, 78.0), (60.0, 74.0, -42.0)),
    *((78.0, -42.0, -12.0), (68.0, 34.0, 66.0), (52.0, 34.0, -60.0), (88.0, -30.0, 62.0), (74.0, 36.0, 4.0)),
)
"""Recommended display colours, L* a* b*, told apart on grey."""


@dataclass(frozen=True, slots=True)
class Structures:
    """What was found in a volume: `labels` (slice, y, x) count `said` from 1, or (slice, y, x, structure) are 0 and 1
    where structures overlap. `marked` are the slices of the volume that have any.
    """

    said: tuple[Said, ...]
    marked: NDArray[np.intp]
    labels: NDArray[np.unsignedinteger[Any]]
    geometry: Geometry

    def inside(self, number: int, place: int) -> NDArray[np.bool_]:
        """Structure `number` (from 0) on the marked slice at `place`."""
        slice_ = self.labels[place]
        return np.asarray(slice_ == number + 1 if slice_.ndim == 2 else slice_[..., number] > 0)


def structures(said: Sequence[Said], mask: StoredMask) -> Structures | None:
    """The structures to be told; without a voxel inside there is none. Read one by one: a model may know a hundred."""
    places = {segment.name: place for place, segment in enumerate(mask.segments)}
    wanted = [(s, places[s.name]) for s in said if s.found and s.name in places]
    labels = np.zeros(mask.geometry.shape, np.uint8 if len(wanted) < 256 else np.uint16)
    found: list[tuple[Said, int]] = []
    overlap = False
    for one, place in wanted:
        inside = _inside(mask, place)
        if inside.any():
            overlap |= bool(labels[inside].any())
            found.append((one, place))
            labels[inside] = len(found)
    if not found:
        return None
    marked = np.flatnonzero(labels.max(axis=(1, 2)))
    drawn = labels[marked]
    if overlap:
        drawn = np.stack([_inside(mask, place)[marked] for _, place in found], axis=-1).astype(np.uint8)
    return Structures(tuple(one for one, _ in found), marked, drawn, mask.geometry)


def segmentation(subject: Subject, found: Structures) -> Dataset:
    """The structures as one object."""
    flat = subject.origin.frame_of_reference is None and len(subject.origin.slices) == 1
    sources = _stand_ins(subject, found, flat=flat)
    ds = Segmentation(
        source_images=sources,
        pixel_array=found.labels,
        segmentation_type="BINARY",
        segment_descriptions=[_described(subject, number, said) for number, said in enumerate(found.said, start=1)],
        content_label=_content_label(subject.maker.model),
        content_description=subject.maker.title,
        content_creator_name=f"{MANUFACTURER}^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        **subject.header("seg"),
    )
    if flat:
        ds.PatientOrientation = subject.origin.traits.get("PatientOrientation", "")
    _refer(ds, subject, {str(source.SOPInstanceUID): int(z) for source, z in zip(sources, found.marked, strict=True)})
    _place_dimensions(ds, subject.uid("seg-dimensions"))
    return finish(ds, subject)


def tracking(subject: Subject, said: Said) -> tuple[str, str]:
    """Tracking identifier and UID of a structure or lesion: the same in segmentation and report."""
    # The lesion's number is at the end: the model's name rather is cut short.
    title = subject.maker.title[: max(0, 62 - len(said.label))]
    return f"{title}: {said.label}"[:64], subject.uid("tracking", said.name)


def _inside(mask: StoredMask, place: int) -> NDArray[np.bool_]:
    return np.asarray(mask.read_segment(place) > _INSIDE)


def _described(subject: Subject, number: int, said: Said) -> SegmentDescription:
    identifier, uid = tracking(subject, said)
    return SegmentDescription(
        segment_number=number,
        segment_label=said.label,
        segmented_property_category=concept(said.tissue.category),
        segmented_property_type=concept(said.tissue.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=subject.maker.model, family=codes.DCM.ArtificialIntelligence, version=subject.maker.version
        ),
        tracking_uid=uid,
        tracking_id=identifier,
        display_color=CIELabColor(*_COLOURS[(number - 1) % len(_COLOURS)]),
    )


def _stand_ins(subject: Subject, found: Structures, *, flat: bool) -> list[Dataset]:
    """A single image for each marked slice; their UIDs only tell the slices apart until `_refer` has the real ones."""
    origin, made = subject.origin, []
    for z in found.marked:
        ds = Dataset()
        ds.SOPClassUID = ComputedRadiographyImageStorage if flat else CTImageStorage
        ds.SOPInstanceUID = f"2.25.{int(z) + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = origin.study_uid, origin.series_uid, origin.modality
        ds.Rows, ds.Columns = found.geometry.shape[1:]
        for name, value in {**blank_person(), **origin.traits}.items():
            setattr(ds, name, value)
        if not flat:
            # A stack without one is in space all the same; its segmentation says so under a name of its own.
            ds.FrameOfReferenceUID = origin.frame_of_reference or subject.uid("seg-frame")
            ds.PositionReferenceIndicator = ""
            ds.ImagePositionPatient = [_decimal(v) for v in origin.grid.positions[z]]
            ds.ImageOrientationPatient = [_decimal(v) for v in origin.grid.orientation]
            # Told here, because the marked slices alone may lie further apart.
            if origin.grid.between is not None:
                ds.SpacingBetweenSlices = _decimal(origin.grid.between)
        ds.PixelSpacing = [_decimal(v) for v in origin.grid.spacing]
        ds.SliceThickness = _decimal(origin.grid.thickness)
        made.append(ds)
    return made


def _decimal(value: float) -> DSfloat:
    return DSfloat(value, auto_format=True)


def _refer(ds: Dataset, subject: Subject, slices: dict[str, int]) -> None:
    """Put the source instances' own names in place of the stand-ins'."""
    origin = subject.origin
    for frame in ds.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence", ()):
            for item in derivation.SourceImageSequence:
                if (z := slices.get(str(item.ReferencedSOPInstanceUID))) is None:
                    continue  # highdicom shares the item between a slice's structures
                source = origin.slices[z]
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.sop_class, source.instance
                if source.frame is not None:
                    item.ReferencedFrameNumber = source.frame
    instances = [_reference(*names) for names in origin.instances]
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = origin.series_uid, instances
    ds.ReferencedSeriesSequence = [series]
    ds.SourceImageSequence = [_reference(*names) for names in origin.instances]


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def _place_dimensions(ds: Dataset, uid: str) -> None:
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid


def _content_label(model: str) -> str:
    """A code string of at most 16 signs."""
    return "".join(sign if sign.isalnum() else "_" for sign in model.upper())[:16]
