"""Our own results, as we meet them again: the objects that were sent, and the labels in which they were corrected.

What a label names of ours, and when it was made, lies in the vault under the label's key: it tells which prediction
was corrected, and which of two corrections is the later one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import select

from tasks.stores.catalog import Catalog
from tasks.stores.tables import DeliveryRow
from tasks.stores.vault import Vault

_RETURNED: Final = "returned"
_LABEL: Final = "label of"


@dataclass(frozen=True, slots=True)
class Returned:
    """What a label says of itself: `uid` is its own pseudonym, `refers` are those of our objects that it names, `made`
    is when it was made, as YYYYMMDDHHMMSS.FFFFFF ("" where it does not say)."""

    uid: str
    refers: tuple[str, ...] = ()
    made: str = ""


def keep_returned(vault: Vault, label: str, told: Returned) -> None:
    """Seal it under the label's key, and the label's key under the object's pseudonym."""
    vault.put(_RETURNED, label, asdict(told))
    vault.put(_LABEL, told.uid, label)


def returned_labels(vault: Vault, labels: Iterable[str]) -> dict[str, Returned]:
    """What those labels say of themselves that came as DICOM objects."""
    found = vault.get_many(_RETURNED, labels)
    return {key: Returned(told["uid"], tuple(told["refers"]), told["made"]) for key, told in found.items()}


def label_of(vault: Vault, uid: str) -> str | None:
    """The label that an object became, by the object's pseudonym."""
    label = vault.get_many(_LABEL, [uid]).get(uid)
    return None if label is None else str(label)


def delivered_objects(catalog: Catalog, studies: Iterable[str]) -> dict[str, str]:
    """Pseudonymous SOP Instance UIDs of all that was made of these studies, each with the analysis that says so."""
    query = select(DeliveryRow.objects, DeliveryRow.analysis).where(DeliveryRow.study.in_(sorted(set(studies))))
    with catalog.reading() as session:
        return {str(item["uid"]): analysis for objects, analysis in session.execute(query) for item in objects}


def delivered(catalog: Catalog, study: str) -> frozenset[str]:
    """Pseudonymous SOP Instance UIDs of all that we have sent, or are to send, for a pseudonymous study."""
    return frozenset(delivered_objects(catalog, [study]))
