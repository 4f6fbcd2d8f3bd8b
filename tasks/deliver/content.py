"""What is told of one volume, by whom, and under which names: what every kind of object is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any, Final, Literal

import pydicom
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.recipe import Code, Coded, Deliver
from tasks.deliver.identity import Origin

Kind = Literal["seg", "sr", "sc"]

MANUFACTURER: Final = "Nocturne"
SCHEME: Final = "99NOCTURNE"
"""Coding scheme of classes that the recipe gives no code."""
UNFAMILIAR: Final = Code(value="UNFAMILIAR", scheme=SCHEME, meaning="Image unlike those that the model was trained on")
SERIES_NUMBERS: Final[Mapping[Kind, int]] = {"seg": 9001, "sr": 9002, "sc": 9003}
_TISSUE: Final = Coded(type=Code(value="85756007", meaning="Tissue"))
_LO: Final = 64


@dataclass(frozen=True, slots=True)
class Names:
    """UIDs of results: functions of study version, package, kind and source, so that a repeat is the same object."""

    pseudonymizer: Pseudonymizer = field(repr=False)
    version: str
    package: str

    def uid(self, what: str, source: str, *more: object) -> str:
        """The UID of `what` (a kind of object, its series, …) made of the volume `source`."""
        # No slash or blank can be in a key, and no original UID has this form: the names are of their own kind.
        return self.pseudonymizer.uid("/".join(("result", self.version, self.package, what, source, *map(str, more))))


@dataclass(frozen=True, slots=True)
class Maker:
    """The model that said it, and when."""

    model: str
    version: str
    package: str
    made_at: datetime

    @property
    def title(self) -> str:
        """Model and version, as a series description."""
        return f"{self.model} {self.version}"[:_LO]


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said of one class, or of one lesion of it, which has a `number`.

    `code` is the recipe's, if it has one; `reported` that it is sure enough.
    """

    class_name: str
    confidence: float
    called: bool
    volume_ml: float | None = None
    code: Coded | None = None
    reported: bool = True
    number: int | None = None

    @property
    def name(self) -> str:
        """As its segment is called in the stored mask."""
        return self.class_name if self.number is None else f"{self.class_name} {self.number}"

    @property
    def found(self) -> bool:
        """Called, and sure enough to be told."""
        return self.called and self.reported

    @property
    def label(self) -> str:
        """Its name as DICOM text (LO), with the lesion's number."""
        number = "" if self.number is None else f" {self.number}"
        return self.class_name.replace("\\", "/")[: _LO - len(number)] + number

    @property
    def tissue(self) -> Coded:
        """The recipe's code, or that it is some tissue."""
        return self.code or _TISSUE

    @property
    def concept(self) -> CodedConcept:
        """The recipe's code, or one of our own that stands for the class's name."""
        if self.code is not None:
            return concept(self.code.type)
        meaning = self.class_name.replace("\\", "/")[:_LO]
        return CodedConcept(content_key("class", self.class_name)[:12], SCHEME, meaning)


@dataclass(frozen=True, slots=True)
class Subject:
    """One volume and all that is told of it. `place` counts the analysis's volumes from 0."""

    volume: str
    place: int
    origin: Origin = field(repr=False)
    names: Names
    maker: Maker
    said: tuple[Said, ...]
    familiar: bool = True  # the image is like those that the model was trained on, as far as that was looked at

    @property
    def texts(self) -> tuple[str, ...]:
        """Our own words in the objects."""
        told = [s.code for s in self.said if s.code]
        meanings = [code.meaning for coded in told for code in (coded.type, coded.category)]
        return (self.maker.title, *(s.label for s in self.said), *meanings)

    def uid(self, what: str, *more: object) -> str:
        """One of the results' UIDs."""
        return self.names.uid(what, self.volume, *more)

    def header(self, kind: Kind) -> dict[str, Any]:
        """What every constructor of highdicom is told."""
        return {
            "series_instance_uid": self.uid(f"{kind}-series"),
            "series_number": SERIES_NUMBERS[kind] + 10 * self.place,
            "sop_instance_uid": self.uid(kind),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.maker.model,
            "software_versions": self.maker.version,
            "device_serial_number": self.maker.package,
            "series_description": self.maker.title,
        }


def said_of(findings: list[dict[str, Any]], deliver: Deliver) -> tuple[Said, ...]:
    """A stored prediction's findings under the recipe's rules of delivery."""
    return tuple(
        Said(
            class_name=str(finding["class_name"]),
            confidence=float(finding["confidence"]),
            called=bool(finding["called"]),
            volume_ml=None if finding.get("volume_ml") is None else float(finding["volume_ml"]),
            code=deliver.codes.get(str(finding["class_name"])),
            reported=float(finding["confidence"]) >= deliver.min_confidence,
            number=finding.get("number"),
        )
        for finding in findings
    )


def concept(code: Code) -> CodedConcept:
    """As highdicom wants it."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def blank_person() -> dict[str, str]:
    """Elements that highdicom asks of a source image; `finish` replaces them by the original's."""
    empty = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
    return dict.fromkeys((*empty, "StudyDate", "StudyTime", "ReferringPhysicianName"), "")


def finish(ds: Dataset, subject: Subject) -> Dataset:
    """Sign an object with the original identity, and replace what was made up at the moment by what stays the same."""
    moment = subject.origin.local(subject.maker.made_at)
    day, time = f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"
    for part in ("InstanceCreation", "Series", "Content"):
        setattr(ds, f"{part}Date", day)
        setattr(ds, f"{part}Time", time)
    for equipment in ds.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = f"{day}{time}"
        equipment.PurposeOfReferenceCodeSequence = [_plain(codes.DCM.ProcessingEquipment)]
    subject.origin.sign(ds, subject.texts)
    return ds


def encoded(ds: Dataset) -> bytes:
    """The object as a DICOM file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _plain(code: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
