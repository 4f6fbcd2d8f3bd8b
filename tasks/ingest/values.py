"""Values as they stand in a data set: decoded without touching it, and checked to be what they claim to be."""

from __future__ import annotations

import copy
import re
from typing import Any

from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from models.errors import HeaderError
from tasks.ingest.confidentiality import KIND, keyword

Element = DataElement | RawDataElement

PADDING = " \0"
DUMMY_TEXT = "ANONYMIZED"
_DUMMIES: dict[str, Any] = {
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "urn:anonymized",
    "IS": "0",
    "DS": "0",
}
_OLDEST_AGE = 89
_WIDTH = {"US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "AT": 4, "FD": 8, "UV": 8, "SV": 8}
_DECIMAL = re.compile(rb"[0-9eE+\-. \\]*")
_CODE = re.compile(rb"[A-Za-z0-9_ .+\-/\\]*")
_LONGEST_CODE = 16
_AGE = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_ALLOWED = {
    "PatientSex": frozenset("MFO"),
    "PatientSexNeutered": frozenset({"ALTERED", "UNALTERED"}),
    "SmokingStatus": frozenset({"YES", "NO", "UNKNOWN"}),
}
"""The defined terms of those patient characteristics that are codes."""


class UnreadableError(Exception):
    """A value that is not what its representation says."""


def strings(element: Element, source: Dataset) -> list[str]:
    """The values as text without padding; [] where it is empty. Raises UnreadableError where it holds items."""
    value = element.value
    if isinstance(value, bytes) and element.VR not in (None, "LO", "SH", "ST", "LT", "UT", "UC", "PN"):
        value = value.decode("ascii", "replace")
    elif isinstance(element, RawDataElement):
        value = decoded(source, int(element.tag)).value
    if value is None or value == "" or value == b"":
        return []
    if isinstance(value, Sequence):
        raise UnreadableError
    values = value.split("\\") if isinstance(value, str) else [value] if not _is_multiple(value) else value
    return [str(v).strip(PADDING) for v in values]


def _is_multiple(value: Any) -> bool:
    return isinstance(value, list | tuple | MultiValue)


def plain(source: Dataset, name: str) -> str:
    """An element by its keyword as text without padding, "" where it is absent.

    Raises HeaderError where it cannot be read: what it is asked for is not to be guessed.
    """
    try:
        return str(source.get(name) or "").strip(PADDING)
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise HeaderError(f"{name} cannot be read ({type(error).__name__})", reason="unreadable-header") from None


def held(source: Dataset, tag: int) -> Element:
    """The element as the data set holds it. Raises UnreadableError for what has no value, such as a stray delimiter."""
    try:
        return source.get_item(tag)
    except Exception:  # noqa: BLE001 - as above
        raise UnreadableError from None


def decoded(source: Dataset, tag: int) -> DataElement:
    """The element as pydicom reads it."""
    element = held(source, tag)
    if isinstance(element, DataElement):
        return element
    try:
        # Not source[tag], which would replace the raw element in the caller's data set.
        return convert_raw_data_element(element, encoding=source.original_character_set, ds=source)
    except Exception:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise UnreadableError from None


def copied(element: Element) -> Element:
    """The same element for another data set."""
    # Raw elements are immutable; of others the holder is copied, not the value.
    return element if isinstance(element, RawDataElement) else copy.copy(element)


def alternatives(tag: int) -> tuple[str, ...]:
    """The value representations that the dictionary allows."""
    entry = DicomDictionary.get(tag)
    return tuple(entry[0].split(" or ")) if entry else ()


def is_number(element: Element, vr: str) -> bool:
    """Whether the bytes can be nothing but numbers."""
    value = element.value
    if vr not in ("DS", "IS"):
        return not isinstance(value, bytes) or len(value) % _WIDTH[vr] == 0
    return _DECIMAL.fullmatch(_bytes(value)) is not None


def is_code(element: Element) -> bool:
    """Whether it is made of what codes are made of, or of defined terms where it has some."""
    plain = _bytes(element.value)
    if _CODE.fullmatch(plain) is None:
        return False
    values = [part.strip() for part in plain.decode("ascii").split("\\")]
    allowed = _ALLOWED.get(keyword(int(element.tag)))
    if allowed is not None:
        return all(value in allowed or not value for value in values)
    return all(len(value) <= _LONGEST_CODE for value in values)


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value.rstrip(b"\0 ")
    values = value if _is_multiple(value) else [] if value is None else [value]
    return "\\".join(map(str, values)).encode("utf-8", "replace")


def dummy(tag: int, vr: str) -> Any:
    """A value that fits and means nothing."""
    kind = KIND.get(vr)
    if kind == "sequence":
        coded = keyword(tag).endswith("CodeSequence")
        return [code_item(DUMMY_TEXT, DUMMY_TEXT, "99NOCTURNE") if coded else Dataset()]
    if kind == "bulk" or vr == "UN":
        return b"\0\0"
    return _DUMMIES.get(vr, 0 if kind == "number" else DUMMY_TEXT)


def capped_age(element: Element, source: Dataset) -> DataElement | None:
    """An age above 89 years is told as 90, as all such ages are one group under HIPAA (45 CFR 164.514(b)(2)(i)(C))."""
    ages = []
    for value in strings(element, source):
        match = _AGE.fullmatch(value)
        if value and match is None:
            return None
        old = match is not None and match[2] == "Y" and int(match[1]) > _OLDEST_AGE
        ages.append(f"{_OLDEST_AGE + 1:03d}Y" if old else value)
    return DataElement(int(element.tag), "AS", ages or None)


def code_item(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """One item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
