"""Splits are frozen, keep their quotas, and do not depend on the order in which patients are named."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset import SPLITS, Dataset, DatasetRow, SplitName, assign_splits
from models.recipe import Split

SHARES = Split()
Placed = dict[str, tuple[str, SplitName]]


def draw(patient: str) -> float:
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:6]) / 2**48


strata_of_patients = st.dictionaries(
    st.integers(0, 9999).map(lambda n: f"P-{n}"), st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(strata_of_patients, st.randoms())
def test_everybody_new_is_placed_whatever_the_order(strata: dict[str, str], shuffler: random.Random) -> None:
    chosen = assign_splits(strata, {}, SHARES, draw)
    assert chosen.keys() == strata.keys()
    shuffled = list(strata.items())
    shuffler.shuffle(shuffled)
    assert assign_splits(dict(shuffled), {}, SHARES, draw) == chosen


@settings(max_examples=150, deadline=None)
@given(strata_of_patients)
def test_quotas_hold_overall_and_in_each_stratum(strata: dict[str, str]) -> None:
    chosen = assign_splits(strata, {}, SHARES, draw)
    everybody = Counter(chosen.values())
    for split in SPLITS:
        assert abs(everybody[split] - getattr(SHARES, split) * len(strata)) <= 1.5
    for stratum, size in Counter(strata.values()).items():
        placed = Counter(chosen[patient] for patient, own in strata.items() if own == stratum)
        for split in SPLITS:
            assert abs(placed[split] - getattr(SHARES, split) * size) <= 1 + 1e-9, (stratum, split)


@settings(max_examples=100, deadline=None)
@given(strata_of_patients, st.integers(1, 7), st.randoms())
def test_nights_of_arrivals_move_nobody_and_keep_the_quotas(
    strata: dict[str, str], a_night: int, shuffler: random.Random
) -> None:
    arrivals = sorted(strata)
    shuffler.shuffle(arrivals)
    placed: Placed = {}
    for start in range(0, len(arrivals), a_night):
        known = {patient: strata[patient] for patient in arrivals[: start + a_night]}
        chosen = assign_splits(known, placed, SHARES, draw)
        assert not chosen.keys() & placed.keys()
        placed |= {patient: (strata[patient], split) for patient, split in chosen.items()}
    assert placed.keys() == strata.keys()
    for stratum, size in Counter(strata.values()).items():
        counted = Counter(split for own, split in placed.values() if own == stratum)
        for split in SPLITS:
            assert abs(counted[split] - getattr(SHARES, split) * size) <= 1 + 1e-9


def test_an_imported_split_is_kept_and_made_up_for() -> None:
    placed: Placed = {f"P-{n}": ("a", "test") for n in range(10)}
    chosen = assign_splits({f"P-{n}": "a" for n in range(50)}, placed, SHARES, draw)
    assert len(chosen) == 40
    assert Counter(chosen.values()) == {"train": 35, "validation": 5}


def test_the_draw_decides_who_takes_which_seat() -> None:
    strata = {f"P-{n}": "a" for n in range(100)}
    first = assign_splits(strata, {}, SHARES, draw)
    second = assign_splits(strata, {}, SHARES, lambda patient: draw("other" + patient))
    assert Counter(first.values()) == Counter(second.values()) == {"train": 70, "validation": 10, "test": 20}
    assert first != second


def row(**changes: object) -> DatasetRow:
    usual = DatasetRow(
        patient="P-A",
        study="2.25.1",
        series="b" * 32,
        volume="1" * 32,
        label="2" * 32,
        split="train",
        target=-1,
        modality="CT",
        manufacturer="",
        model_name="",
        shape_z=3,
        shape_y=4,
        shape_x=5,
        spacing_z=1.0,
        spacing_y=0.7,
        spacing_x=0.7,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_a_dataset_is_its_content() -> None:
    rows = (row(), row(patient="P-B", volume="3" * 32, split="test"))
    one = Dataset("x", "segmentation", ("liver",), rows)
    assert one.key == Dataset("y", "segmentation", ("liver",), rows[::-1]).key
    for other in (
        Dataset("x", "segmentation", ("lesion",), rows),
        Dataset("x", "segmentation", ("liver",), rows[:1]),
        Dataset("x", "segmentation", ("liver",), (rows[0], replace(rows[1], split="validation"))),
    ):
        assert other.key != one.key
    assert one.counts() == {"train": (1, 1), "validation": (0, 0), "test": (1, 1)}
