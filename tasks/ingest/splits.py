"""On which side a patient is: drawn once, or imported, and never changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.dataset import SPLITS, SplitName, assign_splits
from models.errors import SchemaError
from models.pseudonyms import Pseudonymizer
from models.recipe import Split
from tasks.ingest.cases import Case
from tasks.ingest.labels.table import ImportReport, Known, Refusal, read_table
from tasks.stores.catalog import ROWS_AT_ONCE, Catalog
from tasks.stores.tables import SplitRow

_SMALL = 5
_SPELLINGS: Mapping[str, SplitName] = {
    **{name: name for name in SPLITS},
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}


def strata(cases: Sequence[Case], source: str, *, classification: bool) -> dict[str, str]:
    """Each patient's stratum: its rarest class, or (of masks) the recipe's source and all that its labels show.

    Combinations of structures that fewer than five patients have count as one: a quota needs somebody to share out.
    """
    shown: dict[str, frozenset[str]] = {}
    for case in cases:
        patient = case.volume.patient
        shown[patient] = shown.get(patient, frozenset()) | case.shows
    if classification:
        patients = Counter(name for names in shown.values() for name in names)
        return {
            patient: min(names, key=lambda n: (patients[n], n), default="nothing") for patient, names in shown.items()
        }
    joined = {patient: f"{source}: {' + '.join(sorted(names)) or 'nothing'}" for patient, names in shown.items()}
    size = Counter(joined.values())
    return {patient: s if size[s] >= _SMALL else f"{source}: other" for patient, s in joined.items()}


def place(
    catalog: Catalog, session: Session, patients: Mapping[str, str], shares: Split, pseudonymizer: Pseudonymizer
) -> dict[str, SplitName]:
    """The side of each patient (pseudonym → stratum); those seen for the first time are drawn and stored."""
    stored = stored_splits(session, patients)
    placed = {patient: (patients[patient], split) for patient, split in stored.items()}
    chosen = assign_splits(patients, placed, shares, lambda patient: pseudonymizer.draw(patient, "split"))
    for patient, split in sorted(chosen.items()):
        row = SplitRow(patient=patient, split=split, stratum=patients[patient], origin="drawn")
        catalog.insert(session, row)
    # Whoever stored a patient first is right: it may have been another process, just now.
    return stored_splits(session, patients)


def import_splits(path: Path, *, catalog: Catalog, pseudonymizer: Pseudonymizer) -> ImportReport:
    """A given split: a CSV of PatientID and split (train, validation, test). A placed patient does not move.

    Raises SchemaError for another word than these and for a patient on two sides; then nothing is imported.
    """
    known = Known.of(catalog)
    rows, refused = read_table(path, "split", known, pseudonymizer)
    wanted: dict[str, SplitName] = {}
    lines: dict[str, int] = {}
    for row in rows:
        split = _SPELLINGS.get(row.text.casefold())
        if split is None or wanted.setdefault(row.subject.patient, split) != split:
            what = "is on two sides" if split else f"has a split that is none of {', '.join(SPLITS)}"
            raise SchemaError(f"splits: patient {row.subject.patient} {what}", where=f"line {row.line}")
        lines[row.subject.patient] = row.line
    with catalog.transaction() as session:
        before = stored_splits(session, wanted)
        fresh = {patient: split for patient, split in wanted.items() if patient not in before}
        for patient, split in sorted(fresh.items()):
            catalog.insert(session, SplitRow(patient=patient, split=split, stratum="", origin="imported"))
    for patient, split in before.items():
        if wanted[patient] != split:
            refused.append(Refusal(lines[patient], "already-placed", f"the patient is in {split} for good"))
    same = sum(wanted[patient] == split for patient, split in before.items())
    patients_here = {*known.studies.values(), *known.series.values()}
    return ImportReport(len(fresh), same, 0, sum(p not in patients_here for p in fresh), tuple(refused))


def stored_splits(session: Session, patients: Mapping[str, object]) -> dict[str, SplitName]:
    """The sides of those patients that have one."""
    # All rows: a patient has one, and a list of a whole cohort is too long for a query.
    rows = session.execute(select(SplitRow.patient, SplitRow.split).execution_options(yield_per=ROWS_AT_ONCE))
    return {patient: cast("SplitName", split) for patient, split in rows if patient in patients}
