"""Storage commitment (PS3.4 Annex J): whether the other side promises to keep what it was sent.

The answer may come on the association that asked, or later on one that the other side opens to our listener. Either
way it ends in the catalog, where `Commitments` looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydicom.dataset import Dataset

from models.pseudonyms import Pseudonymizer
from tasks.stores.catalog import Catalog
from tasks.stores.tables import CommitmentRow, now

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
PUSH_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
REQUEST: Final = 1
"""Action Type ID of a storage commitment request."""

Standing = Literal["none", "asked", "committed", "failed"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a delivery's commitments: of the last one, unless an earlier one was granted."""

    standing: Standing
    count: int = 0
    failures: int = 0
    last: CommitmentRow | None = None


@dataclass(frozen=True)
class Commitments:
    """The catalog's commitments. Transaction UIDs are functions of the delivery and of how often was asked."""

    catalog: Catalog
    pseudonymizer: Pseudonymizer

    def begin(self, delivery: str) -> str:
        """A new transaction UID, written down before anybody is asked: the answer may be quick."""
        number = self.catalog.count(CommitmentRow, CommitmentRow.delivery == delivery)
        uid = self.pseudonymizer.uid(f"commitment/{delivery}/{number}")
        self.catalog.add(CommitmentRow(transaction=self.pseudonymizer.uid(uid), delivery=delivery))
        return uid

    def abandon(self, uid: str) -> None:
        """Forget a transaction that the other side did not take."""
        with self.catalog.transaction() as session:
            session.query(CommitmentRow).filter(CommitmentRow.transaction == self.pseudonymizer.uid(uid)).delete()

    def answered(self, uid: str, failed: Sequence[str]) -> bool:
        """Write an answer down: `failed` are the SOP Instance UIDs that are not safe. False for an unknown one."""
        row = CommitmentRow.transaction == self.pseudonymizer.uid(uid)
        pseudonyms = [self.pseudonymizer.uid(one) for one in failed]
        return bool(self.catalog.change(CommitmentRow, row, answered_at=now(), failed=pseudonyms))

    def answer_to(self, uid: str) -> CommitmentRow | None:
        """The answer, if there is one by now."""
        row = self.catalog.get(CommitmentRow, self.pseudonymizer.uid(uid))
        return row if row is not None and row.answered_at is not None else None

    def standing(self, delivery: str) -> Asked:
        """How a delivery stands."""
        rows = self.catalog.find(CommitmentRow, CommitmentRow.delivery == delivery, order_by=CommitmentRow.asked_at)
        if not rows:
            return Asked("none")
        failures = sum(bool(row.answered_at and row.failed) for row in rows)
        if granted := [row for row in rows if row.answered_at and not row.failed]:
            return Asked("committed", len(rows), failures, granted[0])
        standing: Standing = "failed" if rows[-1].answered_at else "asked"
        return Asked(standing, len(rows), failures, rows[-1])


def request_of(uid: str, references: Sequence[tuple[str, str]]) -> Dataset:
    """The N-ACTION's data set for (SOP class, SOP instance) pairs."""
    ds = Dataset()
    ds.TransactionUID, ds.ReferencedSOPSequence = uid, []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        ds.ReferencedSOPSequence.append(item)
    return ds


def failed_in(report: Dataset) -> list[str]:
    """The SOP Instance UIDs that an N-EVENT-REPORT says are not safe."""
    return [str(item.ReferencedSOPInstanceUID) for item in report.get("FailedSOPSequence") or ()]
