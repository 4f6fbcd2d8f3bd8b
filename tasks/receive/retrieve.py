"""Fetching by DIMSE: C-GET, where the archive hands the instances over, and C-MOVE, where it sends them elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.presentation import PresentationContext

from models.errors import HeaderError, NocturneError
from models.hospital import Peer
from models.pseudonyms import Pseudonymizer
from tasks.receive.asking import INCOMPLETE, Fetched, Order
from tasks.receive.associations import associated
from tasks.receive.offers import STAGES
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.tables import InstanceRow

GET: Final = UID("1.2.840.10008.5.1.4.1.2.2.3")
"""Study Root Query/Retrieve Information Model - GET."""
MOVE: Final = UID("1.2.840.10008.5.1.4.1.2.2.2")
"""Study Root Query/Retrieve Information Model - MOVE."""
UIDS_AT_ONCE: Final = 60
ARRIVAL_SECONDS: Final = 30.0
"""What was moved has reached our listener; its row in the catalog follows within this time."""
_SUCCESS, _PENDING = 0x0000, frozenset({0xFF00, 0xFF01})
_OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0xA700, 0xC000


@dataclass(slots=True)
class _Outcome:
    """How a retrieval ended: its final status, and how many sub-operations it had and failed."""

    status: int | None = None
    operations: int = 0
    failed: int = 0

    def take(self, status: Dataset) -> None:
        """Read a response; counts are optional in it."""
        self.status = status.get("Status")
        done = [int(status.get(f"NumberOf{kind}Suboperations") or 0) for kind in ("Completed", "Warning", "Remaining")]
        self.failed = int(status.get("NumberOfFailedSuboperations") or 0)
        self.operations = max(self.operations, sum(done) + self.failed)


class Getter:
    """C-GET: the instances come over our own association."""

    def __init__(self, peer: Peer, *, ae_title: str) -> None:
        self._peer, self._ae_title = peer, ae_title

    def fetch(self, study: str, orders: Sequence[Order], reception: Reception) -> Fetched:
        """Everything ordered of one study. What does not come is told in the result."""
        taking = _Taking(reception)
        operations = 0
        statuses: list[int | None] = []
        for offers in STAGES:
            for offer in offers(taking.left(orders, operations)):
                if not (some := taking.left(offer.orders, operations)):
                    continue
                outcomes = self._get(offer.contexts, list(_requests(study, some)), taking)
                operations = max(operations, sum(outcome.operations for outcome in outcomes))
                statuses += [outcome.status for outcome in outcomes]
        wanted = {one.uid for order in orders for one in order.instances}
        listed = all(order.instances for order in orders)
        total = len(wanted) if listed else max(len(wanted), operations)
        missing = len(wanted - taking.arrived) if listed else max(0, total - len(taking.arrived))
        _judge(taking.fetched, statuses, missing, total)
        return taking.fetched

    def _get(
        self, contexts: Sequence[PresentationContext], requests: Sequence[Dataset], taking: _Taking
    ) -> list[_Outcome]:
        roles = [build_role(UID(uid), scp_role=True) for uid in {str(cx.abstract_syntax) for cx in contexts}]
        outcomes: list[_Outcome] = []
        with associated(
            self._peer,
            self._ae_title,
            GET,
            contexts=contexts,
            roles=roles,
            handlers=[(evt.EVT_C_STORE, taking.handle)],
        ) as association:
            for request in requests:
                outcomes.append(outcome := _Outcome())
                if association.is_established:
                    for status, _ in association.send_c_get(request, GET):
                        outcome.take(status)
                taking.raise_fault()
        return outcomes


class _Taking:
    """Takes what comes during a C-GET."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self.arrived: set[str] = set()
        self.fetched = Fetched()
        self._fault: NocturneError | None = None

    def left(self, orders: Sequence[Order], operations: int) -> list[Order]:
        """What has not come of these. Of a series that nobody can list, all is left while `operations` were more."""
        found = []
        for order in orders:
            if not order.instances:
                if not operations or operations > len(self.arrived):
                    found.append(order)
                continue
            missing = tuple(one for one in order.instances if one.uid not in self.arrived)
            if missing:
                whole = order.whole and len(missing) == len(order.instances)
                found.append(replace(order, instances=missing, whole=whole))
        return found

    def handle(self, event: Any) -> int:
        """One instance; pynetdicom passes our status on. Raises nothing: it would be lost there."""
        if self._fault is not None:
            return _OUT_OF_RESOURCES
        request = event.request
        try:
            stored = self._reception.take(
                [request.DataSet.getbuffer()],
                sop_class=str(request.AffectedSOPClassUID),
                sop_instance=str(request.AffectedSOPInstanceUID),
                transfer_syntax=str(event.context.transfer_syntax),
            )
        except HeaderError as error:
            self.fetched.failure(error.reason, error.what, 1)
            self.arrived.add(str(request.AffectedSOPInstanceUID))  # it came, and is told of already
            return _CANNOT_UNDERSTAND
        except NocturneError as error:
            self._fault = error
            return _OUT_OF_RESOURCES
        self.fetched.instances += str(request.AffectedSOPInstanceUID) not in self.arrived
        self.fetched.new += stored.new
        self.arrived.add(str(request.AffectedSOPInstanceUID))
        return _SUCCESS

    def raise_fault(self) -> None:
        """Whatever kept us from taking more."""
        if self._fault is not None:
            raise self._fault


class Mover:
    """C-MOVE: the archive sends to our listener, which another process may run; the catalog tells what came."""

    def __init__(
        self, peer: Peer, catalog: Catalog, pseudonymizer: Pseudonymizer, *, ae_title: str, destination: str
    ) -> None:
        self._peer, self._catalog, self._pseudonymizer = peer, catalog, pseudonymizer
        self._ae_title, self._destination = ae_title, destination

    def fetch(self, study: str, orders: Sequence[Order]) -> Fetched:
        """Everything ordered of one study. What does not come is told in the result."""
        before = self._here(study)
        outcomes: list[_Outcome] = []
        with associated(self._peer, self._ae_title, MOVE) as association:
            for request in _requests(study, orders):
                outcomes.append(outcome := _Outcome())
                if association.is_established:
                    for status, _ in association.send_c_move(request, self._destination, MOVE):
                        outcome.take(status)
        wanted = {self._pseudonymizer.uid(one.uid) for order in orders for one in order.instances}
        known = all(order.instances for order in orders)
        operations, failed = sum(o.operations for o in outcomes), sum(o.failed for o in outcomes)
        expected = len(wanted) - failed if known else operations - failed
        arrived = self._wait(study, before, wanted if known else None, max(0, expected))
        fetched = Fetched(instances=len(arrived), new=len(arrived - before))
        total = len(wanted) if known else operations
        _judge(fetched, [outcome.status for outcome in outcomes], max(0, total - len(arrived)), total)
        if fetched.failed and not arrived and not failed and total:
            fetched.failed.clear()
            fetched.failure(
                INCOMPLETE,
                f"the archive says that it sent {total} instances to {self._destination}, but none arrived: "
                "is our listener running, and does the archive know its address?",
                total,
            )
        return fetched

    def _here(self, study: str) -> set[str]:
        rows = self._catalog.find(InstanceRow, InstanceRow.study == self._pseudonymizer.uid(study))
        return {row.sop_uid for row in rows}

    def _wait(self, study: str, before: set[str], wanted: set[str] | None, expected: int) -> set[str]:
        """What has come of it, once as much is here as the archive says that it sent, or no more comes."""
        end = time.monotonic() + ARRIVAL_SECONDS
        count = -1
        while True:
            here = self._here(study)
            arrived = here & wanted if wanted is not None else here - before
            if len(arrived) >= expected or time.monotonic() > end:
                return arrived
            if len(arrived) > count:
                count, end = len(arrived), time.monotonic() + ARRIVAL_SECONDS
            time.sleep(0.1)


def _judge(fetched: Fetched, statuses: Sequence[int | None], missing: int, total: int) -> None:
    bad = sorted({"no answer" if code is None else f"0x{code:04X}" for code in statuses if code != _SUCCESS})
    told = f" (status {', '.join(bad)})" if bad else ""
    if missing:
        fetched.failure(INCOMPLETE, f"{missing} of {total} instances did not come{told}", missing)
    elif bad and not total:
        fetched.failure(INCOMPLETE, f"the archive sent nothing{told}")


def _requests(study: str, orders: Sequence[Order]) -> Iterator[Dataset]:
    """A request for each whole series, and for some of a series one by their UIDs."""
    for order in orders:
        if order.whole:
            yield _request("SERIES", study, order.series)
            continue
        uids = [one.uid for one in order.instances]
        for start in range(0, len(uids), UIDS_AT_ONCE):
            yield _request("IMAGE", study, order.series, uids[start : start + UIDS_AT_ONCE])


def _request(level: str, study: str, series: str, instances: Sequence[str] = ()) -> Dataset:
    request = Dataset()
    request.QueryRetrieveLevel = level
    request.StudyInstanceUID, request.SeriesInstanceUID = study, series
    if instances:
        request.SOPInstanceUID = list(instances)
    return request
