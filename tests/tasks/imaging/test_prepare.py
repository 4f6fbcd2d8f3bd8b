from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.errors import PixelError
from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from tasks.imaging.normalise import normalise
from tasks.imaging.prepare import (
    prepare_image,
    prepare_mask,
    restore_labels,
)
from tasks.imaging.resample import resample


def plan(**changes: object) -> PreparePlan:
    given: dict = {"dimensions": 3, "spacing": (1.5, 1.5, 1.5), "normalisation": (Normalisation(scheme="zscore"),)}
    return PreparePlan(**{**given, **changes})


def body(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A blob in a border of zeros."""
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2) * 500 + 300
    image[:1], image[:, :4], image[:, :, -5:] = 0, 0, 0
    return image.astype(np.float32)


def blob(shape: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return (noise > np.quantile(noise, 0.8)).astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


GRID = Geometry.from_spacing((24, 60, 50), (2.5, 0.9, 0.9), (12.0, -7.0, 300.0), "1.2.3")


def test_crops_normalises_then_resamples_onto_the_plans_spacing() -> None:
    got = prepare_image(body(GRID.shape), GRID, plan(crop="nonzero"))
    assert got.crop == ((1, 24), (4, 60), (0, 45))
    assert got.geometry.spacing == pytest.approx((1.5, 1.5, 1.5), rel=0.03)
    assert got.geometry.frame_of_reference == "1.2.3"
    assert got.array.shape == (1, *got.geometry.shape)
    assert got.array.mean() == pytest.approx(0, abs=0.05)
    # The world position of the crop's corner is kept.
    corner = got.geometry.to_world((-0.5, -0.5, -0.5))
    np.testing.assert_allclose(corner, GRID.to_world((0.5, 3.5, -0.5)))


def test_the_image_stays_where_simpleitk_sees_it() -> None:
    image = body(GRID.shape)
    got = prepare_image(image, GRID, plan(normalisation=(Normalisation(scheme="none"),)))
    source = sitk.GetImageFromArray(image)
    source.SetSpacing(GRID.spacing[::-1])
    source.SetOrigin(GRID.origin)
    world = got.geometry.to_world((8, 20, 15))
    there = source.TransformPhysicalPointToContinuousIndex(world.tolist())
    truth = ndimage.map_coordinates(image, np.array(there[::-1])[:, None], order=3, mode="nearest")[0]
    assert got.array[0, 8, 20, 15] == pytest.approx(truth, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(6, 24), st.integers(12, 40), st.integers(12, 40)),
    spacing=st.tuples(st.floats(0.8, 4), st.floats(0.6, 2), st.floats(0.6, 2)),
    target=st.floats(0.5, 1.0),
)
def test_there_and_back_keeps_labels(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: float
) -> None:
    """Finer there, so that nothing may be lost on the way."""
    grid = Geometry.from_spacing(shape, spacing)
    labels = blob(shape)
    prepared = prepare_image(body(shape), grid, plan(spacing=(target * 0.6,) * 3))
    there = prepare_mask(labels, grid, plan(), prepared)
    assert there.shape == prepared.geometry.shape
    np.testing.assert_array_equal(restore_labels(there, prepared, grid), labels)


def test_restored_labels_of_a_coarser_grid_overlap_and_end_with_the_crop() -> None:
    labels = blob(GRID.shape)
    prepared = prepare_image(body(GRID.shape), GRID, plan(crop="nonzero"))
    back = restore_labels(prepare_mask(labels, GRID, plan(), prepared), prepared, GRID)
    (z0, z1), (y0, y1), (x0, x1) = prepared.crop
    inside = np.zeros(GRID.shape, bool)
    inside[z0:z1, y0:y1, x0:x1] = True
    assert not back[~inside].any()
    assert dice(back[inside] > 0, labels[inside] > 0) > 0.9


def test_labels_on_another_grid_of_the_same_patient_are_brought_over() -> None:
    coarse = GRID.resized((12, 30, 25))
    labels = blob(coarse.shape)
    prepared = prepare_image(body(GRID.shape), GRID, plan(spacing=None))
    there = prepare_mask(labels, coarse, plan(), prepared)
    np.testing.assert_array_equal(there, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_two_dimensional_plans_keep_the_slices() -> None:
    got = prepare_image(body(GRID.shape), GRID, plan(dimensions=2, spacing=(99.0, 1.8, 1.8)))
    assert got.array.shape == (1, 24, 30, 25)
    single = Geometry.from_spacing((1, 40, 30), (1, 0.5, 0.5))
    flat = prepare_image(body((2, 40, 30))[:1] + 1, single, plan(dimensions=2, spacing=(1, 1, 1)))
    assert flat.array.shape == (1, 1, 20, 15)


def test_classification_fits_into_the_size_with_its_proportions() -> None:
    grid = Geometry.from_spacing((1, 80, 40), (1, 0.2, 0.2))
    image = np.full(grid.shape, 100, np.float32)
    image[:, 10:70, 10:30] = 900
    got = prepare_image(
        image, grid, plan(dimensions=2, spacing=None, size=(1, 32, 32), normalisation=(Normalisation(scheme="minmax"),))
    )
    assert got.array.shape == (1, 1, 32, 32)
    assert (got.array[0, 0, :, :8] == 0).all()
    assert (got.array[0, 0, :, 24:] == 0).all()
    assert got.array[0, 0, 6:26, 13:19].min() > 0.95
    assert got.geometry.spacing[1:] == pytest.approx((0.5, 0.5))
    # A point of the picture is still the same place in the patient.
    np.testing.assert_allclose(got.geometry.to_world((0, 15.5, 15.5)), grid.to_world((0, 39.5, 19.5)), atol=1e-9)


def test_a_picture_of_the_size_is_left_as_it_is() -> None:
    grid = Geometry.from_spacing((1, 28, 28), (1, 1, 1))
    image = np.random.default_rng(0).integers(0, 255, grid.shape).astype(np.uint8)
    got = prepare_image(
        image, grid, plan(dimensions=2, spacing=None, size=(1, 28, 28), normalisation=(Normalisation(scheme="none"),))
    )
    np.testing.assert_array_equal(got.array[0], image)


def test_colour_has_a_normalisation_per_channel() -> None:
    grid = Geometry.from_spacing((1, 20, 20), (1, 1, 1))
    image = np.stack([np.full(grid.shape, v, np.uint8) for v in (0, 51, 255)])
    ways = tuple(Normalisation(scheme="window", low=0, high=h) for h in (255, 255, 510))
    got = prepare_image(image, grid, plan(spacing=None, channels=3, normalisation=ways))
    assert got.array[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 0.5])
    with pytest.raises(PixelError, match="3 channel"):
        prepare_image(image, grid, plan())


@pytest.mark.parametrize("scheme", ["ct", "window"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.5, 0.6, 0.6), (2.5, 1.5, 1.5), (1.0, 0.9, 0.9), None])
def test_part_by_part_is_the_whole_normalised_and_then_resampled(
    scheme: str, spacing: tuple[float, float, float] | None
) -> None:
    how = Normalisation(scheme=scheme, low=250, high=400, mean=320, std=40)
    grid = Geometry.from_spacing((24, 300, 260), (2.5, 0.9, 0.9))  # of more than one part
    image = body(grid.shape)
    before = image.copy()
    for array in (image, image.astype(np.int16)):
        got = prepare_image(array, grid, plan(spacing=spacing, normalisation=(how,)))
        whole = resample(normalise(array, how), got.geometry.shape)
        np.testing.assert_array_equal(got.array[0], whole)
    np.testing.assert_array_equal(image, before)


def test_infinite_voxels_are_refused() -> None:
    image = body(GRID.shape)
    image[3, 3, 3] = np.nan
    with pytest.raises(PixelError) as caught:
        prepare_image(image, GRID, plan())
    assert caught.value.reason == "non-finite-pixels"


def test_thick_slices_are_not_interpolated_across() -> None:
    grid = Geometry.from_spacing((6, 40, 40), (8, 1, 1))
    image = np.zeros(grid.shape, np.float32)
    image[::2] = 100
    how = (Normalisation(scheme="none"),)
    got = prepare_image(image, grid, plan(spacing=(4, 1, 1), normalisation=how))
    assert set(np.unique(got.array.round(3))) == {0, 100}


def test_a_real_hippocampus_survives_the_round_trip(shared_data: Path) -> None:
    folder = shared_data / "hippocampus"
    label = sorted(folder.glob("labels/*.nii.gz"))[0]
    image = folder / "images" / label.name
    stored = nibabel.load(label)
    labels = np.asarray(stored.dataobj).T.astype(np.uint8)
    grid = Geometry.from_nifti(stored.affine, stored.shape)
    voxels = np.asarray(nibabel.load(image).dataobj).T
    prepared = prepare_image(voxels, grid, plan(spacing=(0.8, 0.8, 0.8), crop="nonzero"))
    mask = prepare_mask(labels, grid, plan(), prepared)
    back = restore_labels(mask, prepared, grid)
    for value in (1, 2):
        assert dice(back == value, labels == value) > 0.97
