"""The voxel-centre rule, against arithmetic and against scikit-image."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from tasks.ingest.labels.polygons import fill


def circle(y: float, x: float, radius: float, points: int = 400) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([y + radius * np.sin(angle), x + radius * np.cos(angle)], axis=1)


def box(low: float, high: float) -> NDArray[np.float64]:
    return np.array([[low, low], [low, high], [high, high], [high, low]], dtype=float)


def test_a_disc_holds_the_voxels_whose_centres_it_holds() -> None:
    y, x = np.mgrid[:40, :50]
    expected = (y - 19.3) ** 2 + (x - 24.6) ** 2 < 11.2**2
    assert (fill([circle(19.3, 24.6, 11.2)], (40, 50)) != expected).sum() <= 2


def test_an_inner_ring_is_a_hole_and_an_island_in_it_is_none() -> None:
    found = fill([box(2.5, 17.5), box(5.5, 14.5), box(8.5, 11.5)], (20, 20))
    assert found.sum() == 15**2 - 9**2 + 3**2
    assert found[3, 3]
    assert not found[6, 6]
    assert found[10, 10]


def test_a_keyhole_contour_has_its_hole_without_a_slit() -> None:
    outer, inner = box(1.5, 12.5), box(4.5, 9.5)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    np.testing.assert_array_equal(fill([keyhole], (15, 15)), fill([outer, inner], (15, 15)))


def test_neighbours_on_a_common_border_share_no_voxel_and_leave_none_out() -> None:
    left = np.array([[0, 0], [0, 5], [8, 5], [8, 0]], dtype=float)
    right = left + np.array([0, 5])
    both = fill([left], (9, 12)).astype(int) + fill([right], (9, 12))
    assert both.max() == 1
    assert both.sum() == 8 * 10


def test_a_contour_stored_twice_does_not_erase_itself() -> None:
    assert fill([box(2.5, 6.5), box(2.5, 6.5)], (10, 10)).sum() == 16


def test_what_leaves_the_image_is_cut_off() -> None:
    assert fill([box(-30, 40)], (7, 9)).all()
    assert not fill([box(-30, -20)], (7, 9)).any()
    assert fill([box(-30.5, 2.5)], (7, 9)).sum() == 9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-300, 2300), st.integers(-300, 2300)), min_size=3, max_size=12))
def test_any_polygon_is_filled_as_scikit_image_fills_it(corners: list[tuple[int, int]]) -> None:
    # Away from voxel centres, where the two may round differently.
    polygon = np.array(corners) / 100 + [0.0037, 0.0029]
    found, expected = fill([polygon], (20, 22)), polygon2mask((20, 22), polygon)
    assert (found != expected).sum() <= 1
