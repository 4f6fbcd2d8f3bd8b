from __future__ import annotations

from dataclasses import replace

import pytest

from models.dataset import Dataset
from models.report import DataCard, Spread
from tasks.evaluate.reporting.card import card
from tasks.evaluate.reporting.story import composition, measures
from tests.tasks.evaluate.reporting.samples import a_dataset, a_package, a_segmentation


def tallied(found: DataCard, attribute: str) -> dict[str, tuple[int, int, int]]:
    """Cases in training, validation and test."""
    return {
        t.value: (t.cases["train"], t.cases["validation"], t.cases["test"])
        for t in found.tallies
        if t.attribute == attribute
    }


def test_patients_are_counted_by_split_and_by_what_they_share() -> None:
    found = card(a_dataset())
    assert tallied(found, "all") == {"": (2, 0, 4)}
    assert tallied(found, "scanner") == {"Acme Pulsar": (1, 0, 3), "Bolt": (1, 0, 0), "not told": (0, 0, 1)}
    assert list(tallied(found, "scanner"))[-1] == "not told"
    assert tallied(found, "sex") == {}
    rows = composition(found.tallies).rows
    assert rows[0] == ("All", "", "2 / 2", "–", "4 / 4", "6 / 6")
    assert rows[2][:2] == ("Scanner", "Acme Pulsar")
    assert rows[3][0] == ""


def test_two_images_of_a_patient_are_two_cases_of_one_patient() -> None:
    dataset = a_dataset()
    again = replace(dataset.rows[0], volume="second")
    (everyone, *_) = card(Dataset("d", dataset.kind, dataset.classes, (*dataset.rows, again))).tallies
    assert (everyone.patients["test"], everyone.cases["test"]) == (4, 5)


def test_sex_and_age_are_told_where_headers_know_them() -> None:
    headers = {"v0": {"PatientSex": "F", "PatientAge": "070Y"}, "v4": {"PatientSex": "M", "PatientAge": "018M"}}
    found = card(a_dataset(), characteristics=headers)
    assert tallied(found, "sex") == {"female": (0, 0, 1), "male": (1, 0, 0), "not told": (1, 0, 3)}
    (age,) = (m for m in found.measures if m.unit == "years")
    assert age.splits == {
        "train": Spread(n=1, low=1.5, median=1.5, high=1.5),
        "test": Spread(n=1, low=70, median=70, high=70),
    }


def test_labels_sizes_are_those_of_cases_that_bear_them() -> None:
    judged = a_segmentation()
    found = card(a_dataset(), a_package(), judged.cases)
    sizes = {m.what: m.splits for m in found.measures if m.unit == "mL"}
    liver, cyst = sizes["volume of liver, where there"], sizes["volume of cyst, where there"]
    assert liver["train"] == Spread(n=2, low=1.0, median=2.0, high=3.0)
    assert cyst["train"] == Spread(n=1, low=0.014, median=0.014, high=0.014)
    assert liver["test"].n == 4
    assert liver["test"].median == pytest.approx((2 * 64 - 4) * 2 / 1000)
    assert "2 (1–3)" in measures(found.measures).rows[0]


def test_classes_of_images_and_made_ones_are_counted() -> None:
    rows = a_dataset().rows
    labelled = tuple(replace(row, target=index % 2, synthetic=index == 5) for index, row in enumerate(rows))
    found = card(Dataset("d", "classification", ("well", "sick"), labelled))
    assert tallied(found, "made") == {"made images": (1, 0, 0)}
    assert tallied(found, "class") == {"well": (1, 0, 2), "sick": (0, 0, 2)}
    several = tuple(replace(row, classes=(1, 1) if i == 0 else (0, 0)) for i, row in enumerate(rows))
    found = card(Dataset("d", "classification", ("a", "b"), several))
    assert tallied(found, "class") == {"none of them": (2, 0, 3), "a": (0, 0, 1), "b": (0, 0, 1)}
