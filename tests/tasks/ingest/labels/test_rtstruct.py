"""Contours become the voxels whose centres they hold, on the slices that they lie on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from models.errors import LabelError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from tasks.ingest.labels.rtstruct import read_rtstruct
from tests.tasks.ingest.labels.conftest import content, ct_series, structure_set
from tests.tasks.ingest.labels.test_polygons import box, circle

Contours = list[NDArray[np.float64]]
GRID = Geometry.from_spacing((10, 40, 50), (3.0, 1.0, 1.0), (-25.0, -20.0, 100.0))


def on_planes(geometry: Geometry, polygon: NDArray[np.float64], slices: list[float]) -> Contours:
    """A polygon of fractional indices (y, x) on fractional slices, in LPS mm."""
    return [geometry.to_world(np.column_stack([np.full(len(polygon), z), polygon])) for z in slices]


def read(
    geometry: Geometry, rois: dict[str, Contours], tmp_path: Path, pseudonymizer: Pseudonymizer, **spoil: str
) -> tuple[object, Geometry]:
    image = ct_series(geometry.resized((1, 4, 4)))[0]
    label = read_rtstruct(content(structure_set(image, rois, **spoil), tmp_path), pseudonymizer)
    return label, replace(geometry, frame_of_reference=pseudonymizer.uid(image.FrameOfReferenceUID))


def occupied(
    geometry: Geometry, rois: dict[str, Contours], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> NDArray[np.bool_]:
    label, placed = read(geometry, rois, tmp_path, pseudonymizer)
    return label.mask(placed).occupancy == 255  # type: ignore[attr-defined]


def test_a_cylinder(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    found = occupied(GRID, {"GTV": on_planes(GRID, circle(20, 25, 9), [3, 4, 5, 6])}, tmp_path, pseudonymizer)[0]
    assert found.any(axis=(1, 2)).tolist() == [False] * 3 + [True] * 4 + [False] * 3
    assert found.sum() == pytest.approx(4 * np.pi * 81, rel=0.02)
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), (4.5, 20, 25), atol=0.1)


def test_holes_by_a_second_contour_and_by_a_keyhole(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    outer, inner = box(8.5, 30.5), box(14.5, 20.5)
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    rois = {
        "Liver": on_planes(GRID, outer, [2]) + on_planes(GRID, inner, [2]),
        "Lesion": on_planes(GRID, keyhole, [2]),
    }
    ring, same = occupied(GRID, rois, tmp_path, pseudonymizer)
    assert ring.sum() == 22**2 - 6**2
    np.testing.assert_array_equal(ring, same)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_tilted_image_in_either_order_of_slices(tmp_path: Path, pseudonymizer: Pseudonymizer, reverse: bool) -> None:
    a, b = np.radians((25, -40))
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = turn @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    matrix = np.asarray(GRID.matrix)
    matrix[:3, :3] = turn @ matrix[:3, :3]
    tilted = Geometry(GRID.shape, tuple(map(tuple, matrix)))
    contours = on_planes(tilted, circle(15.2, 30.1, 7), [2, 3, 4])
    straight = occupied(GRID, {"GTV": on_planes(GRID, circle(15.2, 30.1, 7), [2, 3, 4])}, tmp_path, pseudonymizer)
    target = tilted
    if reverse:
        matrix = np.asarray(tilted.matrix)
        matrix[:3, 3] = tilted.to_world((9, 0, 0))
        matrix[:3, 0] *= -1
        target = Geometry(GRID.shape, tuple(map(tuple, matrix)))
    found = occupied(target, {"GTV": contours}, tmp_path, pseudonymizer)
    np.testing.assert_array_equal(found[:, ::-1] if reverse else found, straight)


def test_slices_between_contours_belong_to_the_nearest_and_the_volume_stays(
    tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    fine = GRID.resized((30, 40, 50))
    rois = {"GTV": on_planes(GRID, box(9.5, 19.5), [3, 4]) + on_planes(GRID, box(12.5, 16.5), [5])}
    found = occupied(fine, rois, tmp_path, pseudonymizer)[0]
    assert found.sum(axis=(1, 2)).tolist() == [0] * 9 + [100] * 6 + [16] * 3 + [0] * 12
    # Contours on every second slice: each stands for two.
    rois = {"GTV": on_planes(GRID, box(9.5, 19.5), [2, 4, 6])}
    assert occupied(GRID, rois, tmp_path, pseudonymizer)[0].sum() == 6 * 100


def test_far_planes_are_separate_pieces_and_gaps_are_told(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    label, geometry = read(
        GRID,
        {"GTV": on_planes(GRID, box(9.5, 19.5), [1, 8])},
        tmp_path,
        pseudonymizer,
    )
    mask = label.mask(geometry)  # type: ignore[attr-defined]
    assert mask.occupancy[0].any(axis=(1, 2)).nonzero()[0].tolist() == [1, 8]
    assert mask.notes == ("GTV: 6 slices between its contours have none",)


def test_points_and_empty_structures_are_left_out_with_a_note(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    image = ct_series(GRID.resized((1, 4, 4)))[0]
    rois = {"GTV": on_planes(GRID, box(9.5, 19.5), [1]), "Liver": on_planes(GRID, box(9.5, 19.5), [1]), "Spleen": []}
    ds = structure_set(image, rois)
    ds.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    label = read_rtstruct(content(ds, tmp_path), pseudonymizer)
    assert [s.segment.name for s in label.structures] == ["GTV"]
    assert label.notes == ("2 structures without a closed contour were left out", "1 POINT contours were left out")


def test_names_that_may_be_a_persons_do_not_stay(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    contours = on_planes(GRID, box(9.5, 19.5), [1])
    label, _ = read(GRID, {"Schmidt Anna 1950": contours, "GTV Schmidt": contours}, tmp_path, pseudonymizer)
    assert [s.segment.name for s in label.structures] == ["structure 1", "GTV"]  # type: ignore[attr-defined]


def sagittal(contours: Contours) -> Contours:
    return [points[:, [2, 1, 0]] for points in contours]


@pytest.mark.parametrize(
    ("contours", "reason"),
    [
        (on_planes(GRID, box(9.5, 19.5), [-20]), "no-overlap"),
        (on_planes(GRID, box(900.5, 919.5), [3]), "no-overlap"),
        (sagittal(on_planes(GRID, box(9.5, 19.5), [3])), "tilted-contours"),
        ([np.full((5, 3), np.nan)], "bad-contour"),
        ([], "empty-label"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, pseudonymizer: Pseudonymizer, contours: Contours, reason: str
) -> None:
    with pytest.raises(LabelError) as told:
        occupied(GRID, {"GTV": contours}, tmp_path, pseudonymizer)
    assert told.value.reason == reason


def test_another_frame_of_reference_is_refused(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    label, geometry = read(GRID, {"GTV": on_planes(GRID, box(9.5, 19.5), [3])}, tmp_path, pseudonymizer, frame="1.2.3")
    with pytest.raises(LabelError) as told:
        label.mask(geometry)  # type: ignore[attr-defined]
    assert told.value.reason == "frame-of-reference-mismatch"


def test_every_sarcoma_is_voxel_for_voxel_the_mask_beside_it(shared_data: Path, pseudonymizer: Pseudonymizer) -> None:
    """26 series of PET, CT and MR; `mask.nii.gz` is the truth that came with them."""
    wrong: dict[str, int] = {}
    count = 0
    for path in sorted((shared_data / "sarcoma").glob("*/*/rtstruct/*")):
        folder = path.parents[1]
        headers: list[Dataset] = [pydicom.dcmread(p, stop_before_pixels=True) for p in (folder / "image").iterdir()]
        headers.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
        geometry = Geometry.from_dicom(
            image_orientation=headers[0].ImageOrientationPatient,
            pixel_spacing=headers[0].PixelSpacing,
            first_position=headers[0].ImagePositionPatient,
            last_position=headers[-1].ImagePositionPatient,
            shape=(len(headers), headers[0].Rows, headers[0].Columns),
            frame_of_reference=pseudonymizer.uid(headers[0].FrameOfReferenceUID),
        )
        truth = np.asarray(nib.load(folder / "mask.nii.gz").dataobj).transpose(2, 1, 0) > 0
        label = read_rtstruct(path.read_bytes(), pseudonymizer)
        found = label.mask(geometry).occupancy[0] == 255
        count += 1
        if different := int((found != truth).sum()):
            wrong[f"{folder.parent.name}/{folder.name}"] = different
    assert count == 26
    assert not wrong
