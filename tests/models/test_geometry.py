"""Where voxels lie: the one thing that must never be a little wrong."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from models.errors import GeometryError
from models.geometry import Geometry

shapes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.floats(0.2, 8.0)] * 3)
points = st.tuples(*[st.floats(-500, 500)] * 3)
angles = st.tuples(*[st.floats(-180, 180)] * 3)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any right-angled grid, in any orientation."""
    flat = Geometry.from_spacing(draw(shapes), draw(spacings), draw(points), "2.25.1")
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", draw(angles), degrees=True).as_matrix()
    return Geometry(flat.shape, tuple(map(tuple, turn @ flat.matrix)), flat.frame_of_reference)  # type: ignore[arg-type]


@given(geometries())
def test_dicom_attributes_give_the_same_grid_back(grid: Geometry) -> None:
    orientation, pixel_spacing, positions = grid.to_dicom()
    again = Geometry.from_dicom(
        image_orientation=orientation,
        pixel_spacing=pixel_spacing,
        first_position=positions[0],
        last_position=positions[-1],
        shape=grid.shape,
        slice_spacing=grid.spacing[0],
        frame_of_reference="2.25.1",
    )
    # A single slice has no stacking axis of its own: its z axis is the normal, which may point the other way.
    if grid.shape[0] > 1:
        assert again.same_grid(grid, tolerance=1e-6)
    assert again.spacing == pytest.approx(grid.spacing)
    assert again.origin == pytest.approx(grid.origin)


@given(geometries())
def test_nifti_affine_gives_the_same_grid_back(grid: Geometry) -> None:
    again = Geometry.from_nifti(grid.to_nifti(), grid.shape[::-1], grid.frame_of_reference)
    np.testing.assert_allclose(again.matrix, grid.matrix, atol=1e-9)


@given(geometries(), st.tuples(*[st.floats(-50, 50)] * 3))
def test_index_and_world_are_inverse(grid: Geometry, index: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-6)


@given(geometries())
def test_json_keeps_every_bit(grid: Geometry) -> None:
    assert Geometry.from_json(grid.to_json()) == grid


@given(geometries(), shapes)
def test_resizing_keeps_the_outer_borders(grid: Geometry, shape: tuple[int, int, int]) -> None:
    resized = grid.resized(shape)
    assert resized.extent == pytest.approx(grid.extent)
    np.testing.assert_allclose(resized.to_world([-0.5] * 3), grid.to_world([-0.5] * 3), atol=1e-6)


@given(geometries(), st.data())
def test_a_cropped_voxel_stays_where_it_was(grid: Geometry, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stop = [data.draw(st.integers(s + 1, n)) for s, n in zip(start, grid.shape, strict=True)]
    cropped = grid.cropped([slice(a, b) for a, b in zip(start, stop, strict=True)])
    np.testing.assert_allclose(cropped.origin, grid.to_world(start), atol=1e-6)
    back = cropped.padded(start, [n - b for n, b in zip(grid.shape, stop, strict=True)])
    assert back.same_grid(grid, tolerance=1e-6)


def test_a_voxel_of_a_real_nifti_is_where_nibabel_says(shared_data) -> None:  # type: ignore[no-untyped-def]
    image = nib.load(next((shared_data / "hippocampus" / "images").glob("*.nii.gz")))
    grid = Geometry.from_nifti(image.affine, image.shape)
    ras = image.affine @ [3, 5, 7, 1]
    np.testing.assert_allclose(grid.to_world([7, 5, 3]), [-ras[0], -ras[1], ras[2]])


def test_gantry_tilt_is_kept_as_shear_and_told() -> None:
    tilt = np.radians(20)
    grid = Geometry.from_dicom(
        image_orientation=[1, 0, 0, 0, 1, 0],
        pixel_spacing=[0.5, 0.5],
        first_position=[0, 0, 0],
        last_position=[0, 10 * np.tan(tilt), 10],
        shape=(11, 8, 8),
    )
    assert grid.tilt_degrees == pytest.approx(20)
    assert grid.voxel_volume == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pixel_spacing": [float("nan"), 1]}, "non-finite-geometry"),
        ({"pixel_spacing": [0, 1]}, "non-finite-geometry"),
        ({"image_orientation": [1, 0, 0, 1, 0, 0]}, "bad-orientation"),
        ({"image_orientation": [2, 0, 0, 0, 1, 0]}, "bad-orientation"),
        ({"last_position": [0, 0, 0]}, "bad-geometry"),
    ],
)
def test_what_is_no_geometry_is_refused_with_its_reason(change: dict[str, object], reason: str) -> None:
    good: dict[str, object] = {
        "image_orientation": [1, 0, 0, 0, 1, 0],
        "pixel_spacing": [1, 1],
        "first_position": [0, 0, 0],
        "last_position": [0, 0, 9],
        "shape": (10, 4, 4),
    }
    with pytest.raises(GeometryError) as caught:
        Geometry.from_dicom(**(good | change))  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_grids_that_differ_by_a_tenth_of_a_voxel_are_not_the_same() -> None:
    grid = Geometry.from_spacing((10, 10, 10), (1, 1, 1))
    assert grid.same_grid(Geometry.from_spacing((10, 10, 10), (1, 1, 1), (0.01, 0, 0)))
    assert not grid.same_grid(Geometry.from_spacing((10, 10, 10), (1, 1, 1), (0.1, 0, 0)))
    # A spacing that is slightly off adds up over the axis.
    assert not grid.same_grid(Geometry.from_spacing((10, 10, 10), (1.02, 1, 1)))
