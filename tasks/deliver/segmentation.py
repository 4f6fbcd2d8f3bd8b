"""DICOM Segmentation (PS3.3 A.51) of one volume's mask: BINARY, a frame for each slice of each structure.

highdicom is shown the slices as single images, whatever they were, and the references are then put right: so one way
serves single-frame series, enhanced multi-frame ones of which the volume is a part, mosaics, and flat images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from models.volume import Mask
from tasks.deliver.content import MANUFACTURER, Said, Subject, blank_person, concept, finish

_INSIDE: Final = 127
_COLOURS: Final = (
    *((62.0, 58.0, 44.0), (72.0, -48.0, 48.0), (58.0, 6.0, -50.0), (84.0, 4.0, 78.0), (60.0, 74.0, -42.0)),
    *((78.0, -42.0, -12.0), (68.0, 34.0, 66.0), (52.0, 34.0, -60.0), (88.0, -30.0, 62.0), (74.0, 36.0, 4.0)),
)
"""Recommended display colours, L* a* b*, told apart on grey."""


def segmentation(subject: Subject, mask: Mask) -> Dataset | None:
    """The structures that were found, or None where there is none."""
    planes = structures(subject.said, mask)
    if not planes:
        return None
    marked = np.flatnonzero(np.any([plane.any(axis=(1, 2)) for _, plane in planes], axis=0))
    flat = subject.origin.frame_of_reference is None and len(subject.origin.slices) == 1
    sources = _stand_ins(subject, marked, mask.geometry.shape[1:], flat=flat)
    ds = Segmentation(
        source_images=sources,
        pixel_array=_labels(planes, marked),
        segmentation_type="BINARY",
        segment_descriptions=[_described(subject, number, said) for number, (said, _) in enumerate(planes, start=1)],
        content_label=_content_label(subject.maker.model),
        content_description=subject.maker.title,
        content_creator_name=f"{MANUFACTURER}^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        **subject.header("seg"),
    )
    if flat:
        ds.PatientOrientation = subject.origin.traits.get("PatientOrientation", "")
    _refer(ds, subject, {str(source.SOPInstanceUID): int(z) for source, z in zip(sources, marked, strict=True)})
    _place_dimensions(ds, subject.uid("seg-dimensions"))
    return finish(ds, subject)


def structures(said: Sequence[Said], mask: Mask) -> list[tuple[Said, NDArray[np.bool_]]]:
    """The structures to be told, each with where it is; without a voxel there is none."""
    planes = {segment.name: plane for segment, plane in zip(mask.segments, mask.occupancy, strict=True)}
    found = [(s, planes[s.class_name] > _INSIDE) for s in said if s.found and s.class_name in planes]
    return [(s, plane) for s, plane in found if plane.any()]


def tracking(subject: Subject, said: Said) -> tuple[str, str]:
    """Tracking identifier and UID of a structure: the same in segmentation and report."""
    return f"{subject.maker.title}: {said.label}"[:64], subject.uid("tracking", said.class_name)


def _labels(planes: Sequence[tuple[Said, NDArray[np.bool_]]], marked: NDArray[np.intp]) -> NDArray[np.uint8]:
    """(z, y, x) of segment numbers; (z, y, x, segment) where structures overlap, or are more than numbers."""
    parts = [plane[marked] for _, plane in planes]
    labels = np.zeros(parts[0].shape, np.uint8)
    if len(parts) > np.iinfo(np.uint8).max:
        return np.stack(parts, axis=-1).astype(np.uint8)
    for number, part in enumerate(parts, start=1):
        if labels[part].any():
            return np.stack(parts, axis=-1).astype(np.uint8)
        labels[part] = number
    return labels


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


def _stand_ins(subject: Subject, marked: NDArray[np.intp], size: tuple[int, int], *, flat: bool) -> list[Dataset]:
    """A single image for each marked slice; their UIDs only tell the slices apart until `_refer` has the real ones."""
    origin, made = subject.origin, []
    for z in marked:
        ds = Dataset()
        ds.SOPClassUID = ComputedRadiographyImageStorage if flat else CTImageStorage
        ds.SOPInstanceUID = f"2.25.{int(z) + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = origin.study_uid, origin.series_uid, origin.modality
        ds.Rows, ds.Columns = size
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
