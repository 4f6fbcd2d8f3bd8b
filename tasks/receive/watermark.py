"""Free space under the spool: too little of it is told to people, once an hour, and no association is accepted then.

The catalog may lie on the same disk, so the message is written while there is still room: the watermark is above zero.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from models.errors import TransientError
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.spool import Spool
from tasks.stores.tables import now

EVENT: Final = "nocturne.spool.full"
RESOURCE: Final = "nocturne.spool"

log = logging.getLogger(__name__)


class Watermark:
    """At least `free_bytes` are to stay free under the spool."""

    def __init__(self, spool: Spool, catalog: Catalog, free_bytes: int) -> None:
        self._spool, self._catalog, self._wanted = spool, catalog, free_bytes
        self._told: datetime | None = None

    def holds(self) -> bool:
        """Whether there is room. Where there is not, it is told."""
        free = self._spool.free_bytes()
        if free >= self._wanted:
            return True
        log.warning("an association is rejected: %d bytes are free under the spool, %d must stay", free, self._wanted)
        self._tell(free)
        return False

    def _tell(self, free: int) -> None:
        hour = now().astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if hour == self._told:
            return
        payload = {"spool": {"free_bytes": free, "wanted_bytes": self._wanted, "hour": hour.isoformat()}}
        try:
            with self._catalog.transaction() as session:
                Outbox(self._catalog).put(session, "event", f"spool-full-{hour:%Y-%m-%dT%H}", payload)
        except TransientError as error:
            log.warning("that the spool is full could not be noted: %s", error)
            return
        self._told = hour
