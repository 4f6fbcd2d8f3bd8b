"""Clinical variables from tables: pseudonyms as soon as a row is read, and no column that tells who somebody is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pydicom.datadict import keyword_dict
from sqlalchemy.orm import Session

from models.clinical import as_number
from models.errors import BadInputError, HeaderError, SchemaError
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from tasks.ingest.confidentiality import Action, action_for
from tasks.ingest.labels.table import ImportReport, Known, Refusal, Subject, lines, subject_of, uid_of
from tasks.stores.catalog import Catalog
from tasks.stores.tables import ClinicalRow

LONGEST = 64
"""Characters of a value: what is longer is prose."""

_SUBJECTS: Final = frozenset({"patientid", "studyinstanceuid", "seriesinstanceuid"})
_TELLING: Final = re.compile(
    r"(^|[\W_])(name|surname|firstname|lastname|birth\w*|dob|born|mrn|ssn|address|street|phone|tel|e?mail|"
    r"insurance|accession\w*)([\W_]|$)"
)
_DATE: Final = re.compile(r"(19|20)\d\d[-./]?(0[1-9]|1[0-2])[-./]?([0-2]\d|3[01])|\d{1,2}[-./]\d{1,2}[-./](19|20)?\d\d")
_LONG_NUMBER: Final = re.compile(r"\d{6,}")
_MANY = 20

Content = dict[str, str]


def import_clinical(
    path: Path, *, name: str, catalog: Catalog, pseudonymizer: Pseudonymizer, columns: Sequence[str] = ()
) -> ImportReport:
    """A table's `columns` (default: all that tell nobody's identity) as clinical table `name`.

    Rows name their subject by PatientID, StudyInstanceUID or both. A later import corrects an earlier one, value by
    value; a blank leaves what was known. Raises SchemaError for a table that is not one, for a column that is not
    there and for subjects with two values; then nothing is imported.
    """
    known = Known.of(catalog)
    rows = list(lines(path, columns))
    if rows and not {"patientid", "studyinstanceuid"} & set(rows[0][1]):
        raise SchemaError("the table needs a column PatientID or StudyInstanceUID", where="the table's first line")
    taken, refused = _chosen([cells for _, cells in rows], [column.casefold() for column in columns])
    told: dict[Subject, Content] = {}
    for line, cells in rows:
        try:
            subject = _subject(cells, known, pseudonymizer)
            _add(told.setdefault(subject, {}), {c: cells[c] for c in taken if cells.get(c)}, subject)
        except BadInputError as error:
            refused.append(Refusal(line, error.reason, error.what))
    counts: Counter[str] = Counter()
    with catalog.transaction() as session:
        for subject, content in told.items():
            counts[_keep(catalog, session, name, subject, content)] += 1
    unknown = sum(not (known.names(subject) if subject.patient else subject.study in known.studies) for subject in told)
    return ImportReport(counts["new"], counts["existing"], counts["changed"], unknown, tuple(refused))


def _subject(cells: Mapping[str, str], known: Known, pseudonymizer: Pseudonymizer) -> Subject:
    """The patient, or one study; a series is of its study."""
    patient, study = cells.get("patientid", ""), cells.get("studyinstanceuid", "")
    if patient:
        return subject_of({"patientid": patient, "studyinstanceuid": study}, known, pseudonymizer)
    if not study:
        raise HeaderError("it names neither patient nor study", reason="no-patient-id")
    uid = uid_of(study, known.studies, pseudonymizer) or ""
    return Subject(known.studies.get(uid, ""), uid, None)


def _add(content: Content, more: Content, subject: Subject) -> None:
    for column, text in more.items():
        if content.setdefault(column, text) != text:
            raise SchemaError(
                f"the table tells two values of {column!r} for patient {subject.patient or 'of a study'}",
                reason="conflicting-values",
                hint="correct these rows and run it again",
            )


def _keep(catalog: Catalog, session: Session, name: str, subject: Subject, content: Content) -> str:
    """Insert or correct one row: `new`, `existing` or `changed`."""
    of = subject.study or subject.patient
    key = content_key("clinical", name, "study" if subject.study else "patient", of)
    row = session.get(ClinicalRow, key)
    if row is None:
        made = ClinicalRow(
            clinical=key, name=name, patient=subject.patient or None, study=subject.study, content=content
        )
        catalog.insert(session, made)
        return "new"
    both = {**row.content, **content}
    if both == row.content:
        return "existing"
    row.content = both
    return "changed"


# -- which columns -----------------------------------------------------------------------------------------------


def _chosen(rows: Sequence[Mapping[str, str]], asked: Sequence[str]) -> tuple[list[str], list[Refusal]]:
    """The columns that are taken in, and those that are not: names, dates, numbers of people and prose stay out."""
    offered = list(rows[0]) if rows else []
    taken, refused = [], []
    for column in offered:
        if not column or column in _SUBJECTS or (asked and column not in asked):
            continue
        if why := _telling(column, [row[column] for row in rows if row.get(column)], asked=bool(asked)):
            refused.append(Refusal(1, "identifying-column", f"column {column!r} {why}: left out"))
        else:
            taken.append(column)
    return taken, refused


def _telling(column: str, values: Sequence[str], *, asked: bool) -> str:
    """How a column may tell who somebody is, or "". What is asked for by name is judged by its values alone."""
    if not asked and (_TELLING.search(column) or column in _identifying()):
        return "is called like an identity"
    if any(_DATE.fullmatch(value) for value in values):
        return "holds dates (give ages or intervals)"
    if any(len(value) > LONGEST for value in values):
        return "holds long texts"
    if asked:
        return ""
    # Measured values differ from patient to patient; so do record numbers and remarks, but not as numbers with a point.
    odd = [v for v in values if as_number(v) is None or _LONG_NUMBER.fullmatch(v)]
    distinct = len(set(odd))
    return "is different in nearly every row" if distinct > _MANY and distinct > len(odd) / 2 else ""


@cache
def _identifying() -> frozenset[str]:
    """DICOM keywords, in lower case, that do not stay as they are."""
    kept = (Action.KEEP, Action.WORDS)
    return frozenset(word.casefold() for word, tag in keyword_dict.items() if action_for(int(tag)) not in kept)
