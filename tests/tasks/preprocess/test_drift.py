"""When data count as other than those that a plan was made for, and when not."""

from __future__ import annotations

import numpy as np
import pytest

from models.plan import CaseFacts, ChannelLevels, Drift, Fingerprint
from tasks.preprocess.drift import drifted, measure_drift


def cohort(
    count: int,
    *,
    seed: int = 0,
    spacing: float = 1.0,
    bright: float = 0.0,
    size: float = 1.0,
    counts: tuple[int, ...] = (),
) -> Fingerprint:
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        level = 100 + bright + 20 * rng.standard_normal()
        cases.append(
            CaseFacts(
                volume=f"{seed}-{number}",
                shape=(20, 40, 40),
                spacing=(spacing * (1 + 0.02 * rng.standard_normal()), 0.7, 0.7),
                cropped_shape=(20, 40, 40),
                class_voxels=(int(size * 1000 * (1 + 0.3 * rng.random())), 0),
                median=level,
                iqr=10,
                levels=(ChannelLevels(p05=level - 50, median=level, p95=level + 80),),
            )
        )
    return Fingerprint(
        dataset="d", modality="CT", cases=tuple(cases), intensities=(), crop_ratio=1.0, class_counts=counts
    )


def far(before: Fingerprint, now: Fingerprint, makers: tuple[dict[str, int], dict[str, int]] = ({}, {})) -> list[str]:
    return [m.measure for m in drifted(measure_drift(before, now, makers, ("liver", "lesion")))]


def test_more_of_the_same_is_no_drift() -> None:
    for seed in range(1, 6):
        makers = {"A": 30, "B": 10}, {"A": 47, "B": 13}
        assert far(cohort(40), cohort(60, seed=seed), makers) == []
        assert far(cohort(8), cohort(9, seed=seed)) == []


@pytest.mark.parametrize(
    ("change", "measure"),
    [
        ({"spacing": 1.5}, "spacing z"),
        ({"bright": 60.0}, "median of intensities"),
        ({"size": 3.0}, "volume of liver"),
    ],
)
def test_what_has_moved_is_named(change: dict[str, float], measure: str) -> None:
    assert measure in far(cohort(40), cohort(60, seed=1, **change))  # type: ignore[arg-type]


def test_a_new_manufacturer_is_a_drift_and_a_few_cases_more_are_none() -> None:
    before = {"A": 40}
    assert far(cohort(40), cohort(60, seed=1), (before, {"A": 40, "B": 20})) == ["manufacturers"]
    assert far(cohort(40), cohort(41, seed=1), (before, {"A": 40, "B": 1})) == []


def test_classes_that_become_rarer_are_a_drift() -> None:
    before, now = cohort(40, counts=(35, 5)), cohort(60, seed=1, counts=(20, 40))
    assert far(before, now) == ["how often each class is shown"]


def test_the_farthest_comes_first_with_both_medians() -> None:
    found = drifted(measure_drift(cohort(40), cohort(60, seed=1, spacing=4.0, bright=25), ({}, {}), ("liver",)))
    assert found[0].measure == "spacing z"
    assert "mm then" in found[0].told
    assert "mm now" in found[0].told
    assert found[0].value == pytest.approx(4, abs=0.1)


def test_what_older_fingerprints_do_not_hold_is_not_measured() -> None:
    bare = cohort(20)
    old = bare.model_copy(
        update={"cases": tuple(c.model_copy(update={"levels": (), "class_voxels": ()}) for c in bare.cases)}
    )
    assert {m.how for m in measure_drift(old, cohort(20, seed=1), ({}, {}))} == {"factor"}


def test_a_single_case_is_no_distribution() -> None:
    assert all(m.how == "factor" for m in measure_drift(cohort(1), cohort(1, seed=1), ({"A": 1}, {"B": 1})))


def test_a_measure_round_trips_with_the_plan() -> None:
    one = Drift(measure="spacing z", how="factor", value=1.2, threshold=1.1, told="…")
    assert Drift.model_validate_json(one.model_dump_json()) == one
    assert one.drifted
