"""Labels from tables: a CSV of classes, NIfTI masks one by one or by a CSV that lists them.

Identifiers become pseudonyms as soon as a row is read; those that the catalog knows already as pseudonyms stay.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from sqlalchemy import select

from models import schemas
from models.errors import BadInputError, HeaderError, LabelError, NotFoundError, SchemaError
from models.geometry import Geometry
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.refs import LabelRef
from tasks.ingest.labels.nifti import read_nifti
from tasks.ingest.labels.run import VERSION, quarantine, settle, store_mask
from tasks.stores.catalog import Catalog
from tasks.stores.tables import LabelRow, SeriesRow, StudyRow, VolumeRow, now
from tasks.stores.volumes import VolumeStore

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64
_AND = "|"  # between the classes of one value


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row that was left out: its line in the file and why."""

    line: int
    reason: str
    what: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a table's rows. `changed` had another value before; `unknown` (counted among the others) name
    nothing that is in the catalog so far, and wait for it."""

    new: int = 0
    existing: int = 0
    changed: int = 0
    unknown: int = 0
    refused: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        told = [f"{self.new} new", f"{self.existing} already there"]
        told += [f"{self.changed} changed"] if self.changed else []
        told += [f"{self.unknown} not in the catalog yet"] if self.unknown else []
        reasons = Counter(refusal.reason for refusal in self.refused)
        told += [f"{count} refused ({reason})" for reason, count in sorted(reasons.items())]
        return ", ".join(told)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom or what a row is about, in pseudonyms: a series, else a study, else a patient.

    The narrowest alone is kept: a series is the same subject whether or not a table names its study too.
    """

    patient: str
    study: str | None
    series: str | None

    def __post_init__(self) -> None:
        if self.series:
            object.__setattr__(self, "study", None)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a table: its number in the file, its subject, and the wanted column's text."""

    line: int
    subject: Subject
    text: str


@dataclass(frozen=True, slots=True)
class Known:
    """Pseudonyms in the catalog."""

    patients: frozenset[str]
    studies: Mapping[str, str]
    series: Mapping[str, str]

    @classmethod
    def of(cls, catalog: Catalog) -> Known:
        """All of them; studies and series with their patients."""
        with catalog.reading() as session:
            studies = {row.study: row.patient for row in session.execute(select(StudyRow.study, StudyRow.patient))}
            series = {
                row.series_uid: row.patient for row in session.execute(select(SeriesRow.series_uid, SeriesRow.patient))
            }
            labelled = set(session.scalars(select(LabelRow.patient).distinct()))
        return cls(frozenset(studies.values()) | frozenset(series.values()) | labelled, studies, series)

    def names(self, subject: Subject) -> bool:
        """Whether the catalog holds the subject."""
        if subject.series:
            return subject.series in self.series
        if subject.study:
            return subject.study in self.studies
        return subject.patient in {*self.studies.values(), *self.series.values()}


def import_csv(
    path: Path,
    *,
    name: str,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
    column: str = "label",
    several: bool = False,
) -> ImportReport:
    """Class labels as label set `name`: PatientID, optionally StudyInstanceUID and SeriesInstanceUID, and `column`.

    Raises SchemaError for a table that is not one, for values that are too long and for subjects with two values
    (unless `several`: they are then shown together); then nothing is imported. A later import corrects an earlier one.
    """
    known = Known.of(catalog)
    rows, refused = read_table(path, column, known, pseudonymizer)
    values = _values(rows, name, several=several)
    current = {_subject(label): label for label in _label_set(catalog, name)}
    fresh: list[LabelRow] = []
    touched: list[str] = []
    counts: Counter[str] = Counter()
    for subject, value in values.items():
        row = _class_label(subject, name, value)
        before = current.get(subject)
        counts["unknown"] += not known.names(subject)
        if before and before.value == value:
            counts["existing"] += 1
            continue
        counts["changed" if before else "new"] += 1
        fresh.append(row)
        touched.append(row.label)
    if catalog.add(*fresh) < len(fresh):
        # A value that was replaced and now comes back: the newest row of a subject counts.
        for key in touched:
            catalog.change(LabelRow, LabelRow.label == key, created_at=now())
    return ImportReport(counts["new"], counts["existing"], counts["changed"], counts["unknown"], tuple(refused))


def import_nifti(
    path: Path,
    *,
    series: str,
    catalog: Catalog,
    volumes: VolumeStore,
    pseudonymizer: Pseudonymizer,
    names: Mapping[int, str] | None = None,
) -> LabelRef:
    """A label map as the mask of a series (original or pseudonymous SeriesInstanceUID). Raises LabelError."""
    known = Known.of(catalog)
    uid = series if series in known.series else pseudonymizer.uid(series)
    images = catalog.find(VolumeRow, VolumeRow.series_uid == uid)
    ref, _ = _NiftiImporter(catalog, volumes, names or {}).add(path, images)
    return ref


def import_nifti_csv(
    path: Path,
    *,
    catalog: Catalog,
    volumes: VolumeStore,
    pseudonymizer: Pseudonymizer,
    names: Mapping[int, str] | None = None,
    column: str = "mask",
) -> ImportReport:
    """Label maps listed in a CSV: identifiers as in `import_csv`, and in `column` the file, relative to the CSV.

    Without SeriesInstanceUID the study, or the patient, must have one image only. What cannot be used is set aside.
    """
    known = Known.of(catalog)
    rows, refused = read_table(path, column, known, pseudonymizer)
    importer = _NiftiImporter(catalog, volumes, names or {})
    counts: Counter[str] = Counter()
    for row in rows:
        if not known.names(row.subject):
            counts["unknown"] += 1
            refused.append(Refusal(row.line, "no-image", "its image is not in the catalog yet"))
            continue
        try:
            _, made = importer.add(path.parent / row.text, _images(catalog, row.subject))
            counts["new" if made else "existing"] += 1
        except BadInputError as error:
            refused.append(Refusal(row.line, error.reason, error.what))
    return ImportReport(counts["new"], counts["existing"], 0, counts["unknown"], tuple(refused))


def parse_names(text: str) -> dict[int, str]:
    """`1=anterior,2=posterior` → names of a label map's values. Raises SchemaError."""
    names: dict[int, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        value, sign, name = (p.strip() for p in part.partition("="))
        if not sign or not value.isdecimal() or not 0 < len(name) <= 64 or int(value) == 0:
            raise SchemaError("names are written as 1=first,2=second; 0 is the background", where="--names")
        names[int(value)] = name
    return names


# -- tables ------------------------------------------------------------------------------------------------------


def read_table(
    path: Path, column: str, known: Known, pseudonymizer: Pseudonymizer
) -> tuple[list[TableRow], list[Refusal]]:
    """The rows of a CSV (comma, semicolon or tab; headers in any case) in pseudonyms, and those that are refused."""
    rows: list[TableRow] = []
    refused: list[Refusal] = []
    for line, cells in lines(path, ("PatientID", column)):
        try:
            text = cells[column.casefold()]
            if not text:
                raise LabelError(f"its {column} is empty", reason="blank")
            rows.append(TableRow(line, subject_of(cells, known, pseudonymizer), text))
        except BadInputError as error:
            refused.append(Refusal(line, error.reason, error.what))
    return rows, refused


def lines(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line's number and its cells by column (in lower case). Raises SchemaError, NotFoundError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            head = handle.readline()
            delimiter = max(",;\t", key=head.count)
            handle.seek(0)
            reader = csv.reader(handle, delimiter=delimiter)
            header = [name.strip().casefold() for name in next(reader, [])]
            for wanted in needed:
                if header.count(wanted.casefold()) != 1:
                    raise SchemaError(f"the table needs one column {wanted!r}", where="the table's first line")
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    padded = [cell.strip() for cell in cells] + [""] * len(header)
                    yield reader.line_num, dict(zip(header, padded, strict=False))
    except FileNotFoundError:
        raise NotFoundError("the table does not exist", hint="check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SchemaError(f"the table is no CSV in UTF-8 ({type(error).__name__})") from None


def subject_of(cells: Mapping[str, str], known: Known, pseudonymizer: Pseudonymizer) -> Subject:
    """The pseudonyms in a line. Raises LabelError where its study or series is another patient's, HeaderError."""
    given = cells["patientid"]
    patient = given if given in known.patients else pseudonymizer.patient(given)
    study = uid_of(cells.get("studyinstanceuid", ""), known.studies, pseudonymizer)
    series = uid_of(cells.get("seriesinstanceuid", ""), known.series, pseudonymizer)
    owners = [known.series.get(series or ""), known.studies.get(study or "")]
    if any(owner not in (None, patient) for owner in owners):
        raise LabelError("its study or series is another patient's", reason="patient-mismatch")
    return Subject(patient, study, series)


def uid_of(text: str, known: Mapping[str, str], pseudonymizer: Pseudonymizer) -> str | None:
    """A UID's pseudonym; one that is in the catalog stays. Raises HeaderError for a malformed one."""
    if not text or text in known:
        return text or None
    if len(text) > _LONGEST_UID or not _UID.fullmatch(text):
        raise HeaderError("a UID in it is malformed", reason="bad-uid")
    return pseudonymizer.uid(text)


# -- classes -----------------------------------------------------------------------------------------------------


def _values(rows: Sequence[TableRow], name: str, *, several: bool) -> dict[Subject, str]:
    """One value for each subject; of `several`, all of its words in alphabetical order. Raises SchemaError."""
    said = [(row.subject.patient, word.strip()) for row in rows for word in row.text.split(_AND)]
    frame = pd.DataFrame({"patient": [p for p, _ in said], "value": [word for _, word in said]}, dtype="object")
    if rows:
        schemas.check(frame.astype({"patient": "str", "value": "str"}), schemas.LABELS, where=name)
    values: dict[Subject, str] = {}
    conflicts: dict[str, None] = {}
    for row in rows:
        if several:
            values[row.subject] = _joined(values.get(row.subject, ""), row.text)
        elif values.setdefault(row.subject, row.text) != row.text:
            conflicts[row.subject.patient] = None
    if conflicts:
        told = ", ".join(list(conflicts)[:5]) + (", …" if len(conflicts) > 5 else "")
        raise SchemaError(
            f"labels: {len(conflicts)} patient(s) have two values for one series, study or patient: {told}",
            where=name,
            reason="conflicting-labels",
            hint="correct these rows, or say --several where an image may show several classes",
        )
    return values


def _joined(*values: str) -> str:
    words = {word.strip() for value in values for word in value.split(_AND)} - {""}
    return _AND.join(sorted(words, key=lambda word: (word.casefold(), word)))


def _label_set(catalog: Catalog, name: str) -> Sequence[LabelRow]:
    """Oldest first, so that the newest of a subject comes last."""
    return sorted(
        catalog.find(LabelRow, LabelRow.source == "CSV", LabelRow.name == name), key=lambda r: (r.created_at, r.label)
    )


def _subject(label: LabelRow) -> Subject:
    return Subject(label.patient, label.study, label.series_uid)


def _class_label(subject: Subject, name: str, value: str) -> LabelRow:
    key = content_key("label", "CSV", name, subject.patient, subject.study, subject.series, value)
    return LabelRow(
        label=key,
        patient=subject.patient,
        source="CSV",
        study=subject.study,
        series_uid=subject.series,
        name=name,
        value=value,
    )


# -- masks -------------------------------------------------------------------------------------------------------


def _images(catalog: Catalog, subject: Subject) -> Sequence[VolumeRow]:
    if subject.series:
        return catalog.find(VolumeRow, VolumeRow.series_uid == subject.series)
    where = VolumeRow.study == subject.study if subject.study else VolumeRow.patient == subject.patient
    images = catalog.find(VolumeRow, where)
    if len({image.series_uid for image in images}) > 1:
        raise LabelError("several images could be meant: add SeriesInstanceUID", reason="ambiguous-image")
    return images


@dataclass(frozen=True, slots=True)
class _NiftiImporter:
    catalog: Catalog
    volumes: VolumeStore
    names: Mapping[int, str] = field(default_factory=dict)

    def add(self, path: Path, images: Sequence[VolumeRow]) -> tuple[LabelRef, bool]:
        """The mask of the image that fits best, and whether it is new. Raises LabelError, after setting it aside."""
        digest = _digest(path)
        try:
            if not images:
                raise LabelError("its image is not in the catalog", reason="no-image", hint="ingest the image first")
            ref, made = self._add(path, digest, images)
        except BadInputError as error:
            patient = images[0].patient if images else None
            quarantine(self.catalog, digest, digest, error, patient=patient)
            raise
        settle(self.catalog, digest, [])
        return ref, made

    def _add(self, path: Path, digest: str, images: Sequence[VolumeRow]) -> tuple[LabelRef, bool]:
        label = read_nifti(path, self.names)

        def rank(image: VolumeRow) -> tuple[bool, float, str]:
            same = label.geometry.same_grid(Geometry.from_json(image.geometry))
            return same, image.created_at.timestamp(), image.volume

        image = max(images, key=rank)
        key = content_key("label", image.volume, digest, VERSION, sorted(self.names.items()))
        if self.catalog.get(LabelRow, key):
            return LabelRef.to(key), False
        mask = label.mask(Geometry.from_json(image.geometry))
        store_mask(self.catalog, self.volumes, key, mask, image, digest)
        return LabelRef.to(key), True


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        raise LabelError("the mask's file cannot be read", reason="source-gone", hint="check its path") from None
