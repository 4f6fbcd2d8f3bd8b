from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.geometry import Geometry
from tasks.imaging.resample import resample, resample_labels, resample_to_grid

HU_TOLERANCE = 0.01
sizes = st.tuples(*[st.integers(1, 24)] * 3)


def scan(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth anatomy with sharp noise on top, in HU."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(0, 4000, shape), 2)
    return (smooth + rng.normal(0, 300, shape)).astype(np.float32)


def itk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ascontiguousarray(geometry.direction[:, ::-1]).ravel().tolist())
    return image


def itk_resampled(array: np.ndarray, source: Geometry, target: Geometry, kind: int, fill: float = 0) -> np.ndarray:
    reference = itk(np.zeros(target.shape, np.float32), target)
    return sitk.GetArrayFromImage(
        sitk.Resample(itk(array, source), reference, sitk.Transform(3, sitk.sitkIdentity), kind, fill)
    )


@settings(max_examples=40, deadline=None)
@given(source=sizes, target=sizes, order=st.sampled_from([1, 3]))
def test_is_scipys_spline(source: tuple[int, ...], target: tuple[int, ...], order: int) -> None:
    image = scan(source)
    ratio = [m / n for n, m in zip(source, target, strict=True)]
    truth = ndimage.zoom(image.astype(float), ratio, order=order, mode="nearest", grid_mode=True)
    got = resample(image, target, order=order)
    assert got.dtype == np.float32
    assert got.shape == target
    np.testing.assert_allclose(got, truth, atol=HU_TOLERANCE)


@pytest.mark.parametrize("target", [(200, 60, 66), (12, 240, 30), (40, 128, 300)])
def test_stays_exact_where_the_band_is_cut_into_blocks(target: tuple[int, int, int]) -> None:
    image = scan((40, 128, 150)).astype(np.int16)
    ratio = [m / n for n, m in zip(image.shape, target, strict=True)]
    truth = ndimage.zoom(image.astype(float), ratio, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resample(image, target), truth, atol=HU_TOLERANCE)


def test_linear_agrees_with_simpleitk_inside_the_image() -> None:
    geometry = Geometry.from_spacing((20, 40, 36), (3.0, 0.8, 0.8), (-20.0, 5.0, 100.0))
    target = geometry.resized((36, 30, 50))
    image = scan(geometry.shape)
    truth = itk_resampled(image, geometry, target, sitk.sitkLinear)
    np.testing.assert_allclose(
        resample(image, target.shape, order=1)[2:-2, 2:-2, 2:-2], truth[2:-2, 2:-2, 2:-2], atol=HU_TOLERANCE
    )


def test_anisotropic_invents_no_slices() -> None:
    image = scan((5, 30, 30))
    got = resample(image, (15, 40, 40), anisotropic=True)
    planes = resample(image, (5, 40, 40))
    np.testing.assert_allclose(got[1::3], planes, atol=HU_TOLERANCE)
    np.testing.assert_allclose(got[0::3], planes, atol=HU_TOLERANCE)


@pytest.mark.parametrize("target", [(15, 40, 40), (15, 20, 20), (15, 30, 30), (3, 60, 60)])
def test_anisotropic_takes_the_nearest_slice(target: tuple[int, int, int]) -> None:
    image = scan((5, 30, 30))
    planes = resample(image, (5, *target[1:]))
    nearest = np.floor((np.arange(target[0]) + 0.5) * 5 / target[0]).astype(int)
    np.testing.assert_allclose(resample(image, target, anisotropic=True), planes[nearest], atol=HU_TOLERANCE)


def test_antialias_removes_what_the_coarse_grid_cannot_hold() -> None:
    stripes = np.zeros((1, 64, 64), np.float32)
    stripes[:, :, ::2] = 1000
    assert resample(stripes, (1, 20, 20)).std() > 200
    smooth = resample(stripes, (1, 20, 20), antialias=True)
    assert smooth[:, 2:-2, 2:-2].std() < 100
    assert abs(smooth.mean() - 500) < 20


def test_labels_agree_with_simpleitks_nearest() -> None:
    geometry = Geometry.from_spacing((10, 31, 29), (2.0, 1.0, 1.0))
    target = geometry.resized((17, 22, 41))
    labels = np.random.default_rng(1).integers(0, 5, geometry.shape).astype(np.uint8)
    truth = itk_resampled(labels, geometry, target, sitk.sitkNearestNeighbor)
    got = resample_labels(labels, target.shape)
    assert got.dtype == np.uint8
    assert (got == truth).mean() > 0.97  # ties alone may go the other way


def rotated(geometry: Geometry, degrees: float) -> Geometry:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Geometry(geometry.shape, tuple(map(tuple, turn @ geometry.matrix)))


GRID = Geometry.from_spacing((12, 30, 26), (2.5, 0.9, 1.1), (10.0, -20.0, 30.0))


def flipped_and_exchanged(geometry: Geometry) -> Geometry:
    """The same extent, indexed (x, z reversed, y)."""
    matrix = geometry.matrix
    corner = geometry.to_world((geometry.shape[0] - 1, 0, 0))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = matrix[:3, 2], -matrix[:3, 0], matrix[:3, 1]
    affine[:3, 3] = corner
    z, y, x = geometry.shape
    return Geometry((x, z, y), tuple(map(tuple, affine)))


@pytest.mark.parametrize(
    "target",
    [
        flipped_and_exchanged(GRID),
        flipped_and_exchanged(GRID).resized((20, 20, 20)),
        rotated(GRID, 12),
        Geometry.from_spacing((9, 20, 40), (3.0, 1.3, 0.7), (5.0, -15.0, 33.0)),
    ],
    ids=["flipped", "flipped and resized", "oblique", "shifted"],
)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_any_grid_agrees_with_simpleitk(target: Geometry, order: int) -> None:
    image = ndimage.gaussian_filter(scan(GRID.shape), 1.5)
    kind = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}[order]
    inner = target.to_world(np.stack(np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij"), -1))
    index = GRID.to_index(inner)
    deep = ((index > 3) & (index < np.array(GRID.shape) - 4)).all(-1)
    outside = ((index < -0.6) | (index > np.array(GRID.shape) - 0.4)).any(-1)
    truth = itk_resampled(image, GRID, target, kind, -1000)
    got = resample_to_grid(image, GRID, target, order=order, fill=-1000)
    assert (got[outside] == -1000).all()
    assert deep.sum() > 50
    if order == 0:
        assert (np.abs(got - truth)[deep] < HU_TOLERANCE).mean() > 0.98  # ties
    else:
        # The ends differ: scipy's spline repeats the border voxel, ITK's mirrors it.
        assert np.abs(got - truth)[deep].max() < (HU_TOLERANCE if order == 1 else 0.02 * image.std())


def test_there_and_back_on_an_exchanged_grid_is_the_image() -> None:
    image = scan(GRID.shape).astype(np.int16)
    other = flipped_and_exchanged(GRID)
    there = resample_to_grid(image, GRID, other, order=0)
    assert there.dtype == np.int16
    np.testing.assert_array_equal(resample_to_grid(there, other, GRID, order=0), image)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_same_grid_gives_an_array_of_its_own(order: int) -> None:
    image = scan(GRID.shape)
    got = resample_to_grid(image, GRID, GRID, order=order)
    np.testing.assert_array_equal(got, image)
    assert not np.shares_memory(got, image)
    assert not np.shares_memory(resample_labels(image, GRID.shape), image)


def test_a_grid_elsewhere_sees_only_fill() -> None:
    far = Geometry.from_spacing((4, 4, 4), (1, 1, 1), (1e4, 0, 0))
    assert (resample_to_grid(scan(GRID.shape), GRID, far, order=1, fill=7) == 7).all()


def test_may_run_in_many_threads() -> None:
    image = scan((20, 60, 50))
    alone = resample(image, (31, 47, 71))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: resample(image, (31, 47, 71)), range(16)):
            np.testing.assert_array_equal(got, alone)
