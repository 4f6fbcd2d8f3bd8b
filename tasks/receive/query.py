"""An archive by DIMSE (PS3.4 Annex C): C-FIND to ask, level by level; C-GET or C-MOVE to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date, datetime, timedelta
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association

from models.errors import ServiceUnavailableError
from models.hospital import Peer
from models.pseudonyms import Pseudonymizer
from tasks.receive.asking import Fetched, FoundInstance, FoundSeries, FoundStudy, Order, Wanted, when
from tasks.receive.associations import associated
from tasks.receive.reception import Reception
from tasks.receive.retrieve import Getter, Mover
from tasks.stores.catalog import Catalog
from tasks.stores.peek import is_uid

FIND: Final = UID("1.2.840.10008.5.1.4.1.2.2.1")
"""Study Root Query/Retrieve Information Model - FIND."""
_PENDING: Final = frozenset({0xFF00, 0xFF01})
_SUCCESS: Final = 0x0000


class _TooManyError(ServiceUnavailableError):
    """The archive does not give as many matches at once."""


class DimseArchive:
    """One archive. Where it moves instead of handing over, `destination` is the AE title that it knows us by."""

    def __init__(
        self,
        peer: Peer,
        catalog: Catalog,
        pseudonymizer: Pseudonymizer,
        *,
        ae_title: str,
        destination: str,
    ) -> None:
        self._peer, self._ae_title = peer, ae_title
        self._mover = Mover(peer, catalog, pseudonymizer, ae_title=ae_title, destination=destination)
        self._getter = Getter(peer, ae_title=ae_title)
        self._held = ExitStack()
        self._association: Association | None = None

    def studies(self, wanted: Wanted) -> list[FoundStudy]:
        """All that may fit; a time with too many studies for one answer is halved until they fit."""
        if wanted.study_uids:
            found = [match for uid in wanted.study_uids for match in self._find(_study_query(uid=uid))]
        elif wanted.earliest is None:
            found = self._find(_study_query(modality=wanted.modality))
        else:
            found = self._studies_since(wanted, wanted.earliest.date())
        return list(dict.fromkeys(study for match in found if (study := _study(match)) is not None))

    def series(self, study: str) -> list[FoundSeries]:
        """All series; of one that the archive cannot list no instances are known."""
        query = _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality="")
        named = dict.fromkeys(
            (_text(match, "SeriesInstanceUID"), _text(match, "Modality")) for match in self._find(query)
        )
        return [FoundSeries(uid, modality, self._instances(study, uid)) for uid, modality in named if uid]

    def fetch(self, study: str, orders: Sequence[Order], reception: Reception) -> Fetched:
        """By C-GET or C-MOVE, as the settings say."""
        self._release()  # a transfer may take longer than the archive keeps an idle association
        if self._peer.retrieve == "c-get":
            return self._getter.fetch(study, orders, reception)
        return self._mover.fetch(study, orders)

    def close(self) -> None:
        """Release the association."""
        self._release()

    # -- C-FIND -------------------------------------------------------------------------------------------------

    def _studies_since(self, wanted: Wanted, first: date) -> list[Dataset]:
        try:
            return self._find(_study_query(dates=wanted.dates, modality=wanted.modality))
        except _TooManyError:
            return self._studies_between(wanted, first, datetime.now().date() + timedelta(days=1))

    def _studies_between(self, wanted: Wanted, first: date, last: date) -> list[Dataset]:
        if first == last:
            return self._find(_study_query(dates=f"{first:%Y%m%d}", modality=wanted.modality))
        middle = first + (last - first) // 2
        found = []
        for start, end in ((first, middle), (middle + timedelta(days=1), last)):
            try:
                dates = f"{start:%Y%m%d}-{end:%Y%m%d}"
                found += self._find(_study_query(dates=dates, modality=wanted.modality))
            except _TooManyError:
                if start == end:
                    raise
                found += self._studies_between(wanted, start, end)
        return found

    def _instances(self, study: str, series: str) -> tuple[FoundInstance, ...]:
        if not is_uid(series):
            return ()
        query = _query("IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID="", SOPClassUID="")
        found = (
            FoundInstance(_text(match, "SOPInstanceUID"), _text(match, "SOPClassUID")) for match in self._find(query)
        )
        return tuple(dict.fromkeys(one for one in found if one.uid))

    def _find(self, query: Dataset) -> list[Dataset]:
        found = []
        for status, match in self._associate().send_c_find(query, FIND):
            code = status.get("Status")
            if code is None:
                self._release()
                raise ServiceUnavailableError("broke off a query", where=self._peer.name)
            if code in _PENDING:
                found += [match] if match is not None else []
            elif code & 0xFF00 == 0xA700:
                raise _TooManyError("has too many matches for one answer", where=self._peer.name)
            elif code != _SUCCESS:
                raise ServiceUnavailableError(f"refuses a query with status 0x{code:04X}", where=self._peer.name)
        return found

    def _associate(self) -> Association:
        if self._association is None or not self._association.is_established:
            self._release()
            self._association = self._held.enter_context(associated(self._peer, self._ae_title, FIND))
        return self._association

    def _release(self) -> None:
        self._association = None
        self._held.close()


def _study_query(*, uid: str = "", dates: str = "", modality: str | None = None) -> Dataset:
    return _query("STUDY", StudyInstanceUID=uid, StudyDate=dates, StudyTime="", ModalitiesInStudy=modality or "")


def _query(level: str, **keys: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _study(match: Dataset) -> FoundStudy | None:
    uid = _text(match, "StudyInstanceUID")
    if not uid:
        return None
    modalities: Any = match.get("ModalitiesInStudy") or ()
    listed = (modalities,) if isinstance(modalities, str) else tuple(map(str, modalities))
    return FoundStudy(uid, when(_text(match, "StudyDate"), _text(match, "StudyTime")), listed)


def _text(match: Dataset, keyword: str) -> str:
    return str(match.get(keyword) or "").strip(" \0")
