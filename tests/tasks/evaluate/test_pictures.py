from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from models.evaluation import ClassScores, ConfusionMatrix, Curve, Picture, SegmentationCase
from tasks.evaluate import pictures


def _texts(picture: Picture) -> str:
    root = ElementTree.fromstring(picture.data)  # noqa: S314 — our own output
    return " | ".join(node.text for node in root.iter("{http://www.w3.org/2000/svg}text") if node.text)


def _case(dice: float, name: str) -> SegmentationCase:
    figures = {f: dice for f in ClassScores.__dataclass_fields__ if f not in ("class_name", "outcome")}
    return SegmentationCase("P-" + name, name, (ClassScores(class_name="a", outcome="found", **figures),), dice)


def _crop(shape: tuple[int, int] = (20, 24), *, image: bool = True) -> pictures.Crop:
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    truth[5:12, 5:12], prediction[7:14, 6:12] = 1, 1
    grey = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) if image else None
    return pictures.Crop(grey, truth, prediction, (1.0, 0.5), 3)


def test_best_median_and_worst_case_are_shown_with_their_pseudonyms() -> None:
    cases = [_case(d, f"c{i}") for i, d in enumerate([0.5, 0.9, 0.7, 0.1, 0.8])]
    told = _texts(pictures.overlays(cases, [_crop()] * 5, ("a",)))
    for part in ("Best: Dice 0.900", "P-c1, slice 4", "Median: Dice 0.700", "Worst: Dice 0.100", "P-c3", "prediction"):
        assert part in told


@pytest.mark.parametrize("count", [1, 2])
def test_few_cases_without_an_image_are_shown_once_each(count: int) -> None:
    told = _texts(pictures.overlays([_case(0.5, f"c{i}") for i in range(count)], [_crop(image=False)] * count, ("a",)))
    assert told.count("Dice") == count


def test_crop_shows_the_slice_with_the_most_to_see_and_stays_small() -> None:
    truth, prediction = np.zeros((6, 600, 500), np.uint8), np.zeros((6, 600, 500), np.uint8)
    truth[2, 100:180, 100:180] = 1
    prediction[4, 50:500, 40:480] = 1  # a large error far from the truth
    crop = pictures.crop_of(np.ones((1, 6, 600, 500), np.float32), truth, prediction, (3.0, 0.5, 0.5))
    assert crop.index == 4
    assert max(crop.prediction.shape) <= 160
    assert crop.spacing[0] == crop.spacing[1] >= 0.5
    assert crop.prediction.base is None  # a view would keep the whole volume alive


def test_crop_of_an_empty_case_is_the_whole_slice() -> None:
    empty = np.zeros((2, 30, 40), np.uint8)
    crop = pictures.crop_of(None, empty, empty, (1.0, 1.0, 1.0))
    assert crop.truth.shape == (30, 40)
    assert b"<svg" in pictures.overlays([_case(1.0, "c")], [crop], ("a",)).data


def _all() -> list[Picture]:
    curve = [Curve(name="roc", class_name=f"k{i}", x=(0, 0.2, 1), y=(0, 0.8, 1)) for i in range(7)]
    frame = pd.DataFrame({"class_name": ["a", "a", "b"], "outcome": ["found", "missed", "absent"]})
    frame[["dice", "surface_dice"]], frame["hd95_mm"] = 0.5, [3.0, 100.0, 0.0]
    return [
        pictures.roc(curve, {"k0": 0.9}),
        pictures.precision_recall(curve[:1], {"k0": 0.8}, {"k0": 0.3}),
        pictures.calibration(curve),
        pictures.confusion(ConfusionMatrix(class_names=("<b>", "c & d"), counts=((3, 1), (0, 0)))),
        pictures.learning_curve([(1, 0.9, 0.1), (2, 0.5, float("nan")), (3, 0.4, 0.3)], "Dice"),
        pictures.learning_curve([], "Dice"),
        pictures.distributions(frame, ("a", "b"), 2.0),
    ]


def test_pictures_are_whole_svg_that_follow_the_scheme_and_fetch_nothing() -> None:
    for picture in _all():
        text = picture.data.decode()
        ElementTree.fromstring(text)  # noqa: S314
        assert text.startswith("<svg")
        assert "prefers-color-scheme:dark" in text
        assert not any(stand_in in text for stand_in in pictures._SCHEME)
        assert 'href="http' not in text
        assert picture.alt
        assert picture.title


def test_pictures_are_the_same_every_time() -> None:
    assert [p.data for p in _all()] == [p.data for p in _all()]


def test_class_names_are_text_and_never_markup() -> None:
    cost = pictures.roc([Curve(name="roc", class_name="$x^2$ <script>", x=(0, 1), y=(0, 1))], {})
    assert "$x^2$ <script>" in _texts(cost)


def test_best_validation_is_told() -> None:
    told = _texts(pictures.learning_curve([(10, 0.9, 0.1), (20, 0.5, 0.6), (30, 0.4, 0.3)], "Dice"))
    assert "best 0.600 at step 20" in told
    assert "Validation Dice" in told


def test_the_champions_curve_lies_beside_the_models() -> None:
    alone = pictures.learning_curve([(10, 0.9, 0.1), (20, 0.5, 0.6)], "Dice")
    both = pictures.learning_curve([(10, 0.9, 0.1), (20, 0.5, 0.6)], "Dice", [(10, 1.2, 0.0), (60, 0.5, 0.6)])
    assert "champion" in _texts(both)
    assert "champion" not in _texts(alone)
    assert "dashed" in both.alt
