"""The unit of PET values, and body-weight SUV where the header allows it.

SUVbw = activity concentration (Bq/ml) × body weight (g) / decay-corrected dose (Bq); QIBA's vendor-neutral recipe for
images corrected to the start of the scan (QIBA Wiki, "Standardized Uptake Value"), without its guesses from private
elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from models.errors import HeaderError
from models.volume import Unit

LEAST_DOSE_BQ: Final = 1e5
"""Some scanners write MBq where DICOM wants Bq: such a dose is no dose."""
LONGEST_DECAY: Final = 10.0
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Scale:
    """Factor to apply to rescaled values, the unit they are in then, and what a reader should know."""

    factor: float
    unit: Unit
    notes: tuple[str, ...] = ()


def pet_scale(dataset: Any, acquired: str) -> Scale:
    """How to express a PET series. `acquired`: its earliest acquisition, YYYYMMDDHHMMSS.F; `dataset`: any header.

    Raises HeaderError where an element that it depends on cannot be read.
    """
    try:
        return _scale(dataset, acquired)
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise HeaderError(f"unreadable PET header ({type(error).__name__})", reason="unreadable-header") from None


def _scale(dataset: Any, acquired: str) -> Scale:
    unit = _text(dataset, "Units").upper()
    if unit == "GML":
        kind = _text(dataset, "SUVType").upper()
        if kind in ("", "BW"):
            return Scale(1.0, "SUVbw")
        return Scale(1.0, "stored", ("SUV of another kind than by body weight",))
    if unit == "CNTS":
        philips = (0x7053, 0x1000) in dataset or (0x7053, 0x0010) in dataset
        return Scale(1.0, "CNTS", ("counts: a private SUV factor was not applied" if philips else "counts, no SUV",))
    if unit != "BQML":
        return Scale(1.0, "stored", ("PET in a unit that is not known",))
    factor, why = _body_weight_factor(dataset, acquired)
    return Scale(factor, "SUVbw") if factor else Scale(1.0, "BQML", (f"no SUV: {why}",))


def _body_weight_factor(dataset: Any, acquired: str) -> tuple[float, str]:
    """(g/Bq, "") or (0, why not)."""
    corrected = {str(c).upper() for c in _many(dataset.get("CorrectedImage"))}
    if not {"ATTN", "DECY"} <= corrected:
        return 0.0, "not corrected for attenuation and decay"
    items = dataset.get("RadiopharmaceuticalInformationSequence")
    drug = items[0] if items else {}
    weight, dose = _number(dataset, "PatientWeight"), _number(drug, "RadionuclideTotalDose")
    half_life = _number(drug, "RadionuclideHalfLife")
    if not weight or not dose or not half_life or min(weight, dose, half_life) <= 0:
        return 0.0, "weight, dose or half-life is missing"
    if dose < LEAST_DOSE_BQ:
        return 0.0, "the dose is implausible"
    correction = _text(dataset, "DecayCorrection").upper()
    if correction == "ADMIN":
        return weight * 1000.0 / dose, ""
    if correction != "START":
        return 0.0, "decay correction is to no known time"
    elapsed = _elapsed(dataset, drug, acquired)
    if elapsed is None:
        return 0.0, "the time from injection to scan is not known"
    if elapsed > LONGEST_DECAY * half_life:
        return 0.0, "the time from injection to scan is implausible"
    return weight * 1000.0 / (dose * math.exp2(-elapsed / half_life)), ""


def _elapsed(dataset: Any, drug: Any, acquired: str) -> float | None:
    """Seconds from injection to the start of the scan, across midnight too."""
    first = _moment(acquired)
    scan = _moment(_text(dataset, "SeriesDate") + _text(dataset, "SeriesTime")) or first
    # A series time after the first acquisition was rewritten by post-processing.
    if scan is None or (first is not None and scan > first):
        scan = first
    if scan is None:
        return None
    injected = _moment(_text(drug, "RadiopharmaceuticalStartDateTime"))
    if injected is not None and timedelta(0) <= scan - injected:
        return (scan - injected).total_seconds()
    time = _text(drug, "RadiopharmaceuticalStartTime")
    injected = _moment(scan.strftime("%Y%m%d") + time) if time else None
    if injected is None:
        return None
    return ((scan - injected) % _DAY).total_seconds()


def _moment(text: str) -> datetime | None:
    """A date and time of at least minutes: YYYYMMDDHHMM[SS[.F]]; a time zone is left out, all are the scanner's."""
    plain = text.strip().partition("+")[0].partition("-")[0]
    digits, _, fraction = plain.partition(".")
    try:
        moment = datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S") if len(digits) >= 12 else None
    except ValueError:
        return None
    if moment is None or not fraction.isdecimal():
        return moment
    return moment + timedelta(microseconds=int(fraction[:6].ljust(6, "0")))


def _many(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _number(dataset: Any, name: str) -> float | None:
    value = dataset.get(name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
