"""Keyed pseudonyms: the same identity has the same pseudonym in one installation, and another one elsewhere."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b32encode
from dataclasses import dataclass, field

from models.errors import HeaderError, SettingsError

SECRET_BYTES = 32
STANDARD_ROOT = "1.2.840.10008."
LONGEST_SHIFT_DAYS = 3650
_PADDING = " \0"


@dataclass(frozen=True, slots=True)
class Pseudonymizer:
    """HMAC-SHA256 under one secret of 32 bytes, with a label of its own for each kind of identity.

    Without the secret a pseudonym can be neither reversed nor guessed at; with it a pseudonym can be made again,
    which is how a result finds its way home through the vault.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise SettingsError(f"the pseudonym secret must have {SECRET_BYTES} bytes, not {len(self.secret)}")

    @property
    def key_id(self) -> str:
        """A public fingerprint of the secret, 8 hexadecimal digits: tells two installations' pseudonyms apart."""
        return self._digest("key id")[:4].hex()

    def uid(self, original: str) -> str:
        """`2.25.` and the integer of a version 8 UUID (RFC 9562), at most 44 characters. DICOM's own UIDs stay."""
        plain = original.strip(_PADDING)
        if plain.startswith(STANDARD_ROOT):
            return plain
        if not plain:
            raise HeaderError("an empty UID has no pseudonym", reason="no-uid")
        number = int.from_bytes(self._digest("uid", plain)[:16])
        number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
        return f"2.25.{number}"

    def patient(self, patient_id: str, issuer: str | None = None) -> str:
        """`P-` and 16 letters or digits. `issuer` keeps equal IDs of two hospitals apart where both are received."""
        return "P-" + self._name("patient", _identity(patient_id), (issuer or "").strip(_PADDING))

    def accession(self, number: str) -> str:
        """`A-` and 14 letters or digits: fits SH."""
        return "A-" + self._name("accession", _identity(number))[:14]

    def site(self, institution: str) -> str:
        """`site-` and 6 hexadecimal digits. How the name is spaced, and its case, do not count."""
        return "site-" + self._digest("site", _identity(" ".join(institution.split()).casefold()))[:3].hex()

    def date_shift_days(self, patient_id: str) -> int:
        """By how many days all dates of a patient move: −1 to −3650."""
        drawn = int.from_bytes(self._digest("dates", _identity(patient_id))[:8])
        return -(1 + drawn % LONGEST_SHIFT_DAYS)

    def draw(self, pseudonym: str, label: str) -> float:
        """A number in [0, 1) that is always the same for this pseudonym and purpose."""
        return (int.from_bytes(self._digest("draw", label, pseudonym)[:8]) >> 11) / 2**53

    def _name(self, *parts: str) -> str:
        return b32encode(self._digest(*parts)[:10]).decode()

    def _digest(self, label: str, *parts: str) -> bytes:
        # Lengths first: no two lists of parts give the same message.
        message = "".join(f"{len(part)}:{part}" for part in (label, *parts))
        return hmac.digest(self.secret, message.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _identity(value: str) -> str:
    """`value` without the padding that DICOM adds. Raises HeaderError where nothing is left."""
    plain = value.strip(_PADDING)
    if not plain:
        raise HeaderError("an empty identifier has no pseudonym", reason="no-patient-id")
    return plain
