"""Another secret for pseudonyms: a new home, in which every identity has another pseudonym.

Pseudonyms are in volumes, datasets and file names, and content keys are made from them: they are not rewritten but made
anew, by ingesting again. What cannot be made anew is the side that each patient is on: who was learnt from must never
be judged by. It is carried over here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from models.errors import SettingsError
from models.pseudonyms import Pseudonymizer
from tasks.stores.catalog import Catalog, by_parts
from tasks.stores.house import Stores
from tasks.stores.secrets import KEY, load_or_create_secret
from tasks.stores.tables import SeriesRow, SplitRow

ORIGINALS: Final = "series"
"""Kind of the vault's records of ingested series."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The public names of both secrets, and how many patients keep their side, or are not known to the vault."""

    before: str
    after: str
    placed: int
    unknown: int


def renew(stores: Stores, home: Path) -> Renewed:
    """Make `home`, with secrets of its own, a catalog and each patient's side. Killed half-way, call it again.

    Raises SettingsError where `home` holds another installation.
    """
    home = home.absolute()
    if home == stores.locations.home.absolute() or (home / "spool").exists() or (home / "volumes").exists():
        raise SettingsError("this folder holds an installation", where="home", hint="name a folder that is not there")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = load_or_create_secret(home / "secret")
    here = replace(
        stores.locations,
        home=home,
        database=f"sqlite:///{home / 'catalog.db'}",
        secret=secret,
        vault_key=load_or_create_secret(home / KEY),
        older_vault_keys=(),
    )
    names, placed, unknown = Pseudonymizer(secret), 0, 0
    there = Stores(here).catalog
    try:
        for part in by_parts(stores.catalog.find(SplitRow)):
            identities = dict(_identities(stores, [row.patient for row in part]))
            sides = [row for row in part if row.patient in identities]
            there.add(*[_moved(row, names.patient(identities[row.patient])) for row in sides])
            placed, unknown = placed + len(sides), unknown + len(part) - len(sides)
    finally:
        there.close()
    return Renewed(stores.pseudonymizer.key_id, names.key_id, placed, unknown)


def _moved(row: SplitRow, patient: str) -> SplitRow:
    return SplitRow(patient=patient, split=row.split, stratum=row.stratum, origin=row.origin)


def _identities(stores: Stores, patients: list[str]) -> Iterator[tuple[str, str]]:
    """Each patient's pseudonym with what it was made from, where the vault has it."""
    catalog: Catalog = stores.catalog
    whose = {row.series: row.patient for row in catalog.among(SeriesRow, SeriesRow.patient, patients)}
    for series, record in stores.vault.get_many(ORIGINALS, whose).items():
        # As ingest does: without a Patient ID the study stands for its patient.
        identity = str(record["identity"].get("PatientID") or record["study_uid"])
        if stores.pseudonymizer.patient(identity) == whose[series]:
            yield whose[series], identity
