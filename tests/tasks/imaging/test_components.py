from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.imaging.components import components, keep_largest, keep_largest_regions
from tasks.imaging.crop import box_shape, crop_to, nonzero_box, whole_box


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.4))
def test_components_agree_with_simpleitk(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((7, 12, 11)) < share
    _, sizes = components(mask)
    told = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    truth = np.bincount(sitk.GetArrayFromImage(told).ravel())[1:]
    assert sorted(sizes) == sorted(truth)


def test_each_class_keeps_its_own_largest() -> None:
    labels = np.zeros((4, 12, 12), np.uint8)
    labels[1, 1:5, 1:5] = 1
    labels[1, 8:10, 8:10] = 1
    labels[3, 0, 0:2] = 2
    labels[0, 11, 11] = 2
    before = labels.copy()
    kept = keep_largest(labels, (1,))
    assert (kept == 1).sum() == 16
    assert (kept == 2).sum() == 3
    assert (keep_largest(labels, (1, 2, 9)) == 2).sum() == 2
    np.testing.assert_array_equal(labels, before)


def test_box_holds_every_voxel_of_any_channel() -> None:
    image = np.zeros((2, 6, 9, 8), np.int16)
    image[0, 2, 3, 4] = -5
    image[1, 4, 1, 6] = 1
    box = nonzero_box(image)
    assert box == ((2, 5), (1, 4), (4, 7))
    assert crop_to(image, box).shape == (2, *box_shape(box))
    assert nonzero_box(image, margin=3) == ((0, 6), (0, 7), (1, 8))
    assert nonzero_box(image[0]) == ((2, 3), (3, 4), (4, 5))
    assert nonzero_box(np.zeros((3, 4, 5))) == whole_box((3, 4, 5))


def test_each_region_keeps_its_own_largest_component() -> None:
    regions = np.zeros((1, 3, 12), np.uint8)
    regions[0, 1, 0:5] |= 1
    regions[0, 1, 7:9] |= 1
    regions[0, 1, 3:8] |= 2
    regions[0, 1, 10] |= 2
    assert keep_largest_regions(regions, [0])[0, 1].tolist() == [1, 1, 1, 3, 3, 2, 2, 2, 0, 0, 2, 0]
    assert keep_largest_regions(regions, [0, 1])[0, 1].tolist() == [1, 1, 1, 3, 3, 2, 2, 2, 0, 0, 0, 0]
    assert np.array_equal(keep_largest_regions(regions, [5]), regions)
