from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import LabelError
from models.geometry import Geometry
from models.recipe import LabelClass
from models.volume import Mask, Segment, inside
from tasks.imaging.masks import boxes, classes_from_segments, label_map, map_of, region_map, sizes


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


class TestRegions:
    CLASSES = (LabelClass(name="whole", match=("oedema", "core")), LabelClass(name="core"))

    def test_classes_overlap_and_share_segments(self) -> None:
        source = mask(("oedema", None, 1, slice(0, 6)), ("core", None, 1, slice(4, 8)))
        assert region_map(source, self.CLASSES, 0.5)[0, 0].tolist() == [1] * 4 + [3] * 4 + [0] * 2
        assert np.array_equal(map_of(source, self.CLASSES, 0.5, regions=True), region_map(source, self.CLASSES, 0.5))

    def test_what_is_not_there_or_too_much_is_refused(self) -> None:
        with pytest.raises(LabelError, match="none of its structures"):
            region_map(mask(("liver", None, 1, slice(0, 2))), self.CLASSES, 0.5)
        many = tuple(LabelClass(name=f"c{i}", match=("x",)) for i in range(9))
        with pytest.raises(LabelError, match="8 regions, not 9"):
            region_map(mask(("x", None, 1, slice(0, 2))), many, 0.5)

    @given(st.integers(1, 8), st.integers(0, 2**32 - 1))
    @settings(max_examples=40, deadline=None)
    def test_bits_are_what_was_packed(self, count: int, seed: int) -> None:
        there = np.random.default_rng(seed).random((count, 3, 4, 5)) < 0.2
        segments = tuple(Segment(i + 1, f"r{i}") for i in range(count))
        whole = Mask(
            there.astype(np.uint8) * np.uint8(255), segments, Geometry.from_spacing((3, 4, 5), (1, 1, 1)), "SEG"
        )
        packed = region_map(whole, tuple(LabelClass(name=f"r{i}") for i in range(count)), 0.5)
        for index, plane in enumerate(there):
            assert np.array_equal(inside(packed, index, regions=True), plane)
        assert sizes(packed, count, regions=True) == [int(plane.sum()) for plane in there]
        for box, plane in zip(boxes(packed, count, regions=True), there, strict=True):
            assert (box is None) == (not plane.any())
            assert box is None or plane[box].sum() == plane.sum()
            assert box is None or all(plane[box].any(tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))


def test_sizes_and_boxes_of_a_label_map() -> None:
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 1:, 2] = 2
    assert sizes(labels, 2, regions=False) == [0, 2]
    assert boxes(labels, 2, regions=False) == [None, (slice(0, 1), slice(1, 3), slice(2, 3))]
