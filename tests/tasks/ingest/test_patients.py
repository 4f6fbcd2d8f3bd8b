"""Patients as cases in a dataset: one class for all of a patient's series."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.ingest.test_build import House

RECIPE = """
name = "chest"
kind = "classification"
images.modality = "CT"
labels = {source = "CSV", of = "patient"}
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    for number in range(10):
        for study in range(2):
            house.image(f"P-{number}", study=f"2.25.77{number}{study}")
        house.value("Ill" if number % 2 else "well", patient=f"P-{number}")
    return house


def test_every_series_has_the_patients_class(house: House) -> None:
    built = house.build(RECIPE)
    assert len(built.dataset.rows) == 20
    for row in built.dataset.rows:
        assert built.dataset.classes[row.target] == ("Ill" if int(row.patient[2:]) % 2 else "well")


def test_one_told_series_speaks_for_the_others(house: House) -> None:
    told = house.image("P-20")
    untold = [house.image("P-20") for _ in range(2)]
    again = house.image("P-20", series_uid=untold[0].series_uid, study=untold[0].study)
    nobody = house.image("P-21")
    house.value("ill", patient="P-20", study=told.study, series_uid=told.series_uid)
    built = house.build(RECIPE)
    mine = {row.volume: row.target for row in built.dataset.rows if row.patient == "P-20"}
    assert set(mine) == {told.volume, untold[1].volume, again.volume}
    assert len(set(mine.values())) == 1
    left = {exclusion.subject: exclusion.reason for exclusion in built.exclusions}
    assert left[nobody.volume] == left[untold[0].volume] == "no-label"


def test_a_patient_with_contradicting_series_is_left_out(house: House) -> None:
    one, other = house.image("P-30"), house.image("P-30")
    house.value("well", patient="P-30", study=one.study)
    house.value("ill", patient="P-30", study=other.study)
    built = house.build(RECIPE)
    assert built.reasons == {"contradicting-labels": 2}
    assert {e.subject for e in built.exclusions} == {one.volume, other.volume}
    assert "P-30" not in {row.patient for row in built.dataset.rows}
    by_series = house.build(RECIPE.replace(', of = "patient"', ""))
    assert "P-30" in {row.patient for row in by_series.dataset.rows}


def test_spellings_do_not_contradict(house: House) -> None:
    one, other = house.image("P-40"), house.image("P-40")
    house.value("ill", patient="P-40", study=one.study)
    house.value("ILL", patient="P-40", study=other.study)
    assert house.build(RECIPE).reasons == {}
