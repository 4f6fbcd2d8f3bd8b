"""Structured report by TID 1500 (PS3.16): measurements of structures, probabilities of classes, and what is absent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from tasks.deliver.content import MANUFACTURER, SCHEME, UNFAMILIAR, Said, Subject, blank_person, concept, finish
from tasks.deliver.segmentation import Structures, tracking

_PROJECTIONS: Final = frozenset({"CR", "DX", "RF", "XA", "MG", "US", "OT", "SC"})
"""Modalities whose flat images have no volume: a pixel's depth is made up."""


def report(
    subject: Subject,
    segmentation: Dataset | None,
    *,
    structures: bool,
    boxes: Structures | None = None,
    several: bool = False,
) -> Dataset:
    """What was found in one volume; `structures`: by segmentation or as `boxes`, else as classes of the whole image.

    Of these one is present, or with `several` each by itself present or absent.
    """
    groups = _structures(subject, segmentation, boxes) if structures else _classes(subject, several=several)
    groups = groups or [_nothing(subject)]
    if not subject.familiar:
        groups.append(_unfamiliar(subject))
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                observer_type=codes.DCM.Device,
                observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                    uid=subject.uid("device"),
                    name=MANUFACTURER,
                    manufacturer_name=MANUFACTURER,
                    model_name=subject.maker.model,
                    serial_number=subject.maker.package,
                ),
            )
        ),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
    )
    ds = ComprehensiveSR(
        evidence=_evidence(subject, segmentation),
        content=content,
        is_complete=True,
        is_final=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(SCHEME, name="Classes of Nocturne's recipes", responsible_organization="-")
        ],
        **subject.header("sr"),
    )
    ds.CurrentRequestedProcedureEvidenceSequence = [_references(subject, segmentation)]
    return finish(ds, subject)


# -- groups -------------------------------------------------------------------------------------------------------


def _structures(subject: Subject, segmentation: Dataset | None, boxes: Structures | None) -> list[Any]:
    numbers: dict[str, int] = {}
    if segmentation is not None:
        numbers = {str(item.TrackingUID): int(item.SegmentNumber) for item in segmentation.SegmentSequence}
    boxed = {} if boxes is None else {said: place for place, said in enumerate(boxes.said)}
    groups: list[Any] = []
    for said in subject.said:
        if boxes is not None and said in boxed:
            groups.append(_boxed(subject, said, boxes, boxed[said]))
            continue
        number = numbers.get(tracking(subject, said)[1])
        if number is not None and segmentation is not None:
            groups.append(_structure(subject, said, segmentation, number))
        elif not said.called or said.reported:
            groups.append(_group(subject, said, evaluations=[_presence(codes.SCT.Absent)]))
    return groups


def _structure(subject: Subject, said: Said, segmentation: Dataset, number: int) -> Any:
    # Of a lesion the highest of its voxels', of a structure their mean.
    derivation = codes.SCT.Mean if said.number is None else codes.SCT.Maximum
    measured = [_probability(said, derivation=derivation)]
    if said.volume_ml is not None and subject.origin.modality not in _PROJECTIONS:
        milliliter = CodedConcept("mL", "UCUM", "mL")
        measured.insert(0, Measurement(name=codes.SCT.Volume, value=_rounded(said.volume_ml), unit=milliliter))
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=SourceSeriesForSegmentation(subject.origin.series_uid),
        ),
        finding_category=concept(said.tissue.category),
        measurements=measured,
        **_about(subject, said),
    )


def _boxed(subject: Subject, said: Said, boxes: Structures, place: int) -> Any:
    """A lesion by its box: a rectangle on each slice that it reaches, where slices are images of their own."""
    regions = _rectangles(subject, boxes, place)
    if not regions:
        return _group(subject, said, measurements=[_probability(said)], evaluations=[_presence(codes.SCT.Present)])
    whole: dict[str, Any] = {"finding_category": concept(said.tissue.category), "measurements": [_probability(said)]}
    whole |= _about(subject, said)
    if len(subject.origin.slices) == 1:
        return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=regions[0], **whole)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_regions=regions, **whole)


def _rectangles(subject: Subject, boxes: Structures, place: int) -> list[ImageRegion]:
    """In pixels from the corner of an image's first one (PS3.3 C.18.6.1.1); none for tiles of one large image."""
    slices = subject.origin.slices
    if len(set(slices)) < len(slices):
        return []
    made = []
    for at, z in enumerate(boxes.marked):
        rows, columns = np.nonzero(boxes.inside(place, at))
        if not len(rows):
            continue
        (top, bottom), (left, right) = ((line.min(), line.max() + 1) for line in (rows, columns))
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        part = slices[z]
        source = SourceImageForRegion(part.sop_class, part.instance, None if part.frame is None else [part.frame])
        made.append(ImageRegion("POLYLINE", np.array(corners, dtype=float), source))
    return made


def _classes(subject: Subject, *, several: bool) -> list[Any]:
    """A group for each class with its probability; the called ones', the first, say that they are present.

    Of several that are each asked for, those that were not called are absent; what was called without being sure
    enough is not spoken of.
    """
    if not several and not any(said.found for said in subject.said):
        return []
    told = [said for said in subject.said if said.found or not (several and said.called)]
    absent = [_presence(codes.SCT.Absent)] if several else []
    return [
        _group(
            subject,
            said,
            measurements=[_probability(said)],
            evaluations=[_presence(codes.SCT.Present)] if said.found else absent,
        )
        for said in sorted(told, key=lambda said: not said.found)
    ]


def _nothing(subject: Subject) -> Any:
    """What stands in a report where every finding was below the recipe's confidence."""
    return _of_image(subject, "image", _presence(codes.DCM.PresenceUndetermined))


def _unfamiliar(subject: Subject) -> Any:
    """A warning to whoever reads the figures: the model was not made for images like this one."""
    return _of_image(subject, "warning", _presence(codes.SCT.Present), concept(UNFAMILIAR))


def _of_image(
    subject: Subject, what: str, evaluation: QualitativeEvaluation, finding: CodedConcept | None = None
) -> Any:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(subject.uid("tracking-of", what), f"{subject.maker.title}: {what}"[:64]),
        finding_type=finding,
        algorithm_id=_algorithm(subject),
        qualitative_evaluations=[evaluation],
        source_images=_sources(subject),
    )


def _group(
    subject: Subject, said: Said, *, measurements: Sequence[Any] = (), evaluations: Sequence[Any] = ()
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        measurements=measurements or None,
        qualitative_evaluations=evaluations or None,
        source_images=_sources(subject),
        **_about(subject, said),
    )


def _about(subject: Subject, said: Said) -> dict[str, Any]:
    identifier, uid = tracking(subject, said)
    return {
        "tracking_identifier": TrackingIdentifier(uid, identifier),
        "finding_type": said.concept,
        "algorithm_id": _algorithm(subject),
    }


def _algorithm(subject: Subject) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=subject.maker.model,
        version=subject.maker.version,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _presence(value: Any) -> QualitativeEvaluation:
    return QualitativeEvaluation(codes.DCM.PresenceOfProperty, value)


def _probability(said: Said, derivation: Any = None) -> Measurement:
    value = _rounded(said.confidence)
    return Measurement(name=codes.DCM.Probability, value=value, unit=codes.UCUM.NoUnits, derivation=derivation)


def _rounded(value: float) -> float:
    """Six significant digits: a decimal string holds 16 signs."""
    return float(f"{value:.6g}")


def _sources(subject: Subject) -> list[SourceImageForMeasurementGroup]:
    """The images that a group speaks of: every instance, with the frames where only some are meant."""
    return [
        SourceImageForMeasurementGroup(sop_class, instance, frames or None)
        for (sop_class, instance), frames in _frames(subject).items()
    ]


def _frames(subject: Subject) -> dict[tuple[str, str], list[int]]:
    frames: dict[tuple[str, str], list[int]] = {names: [] for names in subject.origin.instances}
    for part in subject.origin.slices:
        if part.frame is not None:
            frames[part.sop_class, part.instance].append(part.frame)
    return frames


# -- evidence -----------------------------------------------------------------------------------------------------


def _evidence(subject: Subject, segmentation: Dataset | None) -> list[Dataset]:
    """All that the content refers to, in the form that highdicom asks for; `_references` says what they really are."""
    made = []
    for _, instance in subject.origin.instances:
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, instance
        ds.StudyInstanceUID, ds.SeriesInstanceUID = subject.origin.study_uid, subject.origin.series_uid
        for name, value in blank_person().items():
            setattr(ds, name, value)
        made.append(ds)
    return [*made, segmentation] if segmentation is not None else made


def _references(subject: Subject, segmentation: Dataset | None) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = subject.origin.study_uid
    study.ReferencedSeriesSequence = [_series(subject.origin.series_uid, subject.origin.instances)]
    if segmentation is not None:
        itself = (str(segmentation.SOPClassUID), str(segmentation.SOPInstanceUID))
        study.ReferencedSeriesSequence.append(_series(str(segmentation.SeriesInstanceUID), [itself]))
    return study


def _series(uid: str, instances: Iterable[tuple[str, str]]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = uid, []
    for sop_class, instance in instances:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        series.ReferencedSOPSequence.append(item)
    return series
