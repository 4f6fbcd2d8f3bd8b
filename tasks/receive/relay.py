"""From the outbox to Prefect: each event is posted until the server has acknowledged it.

The server is spoken to by HTTP (`POST /events`): Prefect's own client returns normally where a server is down. The
event's id is a function of the study version, the alert or the hour that it tells of: a repeat is the same event.
"""

from __future__ import annotations

import uuid
from datetime import UTC
from typing import Any, Final

import httpx

from models.errors import NotFoundError
from tasks.receive import watermark
from tasks.stores import alerts
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Message, Outbox
from tasks.stores.tables import AlertRow, StudyVersionRow

EVENT: Final = "nocturne.study.arrived"
RESOURCE: Final = "nocturne.study."
_EVENTS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://nocturne.invalid/events")
_LEASE_SECONDS: Final = 60.0
_TIMEOUT: Final = httpx.Timeout(10.0)


class EventRelay:
    """Posts what is due to the server at `api` (…/api); `auth` is user:password, where the server asks for it."""

    def __init__(self, catalog: Catalog, api: str, auth: str = "") -> None:
        self._catalog, self._outbox = catalog, Outbox(catalog)
        user, _, password = auth.partition(":")
        self._client = httpx.Client(
            base_url=api.rstrip("/"), auth=(user, password) if auth else None, timeout=_TIMEOUT, trust_env=False
        )

    def run_due(self, limit: int = 50) -> int:
        """Post what is due; returns how many were acknowledged. The first that fails ends the turn."""
        told = 0
        while told < limit and (taken := self._outbox.take("event", lease_seconds=_LEASE_SECONDS)):
            for message in taken:
                if not self._post(message):
                    return told
                told += 1
        return told

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _post(self, message: Message) -> bool:
        try:
            response = self._client.post("/events", json=[self._event(message)])
        except httpx.TransportError as error:
            self._outbox.postponed(
                message.message, f"the server is away: {type(error).__name__}", attempts=message.attempts
            )
            return False
        if response.is_success:
            self._outbox.acknowledged(message.message)
            return True
        hint = " — look at prefect_auth" if response.status_code in (401, 403) else ""
        error_told = f"the server answered {response.status_code}{hint}"
        self._outbox.postponed(message.message, error_told, attempts=message.attempts)
        return False

    def _event(self, message: Message) -> dict[str, Any]:
        if "alert" in message.payload:
            return self._alert(message)
        return _full(message) if "spool" in message.payload else self._arrived(message)

    def _alert(self, message: Message) -> dict[str, Any]:
        key = str(message.payload["alert"])
        alert = self._catalog.get(AlertRow, key)
        if alert is None:
            raise NotFoundError("an event tells of an alert that is not there", where=key)
        told = {
            name: getattr(alert, name) for name in ("kind", "measure", "how", "value", "threshold", "cases", "told")
        }
        return {
            "id": str(event_id(key)),
            "occurred": alert.created_at.astimezone(UTC).isoformat(),
            "event": alerts.DAMAGED if alert.kind == alerts.FILES else alerts.EVENT,
            "resource": {
                "prefect.resource.id": alerts.RESOURCE + alert.name,
                "prefect.resource.name": f"model {alert.name}",
            },
            "payload": {"alert": key, "model": alert.name, "package": alert.package, **told},
        }

    def _arrived(self, message: Message) -> dict[str, Any]:
        key = str(message.payload["version"])
        version = self._catalog.get(StudyVersionRow, key)
        if version is None:
            raise NotFoundError("an event tells of a study version that is not there", where=key)
        return {
            "id": str(event_id(key)),
            "occurred": version.completed_at.astimezone(UTC).isoformat(),
            "event": EVENT,
            "resource": {"prefect.resource.id": RESOURCE + key, "prefect.resource.name": f"study {key[:12]}"},
            "payload": {"version": {"key": key}, **{k: v for k, v in message.payload.items() if k != "version"}},
        }


def _full(message: Message) -> dict[str, Any]:
    spool = message.payload["spool"]
    return {
        "id": str(event_id(message.message)),
        "occurred": spool["hour"],
        "event": watermark.EVENT,
        "resource": {"prefect.resource.id": watermark.RESOURCE, "prefect.resource.name": "spool"},
        "payload": spool,
    }


def event_id(key: str) -> uuid.UUID:
    """The id of the event that tells of a study version, an alert, or a message of its own."""
    return uuid.uuid5(_EVENTS, key)
