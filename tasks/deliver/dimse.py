"""To an AE: C-STORE (PS3.4 Annex B), C-FIND to see what is there already, and storage commitment (Annex J)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association

from models.hospital import Destination
from tasks.associations import Refusals, client_context, steadied
from tasks.deliver.commitment import PUSH_INSTANCE, PUSH_MODEL, REQUEST, Commitments, failed_in, request_of
from tasks.deliver.objects import Result
from tasks.deliver.sending import Sent, away

FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""
_SYNTAXES: Final = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_SUCCESS: Final = 0x0000
_WARNINGS: Final = frozenset({0xB000, 0xB006, 0xB007})
_DUPLICATE: Final = 0x0111
_CLASS_NOT_SUPPORTED: Final = 0x0122
_NEVER: Final = frozenset({0x0105, 0x0106, 0x0114, 0x0115, 0x0117, 0x0118, 0x0119, _CLASS_NOT_SUPPORTED})
"""Attribute, value, argument, instance or class are at fault: those that the same object will always have."""
_PENDING: Final = frozenset({0xFF00, 0xFF01})
_LOOK_SECONDS: Final = 0.05


class DimseSender:
    """C-STORE to one AE. `wait_seconds`: how long an answer about storage commitment is waited for."""

    def __init__(
        self, destination: Destination, commitments: Commitments, *, ae_title: str, delivery: str, wait_seconds: float
    ) -> None:
        self._destination, self._commitments = destination, commitments
        self._ae_title, self._delivery, self._wait_seconds = ae_title, delivery, wait_seconds

    def send(self, results: Sequence[Result], *, again: bool) -> Sent:
        """Store what is not there, then ask for commitment. Raises ServiceUnavailableError."""
        classes = list(dict.fromkeys(result.sop_class for result in results))
        accepted: list[str] = []
        refused: list[str] = []
        with self._associated([*classes, *([FIND] if again else []), *self._commitment]) as association:
            for result in results:
                there = again and self._there(association, result)
                if there or not (reason := self._store(association, result)):
                    accepted.append(result.uid)
                else:
                    refused.append(f"{result.kind} refused ({reason})")
            references = [(result.sop_class, result.uid) for result in results if result.uid in accepted]
            safe, note = self._ask(association, references) if references else (False, "")
        return Sent(tuple(accepted), tuple(refused), (note,) if note else (), safe=safe)

    def ask(self, references: Sequence[tuple[str, str]]) -> tuple[bool, str]:
        """Ask for commitment once more, for what was sent before. Returns whether it was granted, and a note."""
        with self._associated([PUSH_MODEL]) as association:
            return self._ask(association, references)

    @property
    def _commitment(self) -> list[str]:
        return [PUSH_MODEL] if self._destination.commitment else []

    # -- association -------------------------------------------------------------------------------------------

    @contextmanager
    def _associated(self, classes: Sequence[str]) -> Iterator[Association]:
        seconds = self._destination.timeout_seconds
        ae = AE(ae_title=self._ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = seconds
        for sop_class in classes:
            ae.add_requested_context(sop_class, _SYNTAXES)
        refusals = Refusals()
        association = ae.associate(
            self._destination.host,
            self._destination.port,
            ae_title=self._destination.ae_title,
            evt_handlers=[*steadied(refusals), (evt.EVT_N_EVENT_REPORT, self._reported)],
            tls_args=self._tls(),
        )
        if not association.is_established:
            raise away(self._destination, _why_not(refusals))
        try:
            yield association
        except RuntimeError:
            # pynetdicom's word for an association that ended between two messages.
            raise away(self._destination, "closed the association") from None
        finally:
            if association.is_established:
                association.release()

    def _tls(self) -> Any:
        if self._destination.tls is None:
            return None
        try:
            return client_context(self._destination.tls), self._destination.host
        except (OSError, ssl.SSLError) as error:
            raise away(
                self._destination,
                f"the certificates for it cannot be used ({type(error).__name__})",
                hint="look at destinations.tls: certificate, key and authority",
            ) from None

    # -- storing -----------------------------------------------------------------------------------------------

    def _store(self, association: Association, result: Result) -> str:
        """Why the object was refused for good; empty where it is there now."""
        if not _takes(association, result.sop_class):
            return f"0x{_CLASS_NOT_SUPPORTED:04X}, it does not take objects of this class"
        if not association.is_established:
            raise away(self._destination, "closed the association")
        status = association.send_c_store(result.parsed()).get("Status")
        if status is None:
            raise away(self._destination, "did not answer in time, or closed the association")
        if status in (_SUCCESS, _DUPLICATE) or status in _WARNINGS:
            return ""
        if is_permanent(status):
            return f"0x{status:04X}"
        raise away(self._destination, f"cannot store just now (0x{status:04X})")

    def _there(self, association: Association, result: Result) -> bool:
        """Whether it has the object already, as far as it can be asked."""
        if not _takes(association, FIND) or not association.is_established:
            return False
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = result.dataset.StudyInstanceUID
        query.SeriesInstanceUID = result.dataset.SeriesInstanceUID
        query.SOPInstanceUID = result.uid
        found = False
        for status, answer in association.send_c_find(query, FIND):
            if status.get("Status") in _PENDING and answer is not None:
                found |= str(answer.get("SOPInstanceUID") or "") == result.uid
        return found

    # -- commitment --------------------------------------------------------------------------------------------

    def _ask(self, association: Association, references: Sequence[tuple[str, str]]) -> tuple[bool, str]:
        if not self._destination.commitment:
            return False, ""
        if not _takes(association, PUSH_MODEL) or not association.is_established:
            return False, "it does not offer storage commitment"
        uid = self._commitments.begin(self._delivery)
        status, _ = association.send_n_action(request_of(uid, references), REQUEST, PUSH_MODEL, PUSH_INSTANCE)
        if "Status" not in status:
            return False, "no answer to the request for storage commitment"  # it may have been taken all the same
        if status.Status != _SUCCESS:
            self._commitments.abandon(uid)
            return False, f"it did not take the request for storage commitment (0x{status.Status:04X})"
        deadline = time.monotonic() + self._wait_seconds
        while (answer := self._commitments.answer_to(uid)) is None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        if answer is None:
            return False, "storage commitment asked for"
        return not answer.failed, "it does not keep what it was sent" if answer.failed else ""

    def _reported(self, event: evt.Event) -> tuple[int, None]:
        """An answer on the association that asked."""
        report = event.event_information
        known = self._commitments.answered(str(report.get("TransactionUID") or "?"), failed_in(report))
        return (_SUCCESS, None) if known else (0x0112, None)  # no such object instance


def is_permanent(status: int) -> bool:
    """Whether a C-STORE status means that the same object will be refused again (PS3.4 B.2.3, PS3.7 C)."""
    return 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF or status in _NEVER


def _takes(association: Association, sop_class: str) -> bool:
    return any(context.abstract_syntax == sop_class for context in association.accepted_contexts)


def _why_not(refusals: Refusals) -> str:
    if refusals.heard is not None:
        return f"refuses our association ({refusals.heard.reason_str})"
    return "cannot be reached, or does not speak DICOM there"
