from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from models.evaluation import (
    Agreement,
    ClassScores,
    ConfusionMatrix,
    Curve,
    Interval,
    Picture,
    SegmentationCase,
)
from tasks.evaluate import pictures
from tasks.evaluate.pictures.style import SCHEME


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


def test_best_median_worst_and_most_uncertain_case_are_shown_with_their_pseudonyms() -> None:
    cases = [_case(d, f"c{i}") for i, d in enumerate([0.5, 0.9, 0.7, 0.1, 0.8])]
    shown = pictures.overlays(cases, [_crop()] * 5, ("a",), [0.1, 0.2, 0.9, 0.3, 0.0])
    assert [p.name for p in shown] == ["overlays-best", "overlays-median", "overlays-worst", "overlays-uncertain"]
    told = [_texts(picture) for picture in shown]
    for text, parts in zip(
        told,
        (
            ("Best: Dice 0.900", "P-c1, slice 4"),
            ("Median: Dice 0.700", "P-c2"),
            ("Worst: Dice 0.100", "P-c3"),
            ("Uncertain: Dice 0.700, uncertainty 0.90", "P-c2"),
        ),
        strict=True,
    ):
        for part in (*parts, "truth", "prediction", " mm"):
            assert part in text
    assert "most uncertain case" in shown[-1].alt


@pytest.mark.parametrize("count", [1, 2])
def test_few_cases_without_an_image_are_shown_once_each(count: int) -> None:
    cases = [_case(0.5, f"c{i}") for i in range(count)]
    shown = pictures.overlays(cases, [_crop(image=False)] * count, ("a",))
    assert [p.name for p in shown] == ["overlays-best", "overlays-worst"][:count]


def test_lesions_are_shown_best_to_worst_and_least_sure() -> None:
    frame = pd.DataFrame(
        {
            "case": ["a", "b", "b", "c"],
            "patient": ["P-a", "P-b", "P-b", "P-c"],
            "outcome": ["found", "missed", "invented", "found"],
            "confidence": [0.9, np.nan, 0.8, 0.55],
            "diameter_mm": [5.0, 6.0, np.nan, 7.0],
        }
    )
    shown = pictures.lesion_overlays(frame, [_crop()] * 3, ["a", "b", "c"], ("a",), 0.5)
    assert [p.name for p in shown] == ["overlays-best", "overlays-median", "overlays-worst", "overlays-uncertain"]
    assert "P-b" in _texts(shown[2])
    assert "2 wrong, 1 lesion" in _texts(shown[2])
    assert "P-c" in _texts(shown[3])


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
    (shown,) = pictures.overlays([_case(1.0, "c")], [crop], ("a",))
    assert b"<svg" in shown.data


def test_the_slice_of_a_map_is_where_it_is_greatest() -> None:
    truth, heat = np.zeros((6, 60, 50), np.uint8), np.zeros((6, 60, 50), np.float32)
    truth[2, 20:30, 20:30], heat[5, 20:30, 20:30] = 1, 0.7
    image = np.random.default_rng(0).normal(size=(1, 6, 60, 50)).astype(np.float32)
    crop = pictures.crop_of(image, truth, truth, (3.0, 0.5, 0.5), maps=[heat])
    assert crop.index == 5
    assert crop.maps[0].shape == crop.truth.shape
    flat = pictures.flat_crop(image, (3.0, 0.5, 0.5), [heat, heat])
    assert flat.index == 5
    assert len(flat.maps) == 2
    assert flat.maps[0].max() == pytest.approx(0.7)


def _agreement(name: str = "a") -> Agreement:
    def limit(value: float) -> Interval:
        return Interval(value=value, low=value - 0.2, high=value + 0.2, n=3)

    points = ((10.0, 0.5), (20.0, -1.0), (30.0, 1.5))
    return Agreement(class_name=name, bias=limit(0.33), lower=limit(-2), upper=limit(2.7), points=points)


def _mapped(count: int) -> pictures.Crop:
    crop = _crop()
    fade = np.linspace(0, 1, crop.truth.size, dtype=np.float32).reshape(crop.truth.shape)
    return dataclasses.replace(crop, maps=(fade,) * count)


def _explanation(**changes: object) -> pictures.Explanation:
    values: dict[str, object] = {
        "rank": "wrong", "number": 2, "patient": "P-1", "truth": "plain", "called": "square", "probability": 0.87,
        "crop": _mapped(2), "methods": ("Grad-CAM", "Occlusion"), "note": "The map changes with the weights.",
    }  # fmt: skip
    return pictures.Explanation(**(values | changes))  # type: ignore[arg-type]


def _all() -> list[Picture]:
    curve = [Curve(name="roc", class_name=f"k{i}", x=(0, 0.2, 1), y=(0, 0.8, 1)) for i in range(7)]
    frame = pd.DataFrame({"class_name": ["a", "a", "b"], "outcome": ["found", "missed", "absent"]})
    frame[["dice", "surface_dice"]], frame["hd95_mm"], frame["volume_error_ml"] = 0.5, [3.0, 100.0, 0.0], [-2.0, 1, 0]
    frame["probability"], frame["truth"] = [0.9, 0.2, 0.4], [True, False, False]
    return [
        pictures.roc(curve, {"k0": 0.9}),
        pictures.precision_recall(curve[:1], {"k0": 0.8}, {"k0": 0.3}),
        pictures.calibration(curve, {"k0": 0.04}),
        pictures.confusion(ConfusionMatrix(class_names=("<b>", "c & d"), counts=((3, 1), (0, 0)))),
        pictures.learning_curve([(1, 0.9, 0.1), (2, 0.5, float("nan")), (3, 0.4, 0.3)], "Dice"),
        pictures.learning_curve([], "Dice"),
        pictures.distributions(frame, ("a", "b"), 2.0),
        pictures.probabilities(frame, ("a", "b")),
        pictures.bland_altman(_agreement()),
        pictures.uncertainty(_mapped(2), "P-1", ("a",), 0.4, 5),
        pictures.saliency(_explanation()),
    ]


def test_pictures_are_whole_svg_that_follow_the_scheme_and_fetch_nothing() -> None:
    for picture in _all():
        text = picture.data.decode()
        ElementTree.fromstring(text)  # noqa: S314
        assert text.startswith("<svg")
        assert "prefers-color-scheme:dark" in text
        assert not any(stand_in in text for stand_in in SCHEME)
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


def test_volumes_are_compared_in_millilitres_with_their_limits() -> None:
    picture = pictures.bland_altman(_agreement("left $lung$ / upper"))
    told = _texts(picture)
    assert picture.name == "bland-altman-left-lung-upper"
    for part in ("mean difference +0.33 mL", "lower limit of agreement -2 mL", "true volume (mL)"):
        assert part in told.replace("−", "-"), part
    assert "3 cases" in picture.alt


def test_volumes_of_one_case_have_no_band() -> None:
    alone = Interval(value=1.0, low=None, high=None, n=1)
    picture = pictures.bland_altman(
        Agreement(class_name="a", bias=alone, lower=alone, upper=alone, points=((10.0, 1.0),))
    )
    assert "+1 mL" in _texts(picture)


def test_calibration_tells_its_error() -> None:
    curves = [Curve(name="calibration", class_name="k", x=(0.2, 0.8), y=(0.3, 0.7))]
    picture = pictures.calibration(curves, {"k": 0.1234})
    assert "ECE 0.123" in _texts(picture)
    assert "0.123" in picture.alt
    assert "ECE" not in _texts(pictures.calibration(curves))


def test_the_spread_has_units_and_each_groups_size() -> None:
    frame = pd.DataFrame({"class_name": ["a"] * 4, "outcome": ["found"] * 4, "dice": [0.1, 0.5, 0.6, 0.9]})
    frame["hd95_mm"] = frame["assd_mm"] = [1.0, 2.0, 3.0, 4.0]
    told = _texts(pictures.distributions(frame, ("a",), 2.0))
    for part in ("Dice", "HD95 (mm), where found", "Average surface distance (mm)"):
        assert part in told
    assert "Volume" not in told
    said = pd.DataFrame({"class_name": ["a"] * 3, "probability": [0.1, 0.7, 0.9], "truth": [False, True, True]})
    assert "not a (n = 1)" in _texts(pictures.probabilities(said, ("a",)))


def test_a_maps_scale_and_note_are_told() -> None:
    told = _texts(pictures.saliency(_explanation()))
    for part in ("Wrong: called square (87%), truth plain", "Grad-CAM", "Occlusion", "The map changes", "0.5"):
        assert part in told, part
    assert "speaks for square" in told
    doubt = pictures.uncertainty(_mapped(1), "P-1", ("a",), 0.4, 1)
    assert doubt.name == "uncertainty"
    assert "Entropy" in _texts(doubt)
    assert "Disagreement" not in _texts(doubt)
    assert "0 sure, 1 unsure" in _texts(doubt)
    assert "Disagreement" in _texts(pictures.uncertainty(_mapped(2), "P-1", ("a",), 0.4, 5))
