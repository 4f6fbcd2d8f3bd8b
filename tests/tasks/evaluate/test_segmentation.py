from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models import schemas
from models.errors import GeometryError, LabelError, NothingToDoError
from models.geometry import Geometry
from tasks.evaluate import segmentation
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation
from tasks.imaging.scores import score_case
from tasks.imaging.surfaces import surface_distances

torch = pytest.importorskip("torch")
metrics = pytest.importorskip("monai.metrics")

SPACING = (2.5, 0.8, 1.1)


def _ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2


def _blobs(seed: int, shape: tuple[int, int, int] = (10, 22, 20), shift: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged label maps of two classes that overlap in part."""
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.normal(0, 1, shape), 2)
    other = field + shift * ndimage.gaussian_filter(generator.normal(0, 1, shape), 2)
    cut = np.quantile(field, [0.6, 0.85])
    return np.digitize(field, cut).astype(np.uint8), np.digitize(other, cut).astype(np.uint8)


def _monai(truth: np.ndarray, prediction: np.ndarray, classes: int, tolerance: float) -> tuple[list[float], ...]:
    real, guessed = (
        torch.from_numpy(np.stack([labels == k for k in range(classes + 1)])[None]) for labels in (truth, prediction)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = (
            metrics.compute_dice(guessed, real, include_background=False, ignore_empty=False),
            metrics.compute_hausdorff_distance(guessed, real, percentile=95, spacing=SPACING),
            metrics.compute_surface_dice(guessed, real, [tolerance] * classes, spacing=SPACING),
            metrics.compute_average_surface_distance(guessed, real, symmetric=True, spacing=SPACING),
        )
    return tuple(values[0].tolist() for values in found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.15, 0.4, 2.0]), st.sampled_from([1.0, 2.0, 3.3]))
def test_scores_equal_monai(seed: int, shift: float, tolerance: float) -> None:
    truth, prediction = _blobs(seed, shift=shift)
    scores, _ = score_case(truth, prediction, SPACING, ("a", "b"), tolerance)
    dice, hd95, surface, assd = _monai(truth, prediction, 2, tolerance)
    for index, found in enumerate(scores):
        if found.outcome == "found":
            assert found.dice == pytest.approx(dice[index], abs=1e-6)
            assert found.hd95_mm == pytest.approx(hd95[index], rel=1e-5)
            assert found.assd_mm == pytest.approx(assd[index], rel=1e-5, abs=1e-6)
            assert found.surface_dice == pytest.approx(surface[index], abs=1e-6)


@pytest.mark.parametrize("centre", [(20.0, 12.0, 14.0), (0.0, 0.0, 0.0), (22.0, 16.0, 20.0)])
def test_masks_that_touch_the_border_or_lie_far_apart_equal_monai(centre: tuple[float, float, float]) -> None:
    shape = (10, 24, 22)
    truth = _ball(shape, (8.0, 9.0, 9.0), 7).astype(np.uint8)
    prediction = _ball(shape, centre, 6).astype(np.uint8)
    (found,), _ = score_case(truth, prediction, SPACING, ("a",))
    dice, hd95, surface, assd = _monai(truth, prediction, 1, 2.0)
    assert (found.dice, found.hd95_mm, found.surface_dice, found.assd_mm) == pytest.approx(
        (dice[0], hd95[0], surface[0], assd[0]), rel=1e-5
    )


def test_a_mask_in_one_slice_of_a_volume_equals_monai() -> None:
    truth, prediction = np.zeros((5, 16, 16), np.uint8), np.zeros((5, 16, 16), np.uint8)
    truth[2, 3:12, 3:12], prediction[2, 5:14, 3:12] = 1, 1
    (found,), _ = score_case(truth, prediction, SPACING, ("a",), 1.0)
    _, hd95, surface, assd = _monai(truth, prediction, 1, 1.0)
    assert (found.hd95_mm, found.surface_dice, found.assd_mm) == pytest.approx((hd95[0], surface[0], assd[0]), rel=1e-5)


def test_a_two_dimensional_image_has_an_outline_and_not_only_surface() -> None:
    truth, prediction = np.zeros((1, 30, 30), np.uint8), np.zeros((1, 30, 30), np.uint8)
    truth[0, 5:25, 5:25], prediction[0, 8:22, 8:22] = 1, 1  # 3 pixels smaller on every side
    (found,), _ = score_case(truth, prediction, (5.0, 1.0, 1.0), ("a",), 2.9)
    assert found.surface_dice == 0
    assert found.hd95_mm == pytest.approx(np.hypot(3, 2), abs=0.5)


def test_real_hippocampi_equal_monai(shared_data: Path) -> None:
    files = sorted((shared_data / "hippocampus" / "labels").glob("*.nii.gz"))[:4]
    assert files
    for file in files:
        truth = np.ascontiguousarray(np.asarray(nibabel.load(file).dataobj).T.astype(np.uint8))
        prediction = np.roll(truth, (1, 2, 0), axis=(0, 1, 2))
        scores, _ = score_case(truth, prediction, SPACING, ("anterior", "posterior"), 1.5)
        expected = _monai(truth, prediction, 2, 1.5)
        for values, name in zip(expected, ("dice", "hd95_mm", "surface_dice", "assd_mm"), strict=True):
            assert [getattr(s, name) for s in scores] == pytest.approx(values, rel=1e-5)


def test_counts_follow_their_definitions() -> None:
    truth, prediction = np.zeros((2, 10, 10), np.uint8), np.zeros((2, 10, 10), np.uint8)
    truth[0, :4, :5], prediction[0, :4, 1:6] = 1, 1  # TP 16, FP 4, FN 4 of 200 voxels
    prediction[1, 9, 9] = 2
    (found, invented), accuracy = score_case(truth, prediction, (10.0, 5.0, 2.0), ("a", "b"))
    assert found.dice == pytest.approx(0.8)
    assert found.iou == pytest.approx(16 / 24)
    assert found.pixel_accuracy == pytest.approx(192 / 200)
    assert accuracy == pytest.approx(191 / 200)
    assert (found.volume_truth_ml, found.volume_prediction_ml) == pytest.approx((2.0, 2.0))
    assert (invented.volume_error_ml, invented.outcome) == (pytest.approx(0.1), "invented")


def test_empty_masks_are_scored_as_documented() -> None:
    empty, full = np.zeros((3, 4, 12), np.uint8), np.zeros((3, 4, 12), np.uint8)
    full[1, 1:3, 4:9] = 1
    diagonal = math.hypot(3, 4, 12)
    (missed,), _ = score_case(full, empty, (1.0, 1.0, 1.0), ("a",))
    (invented,), _ = score_case(empty, full, (1.0, 1.0, 1.0), ("a",))
    (absent,), accuracy = score_case(empty, empty, (1.0, 1.0, 1.0), ("a",))
    for found, outcome in ((missed, "missed"), (invented, "invented")):
        assert (found.outcome, found.dice, found.iou, found.surface_dice) == (outcome, 0, 0, 0)
        assert (found.hd95_mm, found.assd_mm) == pytest.approx((diagonal, diagonal))
    assert missed.volume_error_relative == -1
    assert math.isnan(invented.volume_error_relative)
    assert (absent.outcome, absent.dice, absent.iou, absent.surface_dice) == ("absent", 1, 1, 1)
    assert (absent.hd95_mm, absent.assd_mm) == (0, 0)
    assert (absent.pixel_accuracy, accuracy, absent.volume_error_ml) == (1, 1, 0)
    assert math.isnan(absent.volume_error_relative)


def test_surface_distances_are_symmetric_and_zero_for_the_same_mask() -> None:
    a, b = _ball((8, 20, 20), (9.0, 8.0, 10.0), 6), _ball((8, 20, 20), (10.0, 8.0, 11.0), 5)
    there, back = surface_distances(a, b, SPACING), surface_distances(b, a, SPACING)
    assert there.hausdorff() == back.hausdorff()
    assert there.dice(1.0) == back.dice(1.0)
    assert surface_distances(a, a, SPACING).hausdorff(100) == 0


# -- over cases ---------------------------------------------------------------------------------------------------


def _samples(count: int = 6, image: bool = True) -> Iterator[SegmentationSample]:
    for index in range(count):
        truth, prediction = _blobs(index, shift=0.1 + 0.1 * index)
        picture = np.random.default_rng(index).normal(0, 1, (1, *truth.shape)).astype(np.float32) if image else None
        geometry = Geometry.from_spacing(truth.shape, SPACING)
        yield SegmentationSample(f"P{index // 2}", f"case{index}", picture, truth, prediction, geometry)


def test_evaluation_is_the_mean_over_classes_then_cases_with_an_interval_by_patient() -> None:
    told: list[str] = []
    evaluation, frame, pictures = evaluate_segmentation(
        _samples(), ("a", "b"), package="p", dataset="d", bootstrap=200, on_case=lambda c: told.append(c.case)
    )
    by_case = frame.groupby("case")["dice"].mean()
    primary = evaluation.primary_interval
    assert primary.value == pytest.approx(by_case.mean())
    assert primary.low < primary.value < primary.high
    assert (primary.n, evaluation.n_patients, evaluation.n_cases) == (3, 3, 6)
    assert evaluation.of("dice", "b").value == pytest.approx(frame.loc[frame["class_name"] == "b", "dice"].mean())
    assert told == [f"case{i}" for i in range(6)]
    assert {p.name for p in pictures} == {"overlays-best", "overlays-median", "overlays-worst", "distributions"}


def test_table_holds_one_typed_row_per_case_and_class() -> None:
    _, frame, _ = evaluate_segmentation(_samples(2, image=False), ("a", "b"), package="p", dataset="d", bootstrap=100)
    assert list(frame.columns) == ["patient", "case", "class_name", "outcome", *segmentation.METRICS]
    assert len(frame) == 4
    assert all(pd.api.types.is_float_dtype(frame[m]) for m in segmentation.METRICS)
    schemas.check(frame, schemas.CASE_METRICS_SEGMENTATION, where="test")


def test_relative_error_without_any_truth_is_left_out_of_the_evaluation() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    sample = SegmentationSample("P", "c", None, truth, truth, Geometry.from_spacing(truth.shape, SPACING))
    evaluation, _, _ = evaluate_segmentation([sample], ("a",), package="p", dataset="d", bootstrap=100)
    assert "volume_error_relative" not in {m.metric for m in evaluation.metrics}
    assert evaluation.primary_interval.value == 1


def test_volume_counts_the_shear_of_a_tilted_gantry() -> None:
    affine = np.array([[0, 0, 1, 0], [1.5, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], float)
    geometry = Geometry((2, 4, 4), tuple(map(tuple, affine)))
    labels = np.ones(geometry.shape, np.uint8)
    _, frame, _ = evaluate_segmentation(
        [SegmentationSample("P", "c", None, labels, labels, geometry)], ("a",), package="p", dataset="d", bootstrap=100
    )
    assert frame["volume_truth_ml"].iloc[0] == pytest.approx(32 * 6 / 1000)


def test_what_does_not_fit_is_refused_by_name() -> None:
    (sample,) = _samples(1)
    other = SegmentationSample("P", "c9", None, sample.truth, sample.prediction[1:], sample.geometry)
    with pytest.raises(GeometryError, match="c9"):
        evaluate_segmentation([other], ("a", "b"), package="p", dataset="d")
    with pytest.raises(LabelError, match="case0"):
        evaluate_segmentation([sample], ("a",), package="p", dataset="d")
    with pytest.raises(NothingToDoError):
        evaluate_segmentation([], ("a",), package="p", dataset="d")


def test_regions_are_scored_as_if_each_were_alone() -> None:
    generator = np.random.default_rng(3)
    truth, guess = (generator.integers(0, 8, (4, 12, 12)).astype(np.uint8) for _ in range(2))
    truth[truth == 4] = 0
    together, accuracy = score_case(truth, guess, (2.0, 1.0, 1.0), ("a", "b", "c"), regions=True)
    for index, scores in enumerate(together):
        bits = [(labels >> index & 1).astype(np.uint8) for labels in (truth, guess)]
        (alone,), _ = score_case(*bits, (2.0, 1.0, 1.0), (scores.class_name,))
        assert scores == alone
    assert accuracy == pytest.approx(np.mean(truth == guess))


def test_a_region_without_a_name_is_refused() -> None:
    labels = np.full((1, 4, 4), 4, np.uint8)
    sample = SegmentationSample("P", "c", None, labels, labels, Geometry.from_spacing((1, 4, 4), (1, 1, 1)), True)
    with pytest.raises(LabelError, match="label value 4"):
        evaluate_segmentation([sample], ("a", "b"), package="p", dataset="d", bootstrap=100)
    found, frame, pictures = evaluate_segmentation([sample], ("a", "b", "c"), package="p", dataset="d", bootstrap=100)
    assert found.of("dice").value == 1
    assert frame["outcome"].tolist() == ["absent", "absent", "found"]
    assert len(pictures) == 2
