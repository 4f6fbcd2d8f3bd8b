"""How the vault's key is changed while nothing is lost.

A rotation may be killed at any moment. Each record names the key that sealed it, every key that is there opens, and
the next one seals as soon as it is there: so there is no moment at which a record cannot be read, and rotating again
goes on. A key file is only ever put in place whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import func, select, update

from models.errors import SettingsError
from tasks.stores.catalog import Catalog
from tasks.stores.heartbeats import signs
from tasks.stores.locks import held
from tasks.stores.places import sync_folder
from tasks.stores.secrets import KEY, NEXT, RETIRED, key_id, load_or_create_secret, vault_keys
from tasks.stores.tables import VaultRow
from tasks.stores.vault import Vault

_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation came to. `by_hand`: the key is in the environment, where only its owner can change it."""

    before: str
    after: str
    records: int
    unreadable: int
    by_hand: bool


def records_by_key(catalog: Catalog) -> dict[str, int]:
    """How many records each key seals, by the key's public name."""
    with catalog.reading() as session:
        query = select(VaultRow.key_id, func.count()).group_by(VaultRow.key_id)
        return {str(name): int(number) for name, number in session.execute(query)}


def rotate(home: Path, catalog: Catalog, given: bytes | None = None) -> Rotated:
    """Seal every record of the vault under a new key, and let it take the place of the old one.

    Raises SettingsError while processes of this installation run: they would go on with the key that they know.
    """
    if running := [sign.name for sign in signs(home) if sign.alive]:
        raise SettingsError(
            f"these processes run and know the old key: {', '.join(sorted(running))}",
            where=KEY,
            hint="stop `nocturne up` or its services on every host, rotate, and start them again",
            reason="processes-run",
        )
    busy = SettingsError("another process rotates this key", where=KEY, hint="wait for it to end", reason="rotating")
    with held(home / f".{KEY}.lock", busy):
        current = given or load_or_create_secret(home / KEY)
        following = load_or_create_secret(home / NEXT)
        if following == current:  # the owner has put it into the environment, or the last step was not reached
            (home / NEXT).unlink()
            sync_folder(home)
            return Rotated(key_id(current), key_id(current), *_sealed_anew(home, catalog, given), by_hand=False)
        records, unreadable = _sealed_anew(home, catalog, given)
        _retire(home, current)
        if given is None:
            (home / NEXT).replace(home / KEY)
            sync_folder(home)
        for draft in home.glob(f".{NEXT}.*"):  # of a rotation that was killed while it made the key
            draft.unlink()
        return Rotated(key_id(current), key_id(following), records, unreadable, by_hand=given is not None)


def _sealed_anew(home: Path, catalog: Catalog, given: bytes | None) -> tuple[int, int]:
    """Bring every record under the key that seals now; how many were, and how many no key here opens."""
    keys = vault_keys(home, given)
    vault = Vault(catalog, keys.sealing, *keys.opening)
    known = {key_id(key) for key in keys.opening}
    done, last = 0, 0
    while True:
        with catalog.transaction() as session:
            rows = session.scalars(
                select(VaultRow)
                .where(VaultRow.key_id.in_(known), VaultRow.number > last)
                .order_by(VaultRow.number)
                .limit(_AT_ONCE)
            ).all()
            for row in rows:
                values = vault.resealed(row)
                # Whoever has written it meanwhile has sealed another value.
                unchanged = (VaultRow.number == row.number, VaultRow.nonce == row.nonce)
                change = update(VaultRow).where(*unchanged).values(**values)
                session.execute(change.execution_options(synchronize_session=False))
        if not rows:
            break
        done, last = done + len(rows), rows[-1].number
    return done, sum(n for name, n in records_by_key(catalog).items() if name != vault.key_id)


def _retire(home: Path, key: bytes) -> None:
    """Keep the old key for backups of before; whole or not at all."""
    kept = home / f"{RETIRED}{key_id(key)}"
    if kept.exists():
        return
    draft = home / f".{kept.name}.part"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(kept)
    sync_folder(home)
