"""Label maps in NIfTI: on the image's grid, on another one, and beside it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.errors import LabelError
from models.geometry import Geometry
from tasks.ingest.labels.nifti import read_nifti

GRID = Geometry.from_spacing((6, 8, 10), (3.0, 1.0, 1.5), (-5.0, 7.0, 20.0))


def label_map(geometry: Geometry = GRID) -> np.ndarray:
    labels = np.zeros(geometry.shape, np.uint8)
    labels[1:4, 2:6, 3:8] = 1
    labels[4, 2:6, 3:8] = 7
    return labels


def write(path: Path, labels: np.ndarray, geometry: Geometry) -> Path:
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), geometry.to_nifti()), path)
    return path


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_the_same_grid_is_taken_as_it_is(tmp_path: Path, name: str, dtype: type) -> None:
    label = read_nifti(write(tmp_path / name, label_map().astype(dtype), GRID), {1: "anterior"})
    mask = label.mask(GRID)
    assert [(s.number, s.name) for s in mask.segments] == [(1, "anterior"), (7, "7")]
    np.testing.assert_array_equal(mask.occupancy, np.stack([label_map() == 1, label_map() == 7]) * 255)
    assert mask.notes == ()


def test_another_orientation_of_the_same_voxels(tmp_path: Path) -> None:
    """nibabel's canonical form turns axes; the structure stays where it was."""
    image = nib.Nifti1Image(label_map().transpose(2, 1, 0), GRID.to_nifti())
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
    nib.save(turned, tmp_path / "turned.nii.gz")
    mask = read_nifti(tmp_path / "turned.nii.gz").mask(GRID)
    np.testing.assert_array_equal(mask.occupancy[0] > 0, label_map() == 1)
    assert "another grid" in mask.notes[0]


def test_another_grid_of_the_same_space_by_the_nearest_voxel(tmp_path: Path) -> None:
    label = read_nifti(write(tmp_path / "mask.nii.gz", label_map(), GRID))
    fine = GRID.resized((12, 16, 20))
    mask = label.mask(fine)
    np.testing.assert_array_equal(mask.occupancy[0] > 0, (label_map() == 1).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert "another grid" in mask.notes[0]


def test_no_overlap_is_refused(tmp_path: Path) -> None:
    label = read_nifti(write(tmp_path / "mask.nii.gz", label_map(), GRID))
    away = Geometry.from_spacing(GRID.shape, GRID.spacing, (900.0, 0.0, 0.0))
    with pytest.raises(LabelError) as told:
        label.mask(away)
    assert told.value.reason == "no-overlap"


def test_an_empty_map_needs_names(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    with pytest.raises(LabelError) as told:
        read_nifti(path)
    assert told.value.reason == "empty-label"
    assert not read_nifti(path, {1: "lesion"}).mask(GRID).occupancy.any()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.full(GRID.shape, 0.5, np.float32), "not-a-label-map"),
        (np.full(GRID.shape, np.nan, np.float32), "not-a-label-map"),
        (np.full(GRID.shape, -3, np.int16), "not-a-label-map"),
        (np.arange(480, dtype=np.int16).reshape(GRID.shape).repeat(2, 0) + np.arange(12)[:, None, None], None),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path: Path, labels: np.ndarray, reason: str | None) -> None:
    path = write(tmp_path / "mask.nii", labels.astype(labels.dtype if labels.dtype != np.int64 else np.int16), GRID)
    if reason is None:
        assert len(read_nifti(path).segments) > 255
        return
    with pytest.raises(LabelError) as told:
        read_nifti(path)
    assert told.value.reason == reason


def test_a_map_that_does_not_say_where_it_lies_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(label_map().transpose(2, 1, 0), None)
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(image, tmp_path / "mask.nii")
    with pytest.raises(LabelError) as told:
        read_nifti(tmp_path / "mask.nii")
    assert told.value.reason == "no-orientation"


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x1f\x8b\x08\x00broken"])
def test_files_that_are_no_nifti(tmp_path: Path, content: bytes) -> None:
    for name in ("mask.nii", "mask.nii.gz", "mask.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LabelError) as told:
            read_nifti(tmp_path / name)
        assert told.value.reason == "unreadable-label"
        assert str(tmp_path) not in str(told.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.nii.gz", np.random.default_rng(0).integers(0, 3, GRID.shape).astype(np.uint8), GRID)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LabelError) as told:
        read_nifti(path)
    assert told.value.reason == "unreadable-label"
