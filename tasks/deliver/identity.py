"""Whose image it was: the identity that a result goes back under, and the instances that it refers to.

The original headers say it where they still lie in the spool; else the vault's record, which ingest sealed. What is
read here lives in memory alone, and leaves only inside the objects that are sent.
"""

from __future__ import annotations

import ast
import copy
import logging
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from models.errors import NotFoundError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from tasks.stores.house import Stores
from tasks.stores.tables import VolumeRow

# They quote the values that they stumble over, and those may be identities.
for _talker in ("pydicom", "highdicom", "pynetdicom", "dicomweb_client"):
    logging.getLogger(_talker).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom\.")

ORIGINALS: Final = "series"
"""Kind of the vault's records of ingested series."""
UTF8: Final = "ISO_IR 192"
_PATIENT: Final = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence"),
    *("PatientBirthDate", "PatientBirthTime", "PatientSex", "OtherPatientNames", "OtherPatientIDsSequence"),
    *("EthnicGroup", "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription"),
    *("PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("ResponsibleOrganization", "QualityControlSubject", "PatientAge", "PatientSize", "PatientWeight"),
)
_STUDY: Final = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyID"),
    *("StudyDescription", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence"),
    *("ProcedureCodeSequence", "TimezoneOffsetFromUTC"),
)
_TRIAL: Final = (
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
)
_MUST_BE_THERE: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
_TRAITS: Final = (
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PatientOrientation"),
)
_PLACE: Final = ("SOPInstanceUID", "SOPClassUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_AGE: Final = re.compile(r"\d{3}[DWMY]")
_NEAR: Final = 0.1  # of the smallest spacing, by which a header's position may lie beside the volume's grid


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one slice of a volume came from: an instance and, in a multi-frame one, the frame (from 1)."""

    sop_class: str
    instance: str
    frame: int | None


@dataclass(frozen=True, slots=True)
class Grid:
    """The slices' place as the originals give it: unit vectors, (row, column) spacing, first pixels' centres, mm."""

    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    positions: tuple[tuple[float, ...], ...]
    between: float | None
    thickness: float


@dataclass(frozen=True, slots=True)
class Origin:
    """One source series under its own names.

    `person` holds the patient's and the study's elements, `traits` some of the first image's.
    """

    study_uid: str
    series_uid: str
    modality: str
    frame_of_reference: str | None
    slices: tuple[Slice, ...]
    grid: Grid
    person: Dataset = field(repr=False)
    traits: Mapping[str, Any] = field(repr=False)

    @property
    def instances(self) -> tuple[tuple[str, str], ...]:
        """(SOP class, SOP instance) of every instance, once."""
        return tuple(dict.fromkeys((s.sop_class, s.instance) for s in self.slices))

    def local(self, moment: datetime) -> datetime:
        """`moment` in the time of the study's own clock, or of this machine where the study does not say."""
        offset = str(self.person.get("TimezoneOffsetFromUTC") or "").strip()
        try:
            return moment.astimezone(datetime.strptime(offset, "%z").tzinfo)
        except ValueError:
            return moment.astimezone()

    def sign(self, ds: Dataset, texts: Iterable[str]) -> None:
        """Put the patient's and the study's elements into `ds`, in the original character set.

        Where `texts`, our own words in it, need more than that set may hold, everything is written in UTF-8.
        """
        for name in (*_PATIENT, *_STUDY, *_TRIAL):
            if name in ds:
                del ds[name]
        for element in self.person:
            ds[element.tag] = copy.deepcopy(element)
        if not all(text.isascii() for text in texts):
            ds.SpecificCharacterSet = UTF8
        elif "SpecificCharacterSet" not in self.person and "SpecificCharacterSet" in ds:
            del ds.SpecificCharacterSet
        for name in _MUST_BE_THERE:
            if name not in ds:
                setattr(ds, name, "")
        ds.StudyInstanceUID = self.study_uid


def origin_of(stores: Stores, volume: VolumeRow) -> Origin:
    """What a volume was made of. Raises NotFoundError where the vault does not know it."""
    record = stores.vault.get(ORIGINALS, volume.series)
    places = record["volumes"].get(volume.volume)
    if places is None:
        raise NotFoundError("the vault does not know this volume's instances", where=volume.volume)
    headers = _headers(record, places["instances"])
    first = next(iter(headers.values()), None)
    slices = _slices(record, places, headers)
    geometry = Geometry.from_json(volume.geometry)
    return Origin(
        study_uid=record["study_uid"],
        series_uid=record["series_uid"],
        modality=record["modality"],
        frame_of_reference=_frame_of_reference(stores.pseudonymizer, volume, record, first),
        slices=slices,
        grid=_grid(geometry, volume.slice_thickness, slices, headers),
        person=_person(record, first),
        traits={name: first[name].value for name in _TRAITS if name in first} if first is not None else {},
    )


# -- headers ------------------------------------------------------------------------------------------------------


def _headers(record: Mapping[str, Any], instances: Sequence[str]) -> dict[str, Dataset]:
    """The instances' headers by their UID, the first one whole; none at all where one is no longer there."""
    found: dict[str, Dataset] = {}
    for uid in dict.fromkeys(instances):
        path, member = record["sources"].get(uid, (None, None))
        if path is None or member is not None:
            return {}
        header = _read(path, whole=not found)
        if header is None or str(header.get("SOPInstanceUID") or "").strip() != uid:
            return {}
        found[uid] = header
    return found


def _read(path: str, *, whole: bool) -> Dataset | None:
    try:
        return pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=None if whole else [*_PLACE, "NumberOfFrames"]
        )
    except Exception:  # noqa: BLE001 - pydicom raises whatever a broken file leads to; the vault's record stands in
        return None


def _slices(record: Mapping[str, Any], places: Mapping[str, Any], headers: Mapping[str, Dataset]) -> tuple[Slice, ...]:
    instances, frames = places["instances"], places["frames"]
    repeated = len(set(instances)) < len(instances) or max(frames) > 1
    slices = []
    for uid, frame in zip(instances, frames, strict=True):
        header = headers.get(uid)
        sop_class = str((header.get("SOPClassUID") if header is not None else "") or record["sop_class"])
        # Tiles of Siemens' mosaics count as frames in ingest; to the standard their image has but one.
        several = int(header.get("NumberOfFrames") or 1) > 1 if header is not None else sop_class != MRImageStorage
        slices.append(Slice(sop_class, uid, int(frame) if repeated and several else None))
    return tuple(slices)


def _frame_of_reference(
    pseudonymizer: Pseudonymizer, volume: VolumeRow, record: Mapping[str, Any], header: Dataset | None
) -> str | None:
    """The original Frame of Reference UID, by its pseudonym; instances of one series may differ in it."""
    if volume.frame_of_reference is None:
        return None
    for told in (record["frame_of_reference"], header.get("FrameOfReferenceUID") if header is not None else None):
        if told and pseudonymizer.uid(str(told)) == volume.frame_of_reference:
            return str(told).strip(" \0")
    raise NotFoundError("its frame of reference is not in the vault", where=volume.volume)


def _grid(geometry: Geometry, thickness: float | None, slices: Sequence[Slice], headers: Mapping[str, Dataset]) -> Grid:
    orientation, spacing, positions = geometry.to_dicom()
    step = geometry.matrix[:3, 0]
    between = round(abs(float(np.dot(step, geometry.normal))), 6) if geometry.shape[0] > 1 else None
    ours = Grid(
        tuple(orientation), tuple(spacing), tuple(tuple(p) for p in positions), between, thickness or between or 1.0
    )
    if len(headers) != len(slices):
        return ours
    # The digits of the originals rather than ours: some viewers compare them.
    try:
        first = headers[slices[0].instance]
        theirs = replace(
            ours,
            orientation=_numbers(first.ImageOrientationPatient, 6),
            spacing=_numbers(first.PixelSpacing, 2),
            positions=tuple(_numbers(headers[s.instance].ImagePositionPatient, 3) for s in slices),
        )
    except (AttributeError, TypeError, ValueError):
        return ours
    return theirs if _near(ours, theirs, min(geometry.spacing)) else ours


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers, not {count}")
    return numbers


def _near(ours: Grid, theirs: Grid, spacing: float) -> bool:
    return bool(
        np.allclose(ours.orientation, theirs.orientation, atol=1e-3)
        and np.allclose(ours.spacing, theirs.spacing, rtol=1e-3)
        and np.abs(np.subtract(ours.positions, theirs.positions)).max() <= _NEAR * spacing
    )


# -- the person ---------------------------------------------------------------------------------------------------


def _person(record: Mapping[str, Any], header: Dataset | None) -> Dataset:
    """The patient's and the study's elements: the header's, or else the vault's."""
    person = Dataset()
    if header is not None:
        for name in ("SpecificCharacterSet", *_PATIENT, *_STUDY, *_TRIAL):
            _copy(header, person, name)
    elif record["character_set"]:
        person.SpecificCharacterSet = _character_set(record["character_set"])
    for name, value in record["identity"].items():
        if name not in person and value:
            setattr(person, name, value)
    # Names and numbers go home as they came, but nobody is found by a malformed age or by an empty character set.
    if "PatientAge" in person and not _AGE.fullmatch(str(person.PatientAge or "")):
        del person.PatientAge
    if "SpecificCharacterSet" in person and not person.SpecificCharacterSet:
        del person.SpecificCharacterSet
    return person


def _copy(header: Dataset, person: Dataset, name: str) -> None:
    if name not in header:
        return
    try:
        person[name] = copy.deepcopy(header[name])
    except Exception:  # noqa: BLE001 - pydicom raises whatever a broken value leads to; it goes home empty
        person.pop(name, None)


def _character_set(told: str) -> str | list[str]:
    """As ingest wrote it down: one name, or the repr of several."""
    if not told.startswith("["):
        return told
    return [str(name) for name in ast.literal_eval(told)]
