from __future__ import annotations

import numpy as np
import pytest

from models.errors import NothingToDoError, PixelError
from models.geometry import Geometry
from models.plan import CaseFacts
from tasks.preprocess import fingerprint
from tasks.preprocess.fingerprint import CaseSample, find_outliers, look_at_case, summarise, thinned

GRID = Geometry.from_spacing((10, 40, 30), (3.0, 0.8, 0.8))


def image(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Foreground of 500 ± 20 in tissue of 100 ± 20 in air of 0."""
    rng = np.random.default_rng(seed)
    array = rng.normal(100, 20, GRID.shape)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:7, 10:20, 10:20] = 1
    labels[4, 12:15, 12:15] = 2
    array[labels > 0] += 400
    array[:, :6] = 0
    array[:1] = 0
    return array.round().astype(np.int16), labels


def test_one_case_in_numbers() -> None:
    array, labels = image()
    got = look_at_case("v", array, GRID, labels=labels, classes=3)
    assert got.facts.shape == GRID.shape
    assert got.facts.cropped_shape == (9, 34, 30)
    assert got.facts.class_voxels == (400 - 9, 9, 0)
    assert got.voxels.shape == (1, 400)
    assert got.voxels.mean() == pytest.approx(500, abs=4)
    assert got.facts.median == pytest.approx(100, abs=2)


def test_without_labels_the_body_is_sampled() -> None:
    array, _ = image()
    got = look_at_case("v", np.stack([array, array * 2]), GRID, target=1)
    assert got.voxels.shape[0] == 2
    assert got.voxels[0].min() > 0
    np.testing.assert_array_equal(got.voxels[1], got.voxels[0] * 2)
    empty = look_at_case("v", np.zeros(GRID.shape, np.int16), GRID)
    assert empty.voxels.max() == 0
    assert empty.facts.cropped_shape == GRID.shape


def test_bad_values_are_told() -> None:
    array = image()[0].astype(np.float32)
    array[2:] = np.nan
    with pytest.raises(PixelError):
        look_at_case("v", array, GRID)


def cohort(count: int = 12) -> list[CaseSample]:
    found = []
    for number in range(count):
        array, labels = image(number)
        found.append(look_at_case(f"{number:032x}", array, GRID, labels=labels, classes=2, seed=5))
    return found


def test_the_same_cases_give_the_same_fingerprint_in_any_order() -> None:
    samples = cohort()
    one = summarise("d", "MR", samples, classes=2, seed=5)
    two = summarise("d", "MR", list(reversed(cohort())), classes=2, seed=5)
    assert one == two
    assert one.intensities[0].mean == pytest.approx(500, abs=2)
    assert one.intensities[0].std == pytest.approx(20, abs=1)
    assert one.intensities[0].p995 == pytest.approx(500 + 2.576 * 20, abs=4)
    assert one.class_counts == (12, 12)
    assert one.crop_ratio == pytest.approx(0.9 * 34 / 40)


def test_every_case_has_an_equal_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.preprocess.fingerprint.SAMPLES", 600)
    small, large = cohort(2)
    large = CaseSample(large.facts, np.full((1, 100_000), 9000, np.float32))
    got = summarise("d", "MR", [small, large], classes=2)
    assert got.intensities[0].mean == pytest.approx((500 + 9000) / 2, abs=5)


def test_classified_images_are_counted_by_class() -> None:
    array, _ = image()
    samples = [look_at_case(f"{i}", array, GRID, target=int(i > 2)) for i in range(9)]
    assert summarise("d", "CR", samples, classes=2).class_counts == (3, 6)


def test_no_case_is_no_fingerprint() -> None:
    with pytest.raises(NothingToDoError):
        summarise("d", "CT", [], classes=1)


def facts(count: int, **odd: object) -> list[CaseFacts]:
    rng = np.random.default_rng(0)
    cases = [
        CaseFacts(
            volume=f"{i}",
            shape=(30, 100, 100),
            spacing=(3.0, 1.0 + 0.01 * (i % 3), 1.0),
            cropped_shape=(30 + i % 4, 90 + i % 7, 95),
            class_voxels=(1000 + int(rng.integers(200)),),
            median=float(rng.normal(200, 10)),
            iqr=float(rng.normal(80, 5)),
        )
        for i in range(count)
    ]
    cases[3] = cases[3].model_copy(update=odd)
    return cases


@pytest.mark.parametrize("method", ["iqr", "zscore"])
@pytest.mark.parametrize(
    ("odd", "measure"),
    [
        ({"median": 1.7e6}, "median intensity"),
        ({"spacing": (9.0, 1.0, 1.0)}, "spacing z"),
        ({"cropped_shape": (30, 300, 95)}, "size y"),
        ({"class_voxels": (40_000,)}, "foreground volume"),
    ],
)
def test_a_case_far_off_is_named_with_what_it_is_far_in(method: str, odd: dict, measure: str) -> None:
    found = find_outliers(facts(40, **odd), method)
    assert ("3", measure) in {(o.volume, o.measure) for o in found}
    assert {o.volume for o in found} == {"3"}
    assert all(" to " in o.expected for o in found)


def test_ordinary_cohorts_have_no_outliers_and_tiny_ones_none_to_tell() -> None:
    assert find_outliers(facts(40), "iqr") == ()
    assert find_outliers(facts(40, median=1.7e6), "none") == ()
    assert find_outliers(facts(4, median=1.7e6), "iqr") == ()


def test_what_is_held_of_many_cases_is_bounded_and_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "SAMPLES", 1200)
    whole = cohort()
    held = [thinned(sample, len(whole), 5) for sample in whole]
    assert {sample.voxels.shape for sample in held} == {(1, 100)}
    assert [sample.facts for sample in held] == [sample.facts for sample in whole]
    assert summarise("d", "MR", held, classes=2, seed=5) == summarise("d", "MR", whole, classes=2, seed=5)
    assert thinned(held[0], 1, 5) is held[0]
