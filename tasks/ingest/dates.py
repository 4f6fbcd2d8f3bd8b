"""Moving dates (PS3.15 E.3.6): whole days, so that times of day and intervals stay as they were."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta

_DATE = re.compile(r"(\d{4})(\.?)(\d{2})\2(\d{2})", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3])(:?([0-5]\d)(:?([0-5]\d|60)(\.\d{1,6})?)?)?", re.ASCII)
_MOMENT = re.compile(r"(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\.\d{1,6})?([+-]\d{4})?", re.ASCII)
_ZONE = re.compile(r"([+-])(0\d|1[0-4])([0-5]\d)", re.ASCII)
_EARLIEST = (1, 1, 1, 0, 0, 0)
_WIDTHS = (4, 6, 8, 10, 12, 14)


def utc_offset(text: str) -> timedelta | None:
    """A time zone like `+0100`; None where it is not one."""
    match = _ZONE.fullmatch(text.strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return -offset if match[1] == "-" else offset


def shift_date(text: str, days: int) -> str | None:
    """DA (or the old form with points), moved. None where it is no date."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    try:
        moved = date(int(match[1]), int(match[3]), int(match[4])) + timedelta(days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def check_time(text: str) -> str | None:
    """TM (or the old form with colons) as it is. None where it is no time of day."""
    plain = text.strip()
    return plain.replace(":", "") if _TIME.fullmatch(plain) else None


def shift_datetime(text: str, days: int, local: timedelta | None = None) -> str | None:
    """DT in its own precision, moved. None where it is none.

    A value with a time zone is told in `local` time where that is known, so that it fits the DA and TM beside it once
    Timezone Offset From UTC is gone; otherwise it keeps its zone.
    """
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        return None
    fields = [int(part) for part in match.groups()[:6] if part is not None]
    fraction, zone = match[7] or "", match[8] or ""
    offset = utc_offset(zone) if zone else None
    if (fraction and len(fields) < 6) or (zone and offset is None):
        return None
    try:
        moved = datetime(*fields, *_EARLIEST[len(fields) :]) + timedelta(days)  # type: ignore[arg-type]
        if offset is not None and local is not None and len(fields) > 3:
            moved, zone = moved + (local - offset), ""
    except (ValueError, OverflowError):
        return None
    whole = f"{moved.year:04d}{moved:%m%d%H%M%S}"
    return whole[: _WIDTHS[len(fields) - 1]] + fraction + zone
