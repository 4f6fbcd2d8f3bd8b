"""What is known of patients and studies beside their images, as the catalog keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydicom.datadict import tag_for_keyword
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from models.clinical import CHARACTERISTICS
from models.errors import RecipeError
from models.recipe import Clinical, Variable
from tasks.stores.tables import ClinicalRow, VolumeRow
from tasks.stores.volumes import VolumeStore

_OF_SERIES: Final[Mapping[str, Callable[[VolumeRow], object]]] = {
    "Modality": lambda row: row.modality,
    "Manufacturer": lambda row: row.manufacturer,
    "ManufacturerModelName": lambda row: row.model_name,
    "SliceThickness": lambda row: "" if row.slice_thickness is None else f"{row.slice_thickness:g}",
}
_FEW = 100


def clinical_values(
    session: Session,
    asked: Clinical,
    volumes: Sequence[VolumeRow],
    store: VolumeStore | None = None,
    *,
    required: bool = True,
) -> dict[str, tuple[str, ...]]:
    """By volume, the values of the variables that are asked for, in their order; "" where one is missing.

    A table's value of the study goes before one of the patient. With `store`, headers of volumes that were taken in
    before headers were kept are looked up once. Raises RecipeError where no such table was imported, or where several
    were and none is named; unless it is `required`, all values are missing then.
    """
    if not asked.variables:
        return {}
    if asked.source == "DICOM":
        return {row.volume: _header_values(asked, row, store) for row in volumes}
    try:
        name = _table(session, asked)
    except RecipeError:
        if required:
            raise
        return {row.volume: ("",) * len(asked.variables) for row in volumes}
    known = _known(session, name, volumes)
    return {row.volume: _table_values(asked, row, known) for row in volumes}


def characteristics(row: VolumeRow, store: VolumeStore | None = None) -> dict[str, str]:
    """What is known of the patient and the acquisition, by keyword, `SITE` and `CONTRAST`.

    With `store`, the header of a volume that was taken in before such things were kept is looked into.
    """
    if row.characteristics is None and store is not None:
        return _characteristics(store.open(row.volume).about["attributes"])
    return dict(row.characteristics or {})


def any_table(session: Session, names: Sequence[str], volumes: Sequence[VolumeRow]) -> dict[str, dict[str, str]]:
    """By volume, the values of these columns (by name in lower case) in whichever table has them, the first by name."""
    found: dict[str, dict[str, str]] = {row.volume: {} for row in volumes}
    variables = tuple(Variable(name=name) for name in names)
    for table in tables(session) if names else ():
        asked = Clinical(name=table, variables=variables)
        for volume, values in clinical_values(session, asked, volumes).items():
            for name, value in zip(names, values, strict=True):
                if value:
                    found[volume].setdefault(name.casefold(), value)
    return found


def tables(session: Session) -> list[str]:
    """The names of the tables that were imported."""
    return sorted(session.scalars(select(ClinicalRow.name).distinct()))


def _table(session: Session, asked: Clinical) -> str:
    names = tables(session)
    if asked.name is None and len(names) == 1:
        return names[0]
    if asked.name in names:
        return str(asked.name)
    there = f"there are {', '.join(names)}" if names else "none was imported"
    raise RecipeError(
        f"no clinical table is called {asked.name!r}" if asked.name else f"clinical.name is not given, and {there}",
        where="clinical.name",
        hint=f"{there}: `nocturne clinical import FILE --name NAME`",
    )


def _known(session: Session, name: str, volumes: Sequence[VolumeRow]) -> dict[tuple[str, str], Mapping[str, str]]:
    """(what, pseudonym) → the columns that are told of it."""
    where: list[ColumnElement[bool]] = [ClinicalRow.name == name]
    if len(volumes) <= _FEW:
        patients, studies = {row.patient for row in volumes}, {row.study for row in volumes}
        where.append(or_(ClinicalRow.patient.in_(patients), ClinicalRow.study.in_(studies)))
    rows = session.scalars(select(ClinicalRow).where(*where))
    return {("study", row.study) if row.study else ("patient", row.patient or ""): row.content for row in rows}


def _table_values(
    asked: Clinical, row: VolumeRow, known: Mapping[tuple[str, str], Mapping[str, str]]
) -> tuple[str, ...]:
    told = [known.get(subject, {}) for subject in (("study", row.study), ("patient", row.patient))]
    columns = [variable.name.casefold() for variable in asked.variables]
    return tuple(next((content[c] for content in told if content.get(c)), "") for c in columns)


def _header_values(asked: Clinical, row: VolumeRow, store: VolumeStore | None) -> tuple[str, ...]:
    kept = characteristics(row, store)
    if row.characteristics is None and store is not None:
        # The row is the session's: what is set here is kept with its transaction.
        row.characteristics = kept
    values = (_OF_SERIES.get(v.name, lambda _, name=v.name: kept.get(name, ""))(row) for v in asked.variables)
    return tuple(str(value) for value in values)


def _characteristics(attributes: Mapping[str, Any]) -> dict[str, str]:
    """From a header in the DICOM JSON model."""
    found = {}
    for keyword in CHARACTERISTICS:
        values = attributes.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or []
        if len(values) == 1 and values[0] is not None:
            found[keyword] = str(values[0]).strip()
    return found
