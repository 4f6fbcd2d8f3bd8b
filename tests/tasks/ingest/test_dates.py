"""Dates move by whole days; what is no date is told apart."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.ingest.dates import check_time, shift_date, shift_datetime, utc_offset


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("20200301", "20200229"),
        ("2020.03.01", "20200229"),
        ("20200301 ", "20200229"),
        ("20190229", None),
        ("00010101", None),
        ("20200301-20200401", None),
        ("202003", None),
        ("２０２００３０１", None),
        ("Smith", None),
    ],
)
def test_dates(text: str, moved: str | None) -> None:
    assert shift_date(text, -1) == moved


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("10", "10"),
        ("1011", "1011"),
        ("101112.123456", "101112.123456"),
        ("10:11:12", "101112"),
        ("235960", "235960"),
        ("24", None),
        ("1060", None),
        ("101112.1234567", None),
        ("John", None),
    ],
)
def test_times(text: str, told: str | None) -> None:
    assert check_time(text) == told


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("2020", "2019"),
        ("202003", "202002"),
        ("20200301", "20200229"),
        ("2020030110", "2020022910"),
        ("20200301101112.5", "20200229101112.5"),
        ("20200301101112.5+0100", "20200229101112.5+0100"),
        ("20200301101112+9900", None),
        ("202003011.5", None),
        ("20201301", None),
        ("Smith", None),
    ],
)
def test_date_times(text: str, moved: str | None) -> None:
    assert shift_datetime(text, -1) == moved


def test_date_times_in_local_time() -> None:
    assert shift_datetime("20200301233000+0000", -1, timedelta(hours=2)) == "20200301013000"
    assert shift_datetime("20200301233000", -1, timedelta(hours=2)) == "20200229233000"
    assert shift_datetime("20200301+0100", -1, timedelta(hours=2)) == "20200229+0100"


@pytest.mark.parametrize(("text", "hours"), [("+0130", 1.5), ("-0500", -5), ("", None), ("CET", None), ("+9900", None)])
def test_zones(text: str, hours: float | None) -> None:
    assert utc_offset(text) == (None if hours is None else timedelta(hours=hours))
