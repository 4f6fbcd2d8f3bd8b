"""Which series of a study make one case, and what is told of the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from models.errors import NothingToDoError
from models.recipe import Recipe
from tasks.ingest.build import build_dataset
from tasks.ingest.clinical import import_clinical
from tasks.stores.tables import VolumeRow
from tests.tasks.ingest.test_build import House

PETCT = """
name = "petct"
kind = "segmentation"
labels.source = "RTSTRUCT"
images.channels = [{ name = "PET", modality = "PT" }, { name = "CT", modality = "CT", min_slices = 5 }]
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def pet(house: House, number: int, **more: object) -> VolumeRow:
    row = house.image(f"P-{number}", study=f"2.25.90{number}", modality="PT", unit="SUVbw", spacing_z=4.0, **more)
    house.mask(row, "GTV", source="RTSTRUCT")
    return row


def ct(house: House, number: int, **more: object) -> VolumeRow:
    return house.image(f"P-{number}", study=f"2.25.90{number}", **more)


def test_a_case_is_a_studys_series_one_for_each_channel(house: House) -> None:
    wanted = {}
    for number in range(6):
        other = ct(house, number)
        wanted[pet(house, number).volume] = (other.volume,)
    house.image("P-7", modality="CT")  # a study without PET
    pet(house, 8)  # and one without CT
    house.image("P-0", study="2.25.999", modality="CT")  # of the patient, but of another study
    built = house.build(PETCT)
    assert {row.volume: row.channels for row in built.dataset.rows} == wanted
    assert built.reasons == {"missing-channel-CT": 1, "no-case-of-its-study": 2}
    assert house.store.read(built.ref.key) == built.dataset
    assert house.build(PETCT).existed


def test_of_several_candidates_one_rule_chooses_and_the_others_are_told(house: House) -> None:
    reference = pet(house, 1)
    coarse, close = ct(house, 1, spacing_z=9.0), ct(house, 1, spacing_z=4.2)
    newer = ct(house, 1, spacing_z=4.2)
    few, scout = ct(house, 1, shape_z=3), ct(house, 1, channels=3)
    (row,) = house.build(PETCT).dataset.rows
    assert (row.volume, row.channels) == (reference.volume, (newer.volume,))
    left = {e.subject: e.reason for e in house.build(PETCT).exclusions}
    assert left == {
        coarse.volume: "other-series-taken",
        close.volume: "other-series-taken",
        few.volume: "too-few-slices",
        scout.volume: "colour",
    }


def test_another_frame_of_reference_needs_registration(house: House) -> None:
    reference = pet(house, 1)
    other = ct(house, 1, frame_of_reference="2.25.8")
    with pytest.raises(NothingToDoError, match="1 other-frame-of-reference-CT"):
        house.build(PETCT)
    unknown = ct(house, 1, frame_of_reference=None)
    with pytest.raises(NothingToDoError):
        house.build(PETCT)
    rigid = PETCT + 'images.registration = "rigid"'
    (row,) = house.build(rigid).dataset.rows
    assert row.channels == (unknown.volume,)
    same = ct(house, 1, spacing_z=9.0)
    (row,) = house.build(rigid).dataset.rows
    assert (row.volume, row.channels) == (reference.volume, (same.volume,)), "the same frame goes before all else"
    assert other.volume in {e.subject for e in house.build(rigid).exclusions}


def test_missing_channels_may_be_learnt(house: House) -> None:
    for number in range(6):
        pet(house, number)
    with pytest.raises(NothingToDoError, match="no usable case"):
        house.build(PETCT)
    learn = PETCT + 'images.missing = "learn"'
    with pytest.raises(NothingToDoError, match="no training case has the channel 'CT'"):
        house.build(learn)
    for number in range(6, 16):
        ct(house, number)
        pet(house, number)
    rows = house.build(learn).dataset.rows
    assert Counter(bool(row.channels[0]) for row in rows) == {True: 10, False: 6}


def test_a_series_that_fits_two_channels_is_not_guessed(house: House) -> None:
    text = PETCT.replace('{ name = "PET", modality = "PT" }', '{ name = "all", modality = ["PT", "CT"] }')
    pet(house, 1)
    ct(house, 1)
    with pytest.raises(NothingToDoError, match="1 fits-several-channels"):
        house.build(text)


def test_of_a_partner_received_twice_the_last_reception_counts(house: House) -> None:
    pet(house, 1)
    ct(house, 1, series_uid="2.25.55", spacing_z=4.0)
    again = ct(house, 1, series_uid="2.25.55", spacing_z=5.0)
    (row,) = house.build(PETCT).dataset.rows
    assert row.channels == (again.volume,)


def test_clinical_values_stand_in_the_dataset(house: House, tmp_path: Path) -> None:
    for number in range(8):
        house.image(f"P-{number}", modality="CR")
        house.value("sick" if number % 2 else "well", patient=f"P-{number}")
    table = tmp_path / "t.csv"
    table.write_text("PatientID,age\n" + "".join(f"P-{n},{50 + n}\n" for n in range(7)))
    import_clinical(table, name="t", catalog=house.catalog, pseudonymizer=house.pseudonymizer)
    recipe = {
        "name": "chest",
        "kind": "classification",
        "images": {"modality": "CR"},
        "labels": {"source": "CSV"},
        "clinical": {"variables": [{"name": "Age"}]},
    }
    text = Recipe.model_validate(recipe)
    built = build_dataset(text, house.catalog, house.store, house.pseudonymizer)
    assert built.dataset.variables == ("Age",)
    assert {row.patient: row.clinical for row in built.dataset.rows} == {
        f"P-{n}": (str(50 + n) if n < 7 else "",) for n in range(8)
    }
    assert house.store.read(built.ref.key) == built.dataset
    table.write_text("PatientID,age\nP-7,57\n")
    import_clinical(table, name="t", catalog=house.catalog, pseudonymizer=house.pseudonymizer)
    assert build_dataset(text, house.catalog, house.store, house.pseudonymizer).ref != built.ref
