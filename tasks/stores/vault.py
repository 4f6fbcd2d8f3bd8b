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
from tasks.stores.catalog import Catalog
from tasks.stores.secrets import key_id
from tasks.stores.tables import VaultRow, now

_NONCE_BYTES: Final = 12
_LONG: Final = 512
_LEVEL: Final = 1
_ZLIB: Final = b"x"


class Vault:
    """Sealed JSON records by (kind, key). `key` is 32 bytes and stays outside the database; `others` only open."""

    def __init__(self, catalog: Catalog, key: bytes, *others: bytes) -> None:
        for one in (key, *others):
            if len(one) != 32:
                raise SettingsError(f"the vault's key must have 32 bytes, not {len(one)}", where="vault")
        self._catalog = catalog
        self.key_id = key_id(key)
        self._cipher = AESGCM(key)
        self._others = {key_id(one): AESGCM(one) for one in others}

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
        row = {**self._sealed(kind, key, _packed(value)), "created_at": now()}
        self._catalog.put(session, VaultRow, {"kind": kind, "key": key}, row)

    def resealed(self, row: VaultRow) -> dict[str, Any]:
        """The columns of the same record under this vault's own key. Raises as `get`."""
        return self._sealed(row.kind, row.key, self._opened(row))

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

    def _sealed(self, kind: str, key: str, told: bytes) -> dict[str, Any]:
        nonce = os.urandom(_NONCE_BYTES)
        return {
            "key_id": self.key_id,
            "nonce": nonce,
            "sealed": self._cipher.encrypt(nonce, told, _bound(kind, key)),
        }

    def _open(self, row: VaultRow) -> Any:
        told = self._opened(row)
        try:
            return _unpacked(told)
        except (ValueError, zlib.error):
            raise IntegrityError("a vault record was changed after it was sealed", where=row.key) from None

    def _opened(self, row: VaultRow) -> bytes:
        cipher = self._cipher if row.key_id == self.key_id else self._others.get(row.key_id)
        if cipher is None:
            raise SettingsError(
                f"sealed with vault key {row.key_id}, this one is {self.key_id}",
                where="vault",
                hint="restore the key file that belongs to this catalog",
            )
        try:
            return cipher.decrypt(row.nonce, row.sealed, _bound(row.kind, row.key))
        except (InvalidTag, ValueError):  # ValueError: a nonce of an impossible length
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
