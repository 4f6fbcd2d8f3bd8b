from __future__ import annotations

import numpy as np
import pytest

from models.errors import LabelError
from models.geometry import Geometry
from models.recipe import LabelClass
from models.volume import Mask, Segment
from tasks.imaging.masks import classes_from_segments, label_map


def mask(*planes: tuple[str, str | None, float, slice]) -> Mask:
    """Segments of one occupancy each, along x."""
    occupancy = np.zeros((len(planes), 2, 3, 10), np.uint8)
    for plane, (_, _, share, where) in zip(occupancy, planes, strict=True):
        plane[..., where] = round(share * 255)
    segments = tuple(Segment(i + 1, name, code) for i, (name, code, _, _) in enumerate(planes))
    return Mask(occupancy, segments, Geometry.from_spacing((2, 3, 10), (1, 1, 1)), "SEG")


def test_later_classes_lie_over_earlier_ones() -> None:
    source = mask(("Lesion 1", None, 1, slice(2, 5)), ("Liver", None, 1, slice(0, 8)))
    classes = (LabelClass(name="liver"), LabelClass(name="lesion", match=("lesion*",)))
    row = label_map(source, classes, 0.5)[0, 0]
    assert row.tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 0, 0]
    assert label_map(source, classes[::-1], 0.5)[0, 0].tolist() == [2] * 8 + [0, 0]


def test_codes_match_and_several_segments_may_be_one_class() -> None:
    source = mask(("a", "SCT:10200004", 1, slice(0, 2)), ("TUMOUR left", None, 1, slice(5, 6)))
    classes = (LabelClass(name="any", match=("sct:10200004", "*tumour*")),)
    assert label_map(source, classes, 0.5)[0, 0].tolist() == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("fraction", "inside"), [(0.3, True), (0.4, True), (0.5, False)])
def test_fraction_decides_on_partial_occupancy(fraction: float, inside: bool) -> None:
    source = mask(("x", None, 0.4, slice(0, 1)))
    assert bool(label_map(source, (LabelClass(name="x"),), fraction).any()) is inside


def test_half_occupancy_is_inside_at_one_half_only_from_half() -> None:
    source = mask(("x", None, 128 / 255, slice(0, 1)), ("y", None, 127 / 255, slice(0, 1)))
    assert label_map(source, (LabelClass(name="x"),), 0.5).any()
    assert not label_map(source, (LabelClass(name="y"),), 0.5).any()


def test_no_fitting_structure_names_what_is_there() -> None:
    with pytest.raises(LabelError, match=r"Liver.*kidney"):
        label_map(mask(("Liver", None, 1, slice(0, 1))), (LabelClass(name="kidney"),), 0.5)


def test_without_classes_every_structure_is_one() -> None:
    a = (Segment(1, "Liver [left]"), Segment(3, "Spleen"))
    b = (Segment(2, "GTV*"), Segment(5, "Liver [left]"))
    classes = classes_from_segments([a, b])
    assert [c.name for c in classes] == ["Liver [left]", "GTV*", "Spleen"]
    source = mask(
        ("Liver [left]", None, 1, slice(0, 1)), ("GTV*", None, 1, slice(1, 2)), ("GTVx", None, 1, slice(2, 3))
    )
    assert label_map(source, classes, 0.5)[0, 0, :4].tolist() == [1, 2, 0, 0]
