"""What `nocturne pull` does: ask an archive for studies, and fetch of them what is not here yet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydicom.config import disable_value_validation
from sqlalchemy import select

from models.errors import NotFoundError, SettingsError
from models.hospital import Peer
from models.pseudonyms import Pseudonymizer
from tasks.receive.asking import Archive, FoundSeries, FoundStudy, Order, Wanted
from tasks.receive.dicomweb import DicomwebArchive
from tasks.receive.query import DimseArchive
from tasks.receive.reception import Reception
from tasks.stores.catalog import Catalog
from tasks.stores.peek import is_uid
from tasks.stores.results import delivered
from tasks.stores.tables import InstanceRow

_UNNAMED: Final = ("bad-uid", "some of it is named by what is no UID, and cannot be asked for")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failed:
    """What of a study did not come. `study` is its pseudonym; `instances` is 0 where nobody knows how many."""

    study: str
    reason: str
    what: str
    instances: int = 0


@dataclass(frozen=True, slots=True)
class Pulled:
    """`studies` were found to fit; `instances` came of them, `new` ones among those that were not in the spool."""

    studies: int
    instances: int
    new: int
    failed: tuple[Failed, ...] = ()


def pull(
    peer: Peer,
    reception: Reception,
    catalog: Catalog,
    pseudonymizer: Pseudonymizer,
    *,
    ae_title: str,
    since: timedelta | None = None,
    modality: str | None = None,
    study_uids: Sequence[str] = (),
    destination: str = "",
) -> Pulled:
    """Fetch the studies of the last `since` (with `modality`), or those of `study_uids` (original ones).

    `ae_title` is ours; a peer that moves sends to `destination`, or to that. What is here already is not fetched
    again, so that a pull that was interrupted goes on when it is repeated. A study of which everything came is told
    to be whole. Raises ServiceUnavailableError where the peer does not answer, SettingsError where it refuses us.
    """
    puller = _Puller(reception, catalog, pseudonymizer)
    wanted = _wanted(since, modality, study_uids)
    # pydicom's warnings quote the values that it does not like; what we use of them is checked here.
    with (
        disable_value_validation(),
        _opened(peer, catalog, pseudonymizer, ae_title, destination or ae_title) as archive,
    ):
        for study in archive.studies(wanted):
            if wanted.fits(study):
                puller.pull(archive, study, wanted)
    return puller.pulled()


def _wanted(since: timedelta | None, modality: str | None, study_uids: Sequence[str]) -> Wanted:
    if since is None and not study_uids:
        raise SettingsError("says neither since when nor which studies", where="pull", hint="give --since, as in 1d")
    if not all(is_uid(uid) for uid in study_uids):
        raise SettingsError("a study is named by what is no UID", where="pull", hint="give Study Instance UIDs")
    # Archives keep local time, as scanners do.
    earliest = datetime.now() - since if since is not None and not study_uids else None
    return Wanted(earliest, modality.upper() if modality else None, tuple(dict.fromkeys(study_uids)))


@contextmanager
def _opened(
    peer: Peer, catalog: Catalog, pseudonymizer: Pseudonymizer, ae_title: str, destination: str
) -> Iterator[Archive]:
    archive: Archive = (
        DicomwebArchive(peer)
        if peer.url
        else DimseArchive(peer, catalog, pseudonymizer, ae_title=ae_title, destination=destination)
    )
    try:
        yield archive
    finally:
        archive.close()


class _Puller:
    """Fetches study by study, and adds up."""

    def __init__(self, reception: Reception, catalog: Catalog, pseudonymizer: Pseudonymizer) -> None:
        self._reception, self._catalog, self._pseudonymizer = reception, catalog, pseudonymizer
        self._studies = self._instances = self._new = 0
        self._failed: list[Failed] = []

    def pulled(self) -> Pulled:
        """All of it so far."""
        return Pulled(self._studies, self._instances, self._new, tuple(self._failed))

    def pull(self, archive: Archive, study: FoundStudy, wanted: Wanted) -> None:
        """One study."""
        key = self._pseudonymizer.uid(study.uid)
        if not is_uid(study.uid):
            self._fail(key, *_UNNAMED)
            return
        try:
            series = archive.series(study.uid)
        except NotFoundError:
            self._fail(key, "gone", "the study was there a moment ago")
            return
        if not _has(series, wanted.modality):
            return
        self._studies += 1
        unnamed = self._unnamed(key, series)
        if not (orders := self._orders(key, series)):
            return
        fetched = archive.fetch(study.uid, orders, self._reception)
        self._instances += fetched.instances
        self._new += fetched.new
        self._reception.flush()
        for reason, what, instances in fetched.failed:
            self._fail(key, reason, what, instances)
        if not fetched.failed and not unnamed:
            self._reception.told_whole(study.uid)

    def _unnamed(self, key: str, series: Sequence[FoundSeries]) -> bool:
        """Whether some of it cannot be asked for: it is told."""
        instances = sum(not is_uid(i.uid) for one in series for i in one.instances)
        if instances or not all(is_uid(one.uid) for one in series):
            self._fail(key, *_UNNAMED, instances)
            return True
        return False

    def _orders(self, key: str, series: Sequence[FoundSeries]) -> list[Order]:
        """What is neither here nor ours."""
        with self._catalog.reading() as session:
            here = set(session.scalars(select(InstanceRow.sop_uid).where(InstanceRow.study == key)))
        passed_over = here | delivered(self._catalog, key)
        orders = []
        for one in series:
            if not is_uid(one.uid):
                continue
            missing = tuple(
                i for i in one.instances if is_uid(i.uid) and self._pseudonymizer.uid(i.uid) not in passed_over
            )
            if missing or not one.instances:
                orders.append(Order(one.uid, missing, len(missing) == len(one.instances), one.modality))
        return orders

    def _fail(self, study: str, reason: str, what: str, instances: int = 0) -> None:
        _log.warning("study %s: %s", study, what)
        self._failed.append(Failed(study, reason, what, instances))


def _has(series: Sequence[FoundSeries], modality: str | None) -> bool:
    """Whether a study has a series of `modality`; an archive that tells none is believed to."""
    told = {one.modality for one in series if one.modality}
    return modality is None or not told or modality in told
