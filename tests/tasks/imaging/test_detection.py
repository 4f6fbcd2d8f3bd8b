"""Lesions, who hits whom, and the free-response figures: properties, edge cases, and others' computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_froc_curve_data, compute_froc_score
from sklearn.metrics import average_precision_score

from models.geometry import Geometry
from models.recipe import Detection
from tasks.imaging.boxes import alike, joined, pooled, suppressed
from tasks.imaging.detection import Lesions, box_iou, boxed_lesions, component_lesions, counted, match, on_grid
from tasks.imaging.froc import RATES, Marks, average_precision, best_threshold, curve, froc, from_confidence

GRID = Geometry.from_spacing((20, 30, 30), (2.0, 1.0, 1.0), (5.0, -7.0, 11.0))
CENTRE, IOU = Detection(hit="centre"), Detection(hit="iou", hit_iou=0.3)


@st.composite
def some_boxes(draw: st.DrawFn, most: int = 12) -> Lesions:
    """Boxes of two classes, near enough to overlap, some equally sure."""
    count = draw(st.integers(0, most))
    corners = draw(st.lists(st.tuples(*[st.integers(0, 14)] * 3), min_size=count, max_size=count))
    sides = draw(st.lists(st.tuples(*[st.integers(1, 8)] * 3), min_size=count, max_size=count))
    classes = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    sure = draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), min_size=count, max_size=count))
    low = np.array(corners, float).reshape(-1, 3)
    return boxed_lesions(np.concatenate([low, low + np.array(sides, float).reshape(-1, 3)], axis=1), classes, sure)


@st.composite
def some_marks(draw: st.DrawFn, most: int = 25) -> Marks:
    """Marks on a few images with at least one lesion; no lesion is found twice."""
    lesions = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
    image, sure, right = [], [], []
    left = list(lesions)
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, len(lesions) - 1))
        hit = draw(st.booleans()) and left[place] > 0
        left[place] -= hit
        image.append(place)
        sure.append(draw(st.integers(1, 20)) / 20)
        right.append(hit)
    return Marks.of(image, sure, right, lesions)


def ones(marks: Marks) -> np.ndarray:
    return np.ones((1, len(marks.lesions)))


# -- components -------------------------------------------------------------------------------------------------


def test_components_touch_by_corners_and_are_of_one_class() -> None:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1  # one, by a corner
    labels[1, 1, 2] = 2  # next to it, of another class
    labels[3, 4:6, 4:6] = 1
    doubt = np.full(labels.shape, 0.5)
    doubt[1, 1, 1], doubt[3, 5, 5], doubt[1, 1, 2] = 0.1, 0.3, 0.2
    found = component_lesions(labels, 2, doubt)
    assert found.confidence.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found.classes.tolist() == [0, 1, 0]
    assert found.sizes.tolist() == [2, 1, 4]
    assert found.boxes[0].tolist() == [0, 0, 0, 2, 2, 2]
    assert found.centres[2].tolist() == [3.5, 5, 5]
    assert found.numbered is not None
    np.testing.assert_array_equal(found.numbered > 0, labels > 0)


def test_small_components_do_not_count_and_the_surest_are_kept() -> None:
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[0, 0, 0:2], labels[0, 4, 0:3], labels[0, 8, 0:4] = 1, 1, 1
    doubt = np.zeros(labels.shape)
    doubt[0, 8] = 0.4
    found = component_lesions(labels, 1, doubt, least=3)
    assert found.sizes.tolist() == [3, 4]
    first = found.first(1)
    assert first.numbered is not None
    assert (first.numbered > 0).sum() == 3
    rule = Detection(min_volume_ml=0.0035)
    assert counted(found, rule, Geometry.from_spacing((1, 9, 9), (1, 1, 1))).sizes.tolist() == [4]


def test_nothing_is_no_lesion() -> None:
    found = component_lesions(np.zeros((3, 3, 3), np.uint8), 2)
    assert len(found) == 0
    assert len(match(found, found, CENTRE, GRID)) == 0
    assert len(suppressed(found)) == 0
    assert len(joined(found)) == 0
    assert len(on_grid(found, GRID, GRID)) == 0
    assert len(pooled([found, found], [0.5, 0.5])) == 0


def test_boxes_go_back_to_the_images_own_grid() -> None:
    """Through a crop and another spacing, and cut off at the border."""
    inner = GRID.cropped((slice(4, 20), slice(3, 27), slice(0, 30)))
    prepared = inner.respaced((1.0, 2.0, 1.5))
    boxes = np.array([[0.0, 0, 0, 4, 2, 2], [30, 0, 0, 40, 4, 4]])
    moved = on_grid(boxed_lesions(boxes, [0, 1], [0.9, 0.8]), prepared, GRID)
    np.testing.assert_allclose(moved.boxes[0], [4, 3, 0, 6, 7, 3])
    assert moved.boxes[1, 3] == 20


# -- matching ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(some_boxes(), some_boxes(), st.sampled_from([CENTRE, IOU]))
def test_matching_is_one_to_one_and_within_the_rule(found: Lesions, truth: Lesions, rule: Detection) -> None:
    hits = match(found, truth, rule, GRID)
    taken = hits[hits >= 0]
    assert len(set(taken.tolist())) == len(taken)
    for mark in np.flatnonzero(hits >= 0):
        assert found.classes[mark] == truth.classes[hits[mark]]
        if rule is IOU:
            assert box_iou(found.boxes, truth.boxes)[mark, hits[mark]] >= 0.3


@settings(max_examples=30, deadline=None)
@given(some_boxes(6))
def test_the_truth_finds_itself(truth: Lesions) -> None:
    apart = suppressed(truth)
    assert (match(apart, apart, IOU, GRID) >= 0).all()


def test_a_second_mark_on_a_lesion_is_a_false_positive_and_the_surer_has_it() -> None:
    truth = boxed_lesions([[0, 0, 0, 10, 10, 10]], [0], [1.0])
    found = boxed_lesions([[4, 4, 4, 6, 6, 6], [3, 3, 3, 7, 7, 7]], [0, 0], [0.4, 0.8])
    assert found.confidence.tolist() == [0.8, 0.4]
    assert match(found, truth, CENTRE, GRID).tolist() == [0, -1]


def test_a_hollow_lesion_is_found_by_its_middle() -> None:
    labels = np.zeros((1, 30, 30), np.uint8)
    y, x = np.indices((30, 30))
    ring = np.hypot(y - 14.5, x - 14.5)
    labels[0][(ring > 6) & (ring < 11)] = 1
    grid = Geometry.from_spacing((1, 30, 30), (1, 1, 1))
    truth = component_lesions(labels, 1)
    assert match(truth, truth, CENTRE, grid).tolist() == [0]
    beside = boxed_lesions([[0, 0, 0, 1, 4, 4]], [0], [0.9])
    assert match(beside, truth, CENTRE, grid).tolist() == [-1]


# -- suppression ------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(some_boxes())
def test_suppression_is_idempotent_and_leaves_no_two_of_one_lesion(found: Lesions) -> None:
    once = suppressed(found)
    twice = suppressed(once)
    np.testing.assert_array_equal(once.boxes, twice.boxes)
    np.testing.assert_array_equal(once.confidence, twice.confidence)
    same = once.classes[:, None] == once.classes[None]
    overlapping = alike(once, once) & same
    np.fill_diagonal(overlapping, False)
    assert not overlapping.any()
    assert once.confidence.max(initial=0) == found.confidence.max(initial=0)


def test_boxes_of_neighbouring_slices_are_one_lesion() -> None:
    flat = np.array([[z, 10, 10, z + 1, 14 + z, 14] for z in (3, 4, 5)] + [[8, 10, 10, 9, 14, 14]], float)
    found = joined(boxed_lesions(flat, [0, 0, 0, 0], [0.5, 0.9, 0.7, 0.3]))
    assert found.confidence.tolist() == [0.9, 0.3]
    assert found.boxes[0, [0, 3]].tolist() == [3, 6]
    assert found.boxes[1, [0, 3]].tolist() == [8, 9]
    other = joined(boxed_lesions(flat[:2], [0, 1], [0.5, 0.9]))
    assert len(other) == 2, "of another class"


def test_detectors_that_agree_are_surer_than_one_alone() -> None:
    first = boxed_lesions([[0, 0, 0, 4, 4, 4], [10, 10, 10, 14, 14, 14]], [0, 0], [0.8, 0.6])
    second = boxed_lesions([[0, 0, 0, 4, 4, 5]], [0], [0.6])
    both = pooled([first, second], [0.5, 0.5])
    assert both.confidence.tolist() == pytest.approx([0.7, 0.3])


# -- figures ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(some_marks())
def test_the_curve_rises(marks: Marks) -> None:
    x, y = curve(marks)
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    assert x[0] == y[0] == 0
    figures = froc(marks)(ones(marks))[0]
    assert (np.diff(figures[:7]) >= -1e-12).all()
    assert figures[7] == pytest.approx(figures[:7].mean())
    assert ((figures >= 0) & (figures <= 1)).all()


@settings(max_examples=100, deadline=None)
@given(some_marks())
def test_froc_agrees_with_monai(marks: Marks) -> None:
    # MONAI's curve leaves its lowest threshold out: a mark below all others takes that place.
    wrong = np.append(marks.confidence[~marks.right], 0.0)
    rates, sensitivity = compute_froc_curve_data(
        wrong, marks.confidence[marks.right], int(marks.lesions.sum()), len(marks.lesions)
    )
    # It ends at the first point; where several lie above one another, interpolation may take any of them.
    score = compute_froc_score(rates, sensitivity, RATES)
    assert froc(marks)(ones(marks))[0, -1] == pytest.approx(float(score))


@settings(max_examples=100, deadline=None)
@given(some_marks())
def test_average_precision_agrees_with_scikit_learn(marks: Marks) -> None:
    ours = average_precision(marks)(ones(marks))[0, 0]
    if not marks.right.any():
        assert ours == 0
        return
    # scikit-learn knows nothing of the lesions that no mark finds.
    theirs = average_precision_score(marks.right, marks.confidence)
    assert ours == pytest.approx(theirs * marks.right.sum() / marks.lesions.sum())


@settings(max_examples=30, deadline=None)
@given(some_marks(), st.integers(0, 2**32 - 1))
def test_weights_are_repeated_images(marks: Marks, seed: int) -> None:
    """What the bootstrap draws twice counts as two images."""
    times = np.random.default_rng(seed).integers(0, 3, len(marks.lesions))
    if not (times * marks.lesions).any():
        times[np.argmax(marks.lesions)] = 1
    copies = [np.flatnonzero(marks.image == i) for i, n in enumerate(times) for _ in range(n)]
    drawn = [i for i, n in enumerate(times) for _ in range(n)]
    which = np.concatenate([np.zeros(0, int), *copies])
    image = np.concatenate([np.zeros(0, int), *[np.full(len(c), place) for place, c in enumerate(copies)]])
    repeated = Marks(image, marks.confidence[which], marks.right[which], marks.lesions[drawn])
    weights = times[None].astype(float)
    for figure in (froc, average_precision, lambda m: from_confidence(m, 0.5)):
        np.testing.assert_allclose(figure(marks)(weights), figure(repeated)(ones(repeated)))


def test_figures_by_hand() -> None:
    """Two images, three lesions: found at 0.9 and 0.5, false marks at 0.7 and 0.2, one lesion never found."""
    marks = Marks.of([0, 0, 1, 1], [0.9, 0.7, 0.5, 0.2], [True, False, True, False], [2, 1])
    x, y = curve(marks)
    assert x.tolist() == [0, 0, 0.5, 0.5, 1]
    assert y.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert froc(marks)(ones(marks))[0, :7].tolist() == pytest.approx([1 / 3, 1 / 3, *[2 / 3] * 5])
    assert average_precision(marks)(ones(marks))[0, 0] == pytest.approx((1 + 2 / 3) / 3)
    assert from_confidence(marks, 0.6)(ones(marks))[0].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2])


def test_no_marks_and_no_lesions() -> None:
    silent = Marks.of([], [], [], [2, 0])
    assert froc(silent)(ones(silent))[0].tolist() == [0] * 8
    assert average_precision(silent)(ones(silent))[0, 0] == 0
    sensitivity, precision, wrong = from_confidence(silent, 0.5)(ones(silent))[0]
    assert (sensitivity, wrong) == (0, 0)
    assert np.isnan(precision)
    assert best_threshold(silent) is None
    healthy = Marks.of([0], [0.9], [False], [0, 0])
    assert np.isnan(froc(healthy)(ones(healthy))).all()
    assert np.isnan(average_precision(healthy)(ones(healthy))).all()
    assert from_confidence(healthy, 0.5)(ones(healthy))[0, 2] == 0.5


def test_the_threshold_lies_between_right_and_wrong_marks() -> None:
    marks = Marks.of([0, 0, 0], [0.9, 0.8, 0.3], [True, True, False], [2])
    assert best_threshold(marks) == pytest.approx(0.55)
