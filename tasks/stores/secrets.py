"""Secrets of one installation: 32 random bytes in a file that its owner alone can read, or from the environment.

secret                  what pseudonyms are made with
vault.key               what seals the vault
vault.key.next          what is to seal it from now on: there while a rotation is on its way (`tasks.stores.keys`)
vault.key.retired-<id>  what sealed it before: for backups of the catalog from before, until those are gone
"""

from __future__ import annotations

import binascii
import os
import secrets
import stat
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from models.errors import SettingsError
from models.hashing import content_key
from tasks.stores.places import sync_folder

SECRET_BYTES = 32
KEY: Final = "vault.key"
NEXT: Final = f"{KEY}.next"
RETIRED: Final = f"{KEY}.retired-"


@dataclass(frozen=True, slots=True)
class VaultKeys:
    """`sealing` seals; `opening` are the others by which records may be sealed."""

    sealing: bytes = field(repr=False)
    opening: tuple[bytes, ...] = field(default=(), repr=False)


def vault_keys(home: Path, given: bytes | None = None) -> VaultKeys:
    """The keys of this home; `given` is the one from the environment, in place of the file `vault.key`.

    The file is made where there is none. Raises SettingsError for a file that others may read, or of another length.
    """
    current = given or load_or_create_secret(home / KEY)
    following = load_secret(home / NEXT) if (home / NEXT).exists() else None
    retired = [load_secret(path) for path in sorted(home.glob(f"{RETIRED}*"))]
    if following is None or following == current:
        return VaultKeys(current, tuple(retired))
    return VaultKeys(following, (current, *retired))


def key_id(key: bytes) -> str:
    """A key's public name, 8 hexadecimal digits: it says nothing of the key."""
    return content_key("vault key", key.hex())[:8]


def load_or_create_secret(path: Path) -> bytes:
    """The secret in `path`; a new one is made, for good, where there is none.

    Of several processes that start at once all get the same. Raises SettingsError for a file that others may read,
    of another length, or in a place that cannot be used.
    """
    try:
        if not path.exists():
            _create(path)
    except OSError as error:
        raise _unusable(path, error) from None
    return load_secret(path)


def load_secret(path: Path) -> bytes:
    """The secret in `path`. Raises SettingsError as `load_or_create_secret`, and where there is none."""
    try:
        return _load(path)
    except OSError as error:
        raise _unusable(path, error) from None


def secret_from_text(text: str, *, where: str = "secret") -> bytes:
    """The 32 bytes that an environment variable gives as 64 hexadecimal digits or as Base64."""
    plain = text.strip()
    try:
        secret = bytes.fromhex(plain) if len(plain) == 2 * SECRET_BYTES else b64decode(plain, validate=True)
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise SettingsError(
            f"not {SECRET_BYTES} bytes as hexadecimal digits or Base64",
            where=where,
            hint=f"make one with: openssl rand -hex {SECRET_BYTES}",
            reason="secret-malformed",
        )
    return secret


def _unusable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the secret cannot be read or made: {error.strerror}",
        where=path.name,
        hint="give the user that runs Nocturne its own folder, or set the secret in the environment",
        reason="secret-unusable",
    )


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        secret = file.read(SECRET_BYTES + 1)
    if mode & ~0o600:
        raise SettingsError(
            f"its mode {mode:04o} lets others read it", where=path.name, hint="chmod 600", reason="secret-exposed"
        )
    if len(secret) != SECRET_BYTES:
        raise SettingsError(
            f"{len(secret) if len(secret) <= SECRET_BYTES else 'more than 32'} bytes instead of {SECRET_BYTES}",
            where=path.name,
            hint="restore it from the backup: a new one would break the link to everything ingested so far",
            reason="secret-malformed",
        )
    return secret


def _create(path: Path) -> None:
    """Write and sync under a name of our own, then link: the name appears once, with all bytes, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
        sync_folder(path.parent)
    finally:
        draft.unlink()
