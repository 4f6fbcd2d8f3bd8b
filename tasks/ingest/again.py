"""Volumes whose stored bytes are damaged, taken anew from where they came: the spool, or a folder, while it has them.

Their keys follow from the files, so that everything which refers to them holds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from models.errors import IntegrityError, NocturneError, NotFoundError, PermanentError
from models.refs import VolumeRef
from models.series import ScannedSeries
from tasks.ingest.run import ORIGINALS, SCANNED, Ingestor, IngestRules
from tasks.stores.house import Stores
from tasks.stores.tables import QuarantineRow, VolumeRow, now

_log = logging.getLogger(__name__)
CORRUPT: Final = IntegrityError.default_reason


def mend(stores: Stores, refs: Sequence[VolumeRef]) -> tuple[tuple[VolumeRef, NocturneError], ...]:
    """Take those of the volumes anew that are damaged; returns those that could not be, each with what to do."""
    left: list[tuple[VolumeRef, NocturneError]] = []
    for ref in refs:
        try:
            stores.volumes.verify(ref.key)
        except (IntegrityError, NotFoundError) as damage:
            try:
                take_again(stores, ref)
                _log.warning("volume %s was damaged and has been taken anew from its source", ref.key)
            except PermanentError as error:
                _log.warning("volume %s is damaged (%s) and cannot be taken anew: %s", ref.key, damage.what, error)
                left.append((ref, error))
                continue
        _resolve(stores, ref)
    return tuple(left)


def mend_set_aside(stores: Stores) -> tuple[tuple[VolumeRef, NocturneError], ...]:
    """As `mend`, of every volume that was set aside because it is damaged."""
    rows = stores.catalog.find(QuarantineRow, QuarantineRow.reason == CORRUPT, QuarantineRow.resolved_at.is_(None))
    known = stores.catalog.among(VolumeRow, VolumeRow.volume, sorted({row.subject for row in rows}))
    return mend(stores, [VolumeRef.to(row.volume) for row in known])


def take_again(stores: Stores, ref: VolumeRef) -> None:
    """Ingest a volume's series once more. Raises NotFoundError where its files are gone, IntegrityError where they are
    others by now.
    """
    row = stores.catalog.get(VolumeRow, ref.key)
    if row is None:
        raise NotFoundError("no such volume", where=ref.key)
    record = stores.vault.get(ORIGINALS, row.series)
    paths = sorted({path for path, _ in record["sources"].values()})
    if lost := sum(not Path(path).exists() for path in paths):
        raise NotFoundError(
            f"{lost} of the {len(paths)} files that it was made of are gone",
            where=ref.key,
            hint="send its study again, or ingest it from where it is kept",
            reason="no-source",
        )
    # What was accepted once is accepted again.
    rules = IngestRules(frozenset({row.modality}), colour=row.channels > 1)
    shared = stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer
    ingestor = Ingestor(*shared, rules, workers=stores.workers)
    stores.volumes.place.remove(ref.key)
    for found in ingestor.scan(paths).series:
        if _is(stores, found.key, record):
            ingestor.ingest(found)
    if not stores.volumes.exists(ref.key):
        raise IntegrityError(
            "the files that it was made of are others by now",
            where=ref.key,
            hint="send its study again, or ingest it from where it is kept",
            reason="no-source",
        )
    stores.volumes.verify(ref.key)


def _is(stores: Stores, scanned: str, record: Any) -> bool:
    return ScannedSeries.from_json(stores.vault.get(SCANNED, scanned)).series_uid == record["series_uid"]


def _resolve(stores: Stores, ref: VolumeRef) -> None:
    stores.catalog.change(
        QuarantineRow,
        QuarantineRow.subject == ref.key,
        QuarantineRow.reason == CORRUPT,
        QuarantineRow.resolved_at.is_(None),
        resolved_at=now(),
    )
