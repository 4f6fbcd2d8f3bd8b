"""De-identification by DICOM PS3.15 Annex E: a walk over every element at every depth.

An allow-list rather than a block-list: what neither the table nor a rule keeps (private, curve, overlay and unknown
elements, free text) goes. Numbers, codes, UIDs and dates stay only where their bytes are of that form, so that text
cannot hide in them. `tasks.ingest.confidentiality` says what becomes of which attribute.
"""

from __future__ import annotations

import copy
import math
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from models.errors import HeaderError, PrivacyError
from models.pseudonyms import Pseudonymizer
from tasks.ingest.confidentiality import KIND, PIXELS, Action, action_for, dictionary_vr, fallback, keyword
from tasks.ingest.dates import check_time, shift_date, shift_datetime, utc_offset
from tasks.ingest.descriptions import safe_description
from tasks.ingest.values import (
    PADDING,
    Element,
    UnreadableError,
    alternatives,
    capped_age,
    code_item,
    copied,
    decoded,
    dummy,
    held,
    is_code,
    is_number,
    plain,
    strings,
)

__all__ = ["IMPLEMENTATION_CLASS_UID", "Deidentifier", "patient_of", "safe_description", "to_attributes"]

IMPLEMENTATION_CLASS_UID = UID("2.25.27208286816217553086646884980031475819")
IMPLEMENTATION_VERSION = "NOCTURNE"
METHOD = (
    "PS3.15 2026c Basic Application Confidentiality Profile",
    "Modified dates; patient characteristics",
    "Nocturne",
)
CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
UNSURE_WITHOUT_BURNED_IN = frozenset({"US", "SC", "XA", "CR"})
"""Modalities (SC: the Secondary Capture classes) whose pixels often carry names."""

DEEPEST = 32
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NAMES = (
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "OtherPatientIDs",
    "PatientBirthName",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "RequestingPhysician",
)
_WORD = re.compile(r"[^\W_]+")
_SHORTEST_NAME = 3
_MAKERS = frozenset({"Manufacturer", "ManufacturerModelName"})
"""They stay even where a patient is called like one: a test object, most often."""
_CODED_TEXT = frozenset({"CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodingSchemeVersion"})
_UNBROKEN = re.compile(r"[^\s^=\\]{0,64}")


@dataclass(frozen=True, slots=True)
class _Patient:
    """What one instance's walk needs to know: the patient's days, the scanner's time zone, the names it gives away."""

    days: int
    local: timedelta | None
    names: frozenset[str]
    keep_pixels: bool


def patient_of(dataset: Dataset) -> str:
    """Whom an instance belongs to: its Patient ID or, where that is empty, its study (or series, or frame of
    reference) as a patient of its own.

    Issuer of Patient ID is left out: scanners of one hospital fill it in or not, and a list of labels has none.
    Raises HeaderError without any of them.
    """
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if told := plain(dataset, name):
            return told
    raise HeaderError("no Patient ID, nor any UID of a study or series", reason="no-patient-id")


def _names(dataset: Dataset) -> frozenset[str]:
    """The words by which this instance names people, in lower case: they go from text that else would stay."""
    told = " ".join(plain(dataset, name) for name in _NAMES)
    return frozenset(word for word in _WORD.findall(told.lower()) if len(word) >= _SHORTEST_NAME)


@dataclass(frozen=True, slots=True)
class Deidentifier:
    """De-identifies under one installation's secret.

    `allow_without_burned_in` names modalities of which instances are accepted that do not say whether their pixels
    show an identity.
    """

    pseudonymizer: Pseudonymizer
    allow_without_burned_in: frozenset[str] = field(default=frozenset(), kw_only=True)

    def check_burned_in(self, dataset: Dataset) -> None:
        """Raise PrivacyError where the pixels show an identity, or may and nobody has said that they do not."""
        said = plain(dataset, "BurnedInAnnotation").upper()
        if said == "YES":
            raise PrivacyError("Burned In Annotation is YES", reason="burned-in-annotation")
        if said == "NO":
            return
        sop_class = plain(dataset, "SOPClassUID")
        kinds = {plain(dataset, "Modality").upper()}
        if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(f"{_SECONDARY_CAPTURE}."):
            kinds.add("SC")
        if unsure := sorted((kinds & UNSURE_WITHOUT_BURNED_IN) - self.allow_without_burned_in):
            raise PrivacyError(
                f"{', '.join(unsure)} without Burned In Annotation",
                hint="where these images show no names, add the modality to allow_without_burned_in",
                reason="burned-in-unknown",
            )

    def deidentify(self, dataset: Dataset, *, keep_pixels: bool = False) -> Dataset:
        """A new data set free of identities, with file meta of its own; `dataset` stays as it was.

        Elements that cannot be read go with the rest.
        Raises HeaderError for a patient that cannot be told from others, sequences nested deeper than 32, or a
        transfer syntax that the standard does not know.
        """
        subject = patient_of(dataset)
        patient = _Patient(
            days=self.pseudonymizer.date_shift_days(subject),
            local=utc_offset(plain(dataset, "TimezoneOffsetFromUTC")),
            names=_names(dataset),
            keep_pixels=keep_pixels,
        )
        result = self._walk(dataset, patient, 0)
        result.SpecificCharacterSet = "ISO_IR 192"
        result.PatientID = result.PatientName = self.pseudonymizer.patient(subject)
        result.PatientIdentityRemoved = "YES"
        result.DeidentificationMethod = list(METHOD)
        result.DeidentificationMethodCodeSequence = [code_item(value, meaning) for value, meaning in CODES]
        result.LongitudinalTemporalInformationModified = "MODIFIED"
        result.file_meta = self._file_meta(dataset, result)
        return result

    def deidentify_file(self, source: Path, target: Path) -> None:
        """Write a whole Part 10 file, pixels included, with an empty preamble. `target` appears complete or not at all.

        Raises PrivacyError as `check_burned_in`, HeaderError for what is no Part 10 file or deflated.
        """
        try:
            meta = pydicom.filereader.read_file_meta_info(source)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise HeaderError("a deflated data set may unfold without bound", reason="unsupported-transfer-syntax")
            dataset = pydicom.dcmread(source)
        except (pydicom.errors.InvalidDicomError, EOFError, NotImplementedError, struct.error):
            raise HeaderError("no DICOM Part 10 file", reason="not-dicom") from None
        self.check_burned_in(dataset)
        result = self.deidentify(dataset, keep_pixels=True)
        if not (result.file_meta.MediaStorageSOPClassUID and result.file_meta.MediaStorageSOPInstanceUID):
            raise HeaderError("no SOP Class UID or SOP Instance UID", reason="no-uid")
        draft = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with draft.open("xb") as file:
                pydicom.dcmwrite(file, result, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _file_meta(self, source: Dataset, result: Dataset) -> FileMetaDataset:
        """Only what PS3.10 asks for. The old file meta tells only what the data set does not."""
        old: Dataset = getattr(source, "file_meta", None) or Dataset()
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\0\1"
        for name, own in (("MediaStorageSOPClassUID", "SOPClassUID"), ("MediaStorageSOPInstanceUID", "SOPInstanceUID")):
            told, kept = str(old.get(name) or "").strip(PADDING), result.get(own)
            if not isinstance(kept, str | None):
                raise HeaderError(f"{own} holds no single valid UID", reason="bad-uid")
            setattr(meta, name, UID(kept or (self.pseudonymizer.uid(told) if told else "")))
        meta.TransferSyntaxUID = _transfer_syntax(source)
        meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
        meta.ImplementationVersionName = IMPLEMENTATION_VERSION
        return meta

    def _walk(self, source: Dataset, patient: _Patient, depth: int) -> Dataset:
        if depth > DEEPEST:
            raise HeaderError(f"sequences nested deeper than {DEEPEST}", reason="nested-too-deep")
        result = Dataset()
        result.set_original_encoding(*source.original_encoding)
        for tag in sorted(source.keys()):
            action = action_for(int(tag))
            if action is Action.REMOVE:
                continue
            try:
                kept = self._treat(held(source, tag), action, source, patient, depth)
            except UnreadableError:
                continue
            if kept is not None:
                result[kept.tag] = kept
        return result

    def _treat(
        self, element: Element, action: Action, source: Dataset, patient: _Patient, depth: int
    ) -> Element | None:
        """The element as it may stay, or None."""
        tag = int(element.tag)
        vr = element.VR or dictionary_vr(tag) or ""
        if vr == "UN" or (vr == "SQ" and isinstance(element, RawDataElement)):
            element = decoded(source, tag)
            vr = element.VR
        expected = dictionary_vr(tag)
        if action is Action.KEEP:
            vr = vr.split(" or ")[0]
            fits = expected is None or KIND.get(vr) == KIND.get(expected) or vr in alternatives(tag)
            return self._keep(element, vr, source, patient, depth) if fits else None
        if action is Action.SHIFT:
            return _shifted(element, vr, source, patient)
        if action is Action.UID:
            return self._pseudonymous(element, self.pseudonymizer.uid, source, "UI")
        if action is Action.PATIENT:
            return self._pseudonymous(element, self.pseudonymizer.patient, source, "LO")
        if action is Action.WORDS:
            words = _words(element, expected or "LO", source, patient)
            return words or self._substitute(fallback(tag), element, source)
        return self._substitute(action, element, source)

    def _keep(self, element: Element, vr: str, source: Dataset, patient: _Patient, depth: int) -> Element | None:
        kind, tag = KIND.get(vr), int(element.tag)
        if kind == "sequence":
            items = cast("Iterable[Dataset]", element.value or ())
            return DataElement(tag, "SQ", [self._walk(item, patient, depth + 1) for item in items])
        if kind == "text":
            return _text(decoded(source, tag), patient)
        if kind == "age":
            return capped_age(element, source)
        if kind == "bulk":
            return copied(element) if tag not in PIXELS or (patient.keep_pixels and depth == 0) else None
        fits = is_number(element, vr) if kind == "number" else kind == "code" and is_code(element)
        return copied(element) if fits else None

    def _substitute(self, action: Action, element: Element, source: Dataset) -> Element | None:
        """The empty or dummy element, by the dictionary's value representation."""
        tag = int(element.tag)
        vr = dictionary_vr(tag)
        if action is Action.REMOVE or vr is None:
            return None
        if action is Action.EMPTY:
            return DataElement(tag, vr, [] if vr == "SQ" else None)
        if vr == "UI":
            return self._pseudonymous(element, self.pseudonymizer.uid, source, "UI")
        return DataElement(tag, vr, dummy(tag, vr))

    def _pseudonymous(self, element: Element, pseudonym: Callable[[str], str], source: Dataset, vr: str) -> DataElement:
        """Every value replaced; empty values stay empty."""
        return DataElement(int(element.tag), vr, [pseudonym(v) if v else "" for v in strings(element, source)] or None)


def _shifted(element: Element, vr: str, source: Dataset, patient: _Patient) -> DataElement | None:
    if vr == "DA":
        moved = [shift_date(v, patient.days) if v else "" for v in strings(element, source)]
    elif vr == "DT":
        moved = [shift_datetime(v, patient.days, patient.local) if v else "" for v in strings(element, source)]
    elif vr == "TM":
        moved = [check_time(v) if v else "" for v in strings(element, source)]
    else:
        return None
    return None if None in moved else DataElement(int(element.tag), vr, moved or None)


def _text(element: DataElement, patient: _Patient) -> DataElement | None:
    """What a device says about itself: whole or not at all."""
    told, name = str(element.value), keyword(int(element.tag))
    if name in _CODED_TEXT and _UNBROKEN.fullmatch(told) is None:
        return None
    if name not in _MAKERS and not patient.names.isdisjoint(_WORD.findall(told.lower())):
        return None
    return copy.copy(element)


def _words(element: Element, vr: str, source: Dataset, patient: _Patient) -> DataElement | None:
    values = [safe_description(value, without=patient.names) for value in strings(element, source)]
    return DataElement(int(element.tag), vr, values) if any(values) else None


def _transfer_syntax(dataset: Dataset) -> UID:
    """The one declared, or that of the elements where none is."""
    declared = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if not declared:
        return ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
    if not isinstance(declared, str) or UID(declared).type != "Transfer Syntax":
        raise HeaderError("a transfer syntax that the standard does not know", reason="unsupported-transfer-syntax")
    return UID(declared)


def to_attributes(dataset: Dataset) -> dict[str, Any]:
    """A de-identified data set in the DICOM JSON model (PS3.18 F.2), without bulk data.

    Numbers that JSON cannot tell (NaN, infinities) become null, values that cannot be read are left out. The result
    passes through `models.hashing.canonical`.
    """
    return dict(sorted(_json_elements(dataset)))


def _json_elements(dataset: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    for tag in dataset.keys():  # noqa: SIM118 - iterating over a data set decodes every element
        try:
            element = dataset[tag]
            kind = KIND.get(element.VR)
            if kind is None or kind == "bulk":
                continue
            if kind == "sequence":
                plain: dict[str, Any] = {"vr": "SQ", "Value": [to_attributes(item) for item in element.value]}
            else:
                plain = element.to_json_dict(None, 1024)
        except Exception:  # noqa: BLE001, S112 - as when it was walked: a value that cannot be read tells nothing
            continue
        if kind == "number" and "Value" in plain:
            plain["Value"] = [None if isinstance(v, float) and not math.isfinite(v) else v for v in plain["Value"]]
        yield f"{int(tag):08X}", plain
