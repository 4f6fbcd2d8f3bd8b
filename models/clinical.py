"""Clinical variables as text, and what a number in such text is."""

from __future__ import annotations

import math
import re
from typing import Final

CHARACTERISTICS: Final = (
    "PatientAge",
    "PatientSex",
    "PatientSize",
    "PatientWeight",
    "EthnicGroup",
    "SmokingStatus",
    "PregnancyStatus",
    "PatientSexNeutered",
)
"""Keywords of what de-identification keeps of a patient (PS3.15, Retain Patient Characteristics)."""
SITE: Final = "site"
CONTRAST: Final = "contrast"
"""Beside the keywords: a pseudonym of where an image was made, and "with" or "without" contrast medium."""
EQUIPMENT: Final = ("Modality", "Manufacturer", "ManufacturerModelName", "SliceThickness")
"""Keywords of what the catalog keeps of a series."""

_AGE: Final = re.compile(r"(\d{1,3})([DWMY])")  # DICOM's Age String, PS3.5 6.2
_YEARS: Final = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def as_number(text: str) -> float | None:
    """The number that `text` is, an age string ("061Y", "018M") in years; None where it is none, or not finite."""
    plain = text.strip()
    if age := _AGE.fullmatch(plain):
        return int(age[1]) * _YEARS[age[2]]
    try:
        value = float(plain)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def same_value(one: str, other: str) -> bool:
    """Whether two categories are one: case and blanks around do not count, nor how a number is written."""
    a, b = one.strip().casefold(), other.strip().casefold()
    return a == b or (as_number(a) is not None and as_number(a) == as_number(b))
