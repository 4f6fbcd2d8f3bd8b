"""Pseudonyms are stable, keyed and valid."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import RE_VALID_UID, CTImageStorage

from models.errors import HeaderError, SettingsError
from models.pseudonyms import Pseudonymizer

ONE, OTHER = Pseudonymizer(b"1" * 32), Pseudonymizer(b"2" * 32)
ROOTS = st.lists(st.integers(0, 10**9), min_size=2, max_size=6)
UIDS = ROOTS.map(lambda parts: ".".join(map(str, [1, 3, *parts])))
IDS = st.text(st.characters(exclude_characters=" \0", codec="utf-8"), min_size=1, max_size=64)


@given(UIDS)
def test_a_uid_is_valid_stable_and_keyed(original: str) -> None:
    pseudonym = ONE.uid(original)
    assert re.fullmatch(RE_VALID_UID, pseudonym)
    assert len(pseudonym) <= 64
    assert pseudonym.startswith("2.25.")
    assert pseudonym == Pseudonymizer(b"1" * 32).uid(original + "\0") != OTHER.uid(original)


@given(UIDS, UIDS)
def test_two_uids_stay_two(one: str, other: str) -> None:
    assert (ONE.uid(one) == ONE.uid(other)) == (one == other)


def test_standard_uids_stay() -> None:
    assert ONE.uid(CTImageStorage) == CTImageStorage


@given(IDS)
def test_a_patient_keeps_one_name_whatever_the_padding(patient: str) -> None:
    name = ONE.patient(patient)
    assert re.fullmatch(r"P-[A-Z2-7]{16}", name)
    assert name == ONE.patient(f"{patient} ") == ONE.patient(f" {patient}\0")
    assert name != OTHER.patient(patient)
    assert name != ONE.patient(patient, issuer="elsewhere")
    assert patient == name or patient not in name or len(patient) < 4


def test_kinds_do_not_share_pseudonyms() -> None:
    assert ONE.patient("12345")[2:16] != ONE.accession("12345")[2:]
    assert len(ONE.accession("12345")) == 16


@given(IDS)
def test_dates_move_back_by_up_to_ten_years(patient: str) -> None:
    days = ONE.date_shift_days(patient)
    assert -3650 <= days <= -1
    assert days == ONE.date_shift_days(f"{patient} ")


@given(IDS, IDS)
def test_draws_are_stable_shares(pseudonym: str, label: str) -> None:
    drawn = ONE.draw(pseudonym, label)
    assert 0 <= drawn < 1
    assert drawn == ONE.draw(pseudonym, label)


def test_draws_are_spread_evenly() -> None:
    drawn = sorted(ONE.draw(f"P-{n}", "split") for n in range(2000))
    assert max(abs(value - rank / 2000) for rank, value in enumerate(drawn)) < 0.05


@pytest.mark.parametrize("call", [ONE.patient, ONE.accession, ONE.uid, ONE.date_shift_days])
def test_nothing_has_no_pseudonym(call: object) -> None:
    with pytest.raises(HeaderError):
        call(" \0")  # type: ignore[operator]


@pytest.mark.fault("access/secrets")
def test_the_secret_must_be_whole_and_stays_secret() -> None:
    with pytest.raises(SettingsError):
        Pseudonymizer(b"short")
    assert "111" not in repr(ONE)
    assert ONE.key_id != OTHER.key_id
    assert re.fullmatch(r"[0-9a-f]{8}", ONE.key_id)
