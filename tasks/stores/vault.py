"""The vault: original identifiers, sealed with AES-256-GCM, used only to send results back and to find things again.

Kind and key are authenticated with each record, so that one sealed record cannot be passed off as another.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.orm import Session

from models.errors import IntegrityError, NotFoundError, SettingsError
from models.hashing import content_key
from tasks.stores.catalog import Catalog
from tasks.stores.tables import VaultRow, now

_NONCE_BYTES: Final = 12
_LONG: Final = 512
_LEVEL: Final = 1
_ZLIB: Final = b"x"


class Vault:
    """Sealed JSON records by (kind, key). `key` is 32 bytes and stays outside the database."""

    def __init__(self, catalog: Catalog, key: bytes) -> None:
        if len(key) != 32:
            raise SettingsError(f"the vault's key must have 32 bytes, not {len(key)}", where="vault")
        self._catalog = catalog
        self._cipher = AESGCM(key)
        self.key_id = content_key("vault key", key.hex())[:8]

    def put(self, kind: str, key: str, value: Any) -> None:
        """Seal a JSON value; an earlier one under the same kind and key is replaced."""
        self.put_many(kind, {key: value})

    def put_many(self, kind: str, values: Mapping[str, Any]) -> None:
        """Seal many in one transaction."""
        with self._catalog.transaction() as session:
            for key, value in values.items():
                self.seal(session, kind, key, value)

    def seal(self, session: Session, kind: str, key: str, value: Any) -> None:
        """As `put`, within a transaction."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, _packed(value), _bound(kind, key))
        row = {"key_id": self.key_id, "nonce": nonce, "sealed": sealed, "created_at": now()}
        self._catalog.put(session, VaultRow, {"kind": kind, "key": key}, row)

    def get(self, kind: str, key: str) -> Any:
        """The record. Raises NotFoundError; SettingsError for another vault key; IntegrityError if it was changed."""
        rows = self._catalog.find(VaultRow, VaultRow.kind == kind, VaultRow.key == key)
        if not rows:
            raise NotFoundError(f"the vault holds no {kind} record for it", where=key)
        return self._open(rows[0])

    def get_many(self, kind: str, keys: Iterable[str]) -> dict[str, Any]:
        """Those records that exist."""
        rows = self._catalog.among(VaultRow, VaultRow.key, keys, VaultRow.kind == kind)
        return {row.key: self._open(row) for row in rows}

    def remove(self, kind: str, key: str) -> None:
        """Forget one record."""
        with self._catalog.transaction() as session:
            session.query(VaultRow).filter(VaultRow.kind == kind, VaultRow.key == key).delete()

    def _open(self, row: VaultRow) -> Any:
        if row.key_id != self.key_id:
            raise SettingsError(
                f"sealed with vault key {row.key_id}, this one is {self.key_id}",
                where="vault",
                hint="restore the key file that belongs to this catalog",
            )
        try:
            return _unpacked(self._cipher.decrypt(row.nonce, row.sealed, _bound(row.kind, row.key)))
        except (InvalidTag, ValueError, zlib.error):  # ValueError: a nonce of an impossible length
            raise IntegrityError("a vault record was changed after it was sealed", where=row.key) from None


def _packed(value: Any) -> bytes:
    """JSON, deflated where it is long: the scan of a series says much the same of each instance."""
    told = json.dumps(value).encode()
    return zlib.compress(told, _LEVEL) if len(told) > _LONG else told


def _unpacked(told: bytes) -> Any:
    """No JSON begins as zlib does."""
    return json.loads(zlib.decompress(told) if told[:1] == _ZLIB else told)


def _bound(kind: str, key: str) -> bytes:
    return f"{kind}\0{key}".encode()
