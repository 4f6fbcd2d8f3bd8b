"""What ingest writes down of a series: catalog rows under pseudonyms, and identities for the vault alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement

from models.clinical import CHARACTERISTICS, CONTRAST, SITE
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.series import ScannedSeries, Source
from models.volume import Volume
from tasks.ingest.scan import Problem
from tasks.ingest.stack import Refused, Slice, Stack
from tasks.ingest.values import UnreadableError, decoded, strings
from tasks.stores.tables import QuarantineRow, VolumeRow

STAGE: Final = "ingest"
_IDENTITY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "ReferringPhysicianName",
    "IssuerOfPatientID",
)
_CHARACTER_SET: Final = re.compile(r"[A-Za-z0-9_ ]{0,16}")
_TELL_CONTRAST: Final = frozenset({"CT", "MR", "XA", "RF"})
"""Their images have to name a contrast medium that was given (PS3.3 A.3, A.4, A.14, A.16)."""
_NO_CONTRAST: Final = frozenset({"", "no", "none", "n", "n/a", "na", "0", "-", "no contrast", "without", "unenhanced"})
"""What stands in the place of an agent where none was given."""


@dataclass(frozen=True, slots=True)
class Names:
    """A series by its pseudonyms."""

    patient: str
    study: str
    series: str
    modality: str


def problem_row(problem: Problem) -> QuarantineRow:
    """The quarantine entry of a file that belongs to no series, by the digest of its bytes."""
    subject = problem.digest[:32] if len(problem.digest) == 64 else problem.digest
    return QuarantineRow(
        entry=content_key(subject, problem.error.reason),
        stage=STAGE,
        subject=subject,
        reason=problem.error.reason,
        what=problem.error.what,
        hint=problem.error.hint or "",
        instances=1,
    )


def names_of(series: ScannedSeries, pseudonymizer: Pseudonymizer) -> Names:
    """The pseudonyms under which a series is known."""
    first = series.instances[0]
    return Names(
        # As the de-identifier does: without a Patient ID the study stands for its patient.
        patient=pseudonymizer.patient(first.patient_id or series.study_uid),
        study=pseudonymizer.uid(series.study_uid),
        series=pseudonymizer.uid(series.series_uid),
        modality=series.modality,
    )


def refused_row(names: Names, refused: Refused, digests: Mapping[Source, str]) -> QuarantineRow:
    """The quarantine entry of slices that form no image. Its subject is the series' pseudonym: a series that is
    completed later has other digests, and resolves it.
    """
    error, parts = refused.error, sorted({digests[s.header.source] for s in refused.slices})
    return QuarantineRow(
        entry=content_key(names.series, error.reason, parts),
        stage=STAGE,
        subject=names.series,
        reason=error.reason,
        what=error.what,
        patient=names.patient,
        study=names.study,
        modality=names.modality,
        hint=error.hint or "",
        instances=len(parts),
    )


def circumstances(dataset: Any, pseudonymizer: Pseudonymizer) -> dict[str, str]:
    """Of an original header, what de-identification takes away and test cases are told apart by: the site, by its
    pseudonym, and whether contrast medium was given, of images that would say so.
    """
    found = {}
    if institution := _plain(dataset, "InstitutionName"):
        found[SITE] = pseudonymizer.site(institution)
    if _plain(dataset, "Modality").upper() in _TELL_CONTRAST:
        told = _plain(dataset, "ContrastBolusAgent").casefold()
        given = told not in _NO_CONTRAST or _items(dataset, "ContrastBolusAgentSequence") > 0
        found[CONTRAST] = "with" if given else "without"
    return found


def _plain(dataset: Any, name: str) -> str:
    """An element's text, "" where it is absent or cannot be read."""
    element = _element(dataset, name)
    try:
        return "\\".join(strings(element, dataset)).strip() if element is not None else ""
    except UnreadableError:
        return ""


def _items(dataset: Any, name: str) -> int:
    """Of a sequence, 0 where it is absent or cannot be read."""
    element = _element(dataset, name)
    return len(element.value or ()) if element is not None and element.VR == "SQ" else 0


def _element(dataset: Any, name: str) -> DataElement | None:
    """Decoded beside the data set, which stays as it is."""
    tag = tag_for_keyword(name)
    try:
        return decoded(dataset, tag) if tag is not None and tag in dataset else None
    except UnreadableError:
        return None


def volume_row(
    volume_key: str, series: str, names: Names, volume: Volume, clean: Any, stack: Stack, known: Mapping[str, str]
) -> VolumeRow:
    """The catalog's row of one volume. `known` are its `circumstances`."""
    geometry = volume.geometry
    (z, y, x), (dz, dy, dx) = geometry.shape, geometry.spacing
    kept = {name: text for name in CHARACTERISTICS if (text := str(clean.get(name) or "").strip())}
    return VolumeRow(
        volume=volume_key,
        series=series,
        series_uid=names.series,
        study=names.study,
        patient=names.patient,
        modality=volume.modality,
        unit=volume.unit,
        frame_of_reference=geometry.frame_of_reference,
        shape_z=z,
        shape_y=y,
        shape_x=x,
        spacing_z=dz,
        spacing_y=dy,
        spacing_x=dx,
        geometry=geometry.to_json(),
        channels=volume.channels,
        description=str(clean.get("SeriesDescription") or ""),
        manufacturer=str(clean.get("Manufacturer") or ""),
        model_name=str(clean.get("ManufacturerModelName") or ""),
        slice_thickness=stack.slices[0].plane.thickness,
        notes=list(volume.notes),
        characteristics=kept | dict(known),
    )


def places_of(slices: Sequence[Slice]) -> dict[str, Any]:
    """Which instance and frame (from 1, as DICOM counts) each slice came from."""
    return {
        "instances": [s.header.sop_uid for s in slices],
        "frames": [s.plane.frame + 1 for s in slices],
    }


def identities(series: ScannedSeries, dataset: Any, volumes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What sends results home: original identifiers, and per volume its instances in slice order."""
    first = series.instances[0]
    return {
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "modality": series.modality,
        "sop_class": first.sop_class,
        "frame_of_reference": first.frame_of_reference,
        "identity": {name: _told(dataset, name) for name in _IDENTITY},
        "character_set": _character_set(dataset),
        "volumes": volumes,
        "sources": {h.sop_uid: [h.source.path, h.source.member] for h in series.instances},
    }


def _told(dataset: Any, name: str) -> str:
    """An element's value as it goes home, "" where it is absent or cannot be read."""
    try:
        return str(dataset.get(name) or "")
    except Exception:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        return ""


def _character_set(dataset: Any) -> str:
    """One name, the repr of several, or "" where they are none."""
    names = _plain(dataset, "SpecificCharacterSet").split("\\")
    if not all(map(_CHARACTER_SET.fullmatch, names)):
        return ""
    return names[0] if len(names) == 1 else repr(names)
