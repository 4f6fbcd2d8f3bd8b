"""A segmentation's voxels come out where and as they were put in."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits

from models.errors import LabelError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from models.volume import Mask
from tasks.ingest.labels.seg import Segmentation, read_seg
from tests.tasks.ingest.labels.conftest import content, ct_series, segmentation

GRID = Geometry.from_spacing((6, 9, 11), (2.5, 0.7, 0.8), (10.0, -20.0, 30.0))


@pytest.fixture
def image(pseudonymizer: Pseudonymizer) -> tuple[list[Dataset], Geometry]:
    slices = ct_series(GRID)
    return slices, replace(GRID, frame_of_reference=pseudonymizer.uid(slices[0].FrameOfReferenceUID))


def random_mask(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random(shape) < 0.3).astype(np.uint8)


def shuffle_frames(seg: Dataset) -> None:
    """Put a BINARY segmentation's frames in another order."""
    size = seg.Rows * seg.Columns
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: size * seg.NumberOfFrames]
    order = list(range(seg.NumberOfFrames))
    random.Random(3).shuffle(order)
    seg.PixelData = pack_bits(bits.reshape(-1, size)[order].ravel())
    seg.PerFrameFunctionalGroupsSequence = [seg.PerFrameFunctionalGroupsSequence[n] for n in order]


def test_binary_segments_overlap_and_keep_their_names_and_codes(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    truth = random_mask((*GRID.shape, 2))
    seg = segmentation(slices, truth, names=("Liver", "Schmidt^Anna"))
    mask = read_seg(content(seg, tmp_path), pseudonymizer).mask(geometry)
    assert (truth.all(axis=-1)).any()
    np.testing.assert_array_equal(mask.occupancy, np.moveaxis(truth, -1, 0) * 255)
    # The second label is no harmless text: what its code means takes its place.
    assert [(s.number, s.name, s.code) for s in mask.segments] == [
        (1, "Liver", "SCT:10200004"),
        (2, "Liver", "SCT:10200004"),
    ]
    assert mask.source == "SEG"


def test_frames_are_found_by_position_in_any_order_and_missing_ones_are_empty(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    truth = random_mask((*GRID.shape, 2), seed=1)
    truth[0] = truth[3, ..., 0] = truth[5] = 0
    seg = segmentation(slices, truth, names=("Liver", "Lesion"))
    assert seg.NumberOfFrames == 7
    shuffle_frames(seg)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    mask = read_seg(content(seg, tmp_path), pseudonymizer).mask(geometry)
    np.testing.assert_array_equal(mask.occupancy, np.moveaxis(truth, -1, 0) * 255)


def test_fractions_are_scaled_to_their_maximum(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    share = np.random.default_rng(0).random(GRID.shape).astype(np.float32)
    seg = segmentation(slices, share, "FRACTIONAL")
    mask = read_seg(content(seg, tmp_path), pseudonymizer).mask(geometry)
    assert np.abs(mask.occupancy[0] / 255 - share).max() <= 0.5 / 255 + 1e-6
    half = seg
    half.MaximumFractionalValue = 100
    half.PixelData = np.full(GRID.shape, 50, np.uint8).tobytes() + b"\0" * (np.prod(GRID.shape) % 2)
    mask = read_seg(content(half, tmp_path), pseudonymizer).mask(geometry)
    assert set(np.unique(mask.occupancy)) <= {127, 128}


def test_a_label_map_segmentation(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    truth = np.random.default_rng(2).integers(0, 3, GRID.shape).astype(np.uint8)
    seg = segmentation(slices, truth, "LABELMAP", names=("Liver", "Lesion"))
    mask = read_seg(content(seg, tmp_path), pseudonymizer).mask(geometry)
    assert [s.name for s in mask.segments] == ["Liver", "Lesion"]
    np.testing.assert_array_equal(mask.occupancy, np.stack([truth == 1, truth == 2]) * 255)


def test_a_segmentation_of_a_part_is_put_in_its_place(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    seg = segmentation(slices, random_mask(GRID.shape, seed=4))
    label = read_seg(content(seg, tmp_path), pseudonymizer)
    whole = label.mask(geometry).occupancy
    part = geometry.cropped((slice(1, 4), slice(2, 8), slice(3, 11)))
    cropped = label.mask(part)
    np.testing.assert_array_equal(cropped.occupancy, whole[:, 1:4, 2:8, 3:11])
    assert any("outside the image" in note for note in cropped.notes)
    padded = label.mask(geometry.padded((2, 1, 0), (0, 3, 4))).occupancy
    np.testing.assert_array_equal(padded[:, 2:, 1:10, :11], whole)
    assert padded.sum() == whole.sum()


def test_another_grid_of_the_same_space_is_resampled_with_a_note(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    truth = np.zeros(GRID.shape, np.uint8)
    truth[1:5, 2:7, 3:9] = 1
    label = read_seg(content(segmentation(slices, truth), tmp_path), pseudonymizer)
    fine = geometry.resized((12, 18, 22))
    mask = label.mask(fine)
    np.testing.assert_array_equal(mask.occupancy[0] > 0, truth.repeat(2, 0).repeat(2, 1).repeat(2, 2) > 0)
    assert any("another grid" in note for note in mask.notes)
    assert not label.fit(fine).same_voxels
    assert label.fit(geometry) > label.fit(fine)
    # The same voxels, counted from the other end.
    turned = np.asarray(geometry.matrix)
    turned[:3, 3] = geometry.to_world((5, 8, 10))
    turned[:3, :3] *= -1
    mask = label.mask(Geometry(GRID.shape, tuple(map(tuple, turned)), geometry.frame_of_reference))
    np.testing.assert_array_equal(mask.occupancy[0] > 0, truth[::-1, ::-1, ::-1] > 0)


def test_a_tilted_image_and_its_segmentation(tmp_path: Path, pseudonymizer: Pseudonymizer) -> None:
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.asarray(GRID.matrix)
    matrix[:3, :3] = turn @ matrix[:3, :3]
    tilted = Geometry(GRID.shape, tuple(map(tuple, matrix)))
    slices = ct_series(tilted)
    truth = random_mask(GRID.shape, seed=5)
    geometry = replace(tilted, frame_of_reference=pseudonymizer.uid(slices[0].FrameOfReferenceUID))
    mask = read_seg(content(segmentation(slices, truth), tmp_path), pseudonymizer).mask(geometry)
    np.testing.assert_array_equal(mask.occupancy[0], truth * 255)


def test_what_lies_beside_the_image_is_refused(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, geometry = image
    label = read_seg(content(segmentation(slices, random_mask(GRID.shape)), tmp_path), pseudonymizer)
    beside = np.asarray(geometry.matrix)
    beside[2, 3] += 500
    with pytest.raises(LabelError) as told:
        label.mask(Geometry(GRID.shape, tuple(map(tuple, beside)), geometry.frame_of_reference))
    assert told.value.reason == "no-overlap"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda seg: delattr(seg, "SegmentSequence"), "unreadable-label"),
        (lambda seg: setattr(seg, "SegmentationType", "SURFACE"), "unknown-segmentation-type"),
        (lambda seg: seg.PerFrameFunctionalGroupsSequence.pop(), "frames-not-described"),
        (lambda seg: setattr(seg.SegmentSequence[0], "SegmentNumber", 7), "unknown-segment"),
        (lambda seg: setattr(seg, "PixelData", seg.PixelData[:20]), None),
    ],
)
def test_broken_files_are_told_by_reason(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer, spoil: object, reason: str
) -> None:
    slices, geometry = image
    seg = segmentation(slices, random_mask(GRID.shape))
    spoil(seg)  # type: ignore[operator]
    with pytest.raises(LabelError) as told:
        read_seg(content(seg, tmp_path), pseudonymizer).mask(geometry)
    assert reason is None or told.value.reason == reason


def test_a_flat_image_without_a_frame_of_reference_is_found_by_its_instances(
    image: tuple[list[Dataset], Geometry], tmp_path: Path, pseudonymizer: Pseudonymizer
) -> None:
    slices, _ = image
    truth = random_mask((1, *GRID.shape[1:]))
    seg = segmentation(slices[2:3], truth)
    del seg.FrameOfReferenceUID
    for frame in [*seg.PerFrameFunctionalGroupsSequence, *seg.SharedFunctionalGroupsSequence]:
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            frame.pop(name, None)
    label = read_seg(content(seg, tmp_path), pseudonymizer)
    assert label.belonging.frames == ()
    flat = Geometry.from_spacing((1, *GRID.shape[1:]), (1, 1, 1))
    instance = pseudonymizer.uid(slices[2].SOPInstanceUID)
    np.testing.assert_array_equal(label.mask(flat, [instance]).occupancy[0], truth * 255)
    with pytest.raises(LabelError):
        label.mask(flat, ["2.25.1"])


@pytest.mark.parametrize(
    ("name", "images", "voxels"),
    [
        ("liver.dcm", "ct_3slice", [107098]),
        ("partial_overlaps.dcm", "ct_3slice", [9602, 11888, 10743, 6693, 4713]),
        ("24x38x3/label.dcm", "24x38x3/image", [315]),
    ],
)
def test_real_segmentations_on_their_images(
    shared_data: Path, pseudonymizer: Pseudonymizer, name: str, images: str, voxels: list[int]
) -> None:
    folder = shared_data / "segmentations"
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in (folder / images).iterdir()]
    headers.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    geometry = Geometry.from_dicom(
        image_orientation=headers[0].ImageOrientationPatient,
        pixel_spacing=headers[0].PixelSpacing,
        first_position=headers[0].ImagePositionPatient,
        last_position=headers[-1].ImagePositionPatient,
        shape=(len(headers), headers[0].Rows, headers[0].Columns),
        frame_of_reference=pseudonymizer.uid(headers[0].FrameOfReferenceUID),
    )
    label: Segmentation = read_seg((folder / name).read_bytes(), pseudonymizer)
    mask: Mask = label.mask(geometry)
    assert label.fit(geometry).same_voxels
    assert label.belonging.frames == (geometry.frame_of_reference,)
    assert label.belonging.series == (pseudonymizer.uid(headers[0].SeriesInstanceUID),)
    assert [int((plane > 0).sum()) for plane in mask.occupancy] == voxels
    dataset = pydicom.dcmread(folder / name)
    heights = [f.PlanePositionSequence[0].ImagePositionPatient[2] for f in dataset.PerFrameFunctionalGroupsSequence]
    for frame, height, item in zip(
        dataset.pixel_array.reshape(-1, *geometry.shape[1:]),
        heights,
        dataset.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        slice_number = [abs(float(ds.ImagePositionPatient[2]) - height) < 0.1 for ds in headers].index(True)
        segment = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1
        np.testing.assert_array_equal(mask.occupancy[segment, slice_number] > 0, frame > 0)
