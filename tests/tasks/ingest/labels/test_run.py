"""Labels find their image, are made once, and are set aside with a reason where they cannot be used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from models.errors import NotFoundError
from models.geometry import Geometry
from models.refs import SeriesRef
from tasks.ingest.labels.run import LabelIngestor
from tasks.stores.tables import LabelRow, QuarantineRow, VolumeRow
from tests.tasks.ingest.labels.conftest import Home, ct_series, save, segmentation, structure_set
from tests.tasks.ingest.labels.test_polygons import box
from tests.tasks.ingest.labels.test_rtstruct import on_planes

GRID = Geometry.from_spacing((5, 24, 26), (3.0, 1.0, 1.0), (-25.0, -20.0, 100.0))


def open_reasons(home: Home) -> list[str]:
    return [row.reason for row in home.catalog.find(QuarantineRow, QuarantineRow.resolved_at.is_(None))]


def test_a_segmentation_becomes_a_label_of_its_series(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    truth = np.zeros((*GRID.shape, 2), np.uint8)
    truth[1:3, 4:9, 5:12, 0] = 1
    seg = segmentation(slices, truth, names=("Liver", "Lesion"))
    folder = save([*slices, seg], tmp_path / "study")
    (image,), (outcome,) = home.ingest(folder)
    assert not outcome.existed
    assert outcome.quarantined == ()
    row = home.catalog.get(LabelRow, outcome.labels[0].key)
    assert row is not None
    assert (row.source, row.volume) == ("SEG", image.volumes[0].key)
    assert row.segments == [
        {"number": 1, "name": "Liver", "code": "SCT:10200004", "voxels": 70},
        {"number": 2, "name": "Lesion", "code": "SCT:10200004", "voxels": 0},
    ]
    mask = home.volumes.open_mask(row.label).read()
    np.testing.assert_array_equal(mask.occupancy[0], truth[..., 0] * 255)
    assert mask.geometry.same_grid(home.volumes.open(row.volume or "").geometry)
    stored = str(home.catalog.find(LabelRow)) + str(home.volumes.open_mask(row.label).about)
    for identity in ("PAT-1", slices[0].StudyInstanceUID, seg.SOPInstanceUID, slices[0].FrameOfReferenceUID):
        assert identity not in stored


def test_doing_it_again_finds_it_done(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    folder = save([*slices, segmentation(slices, np.ones(GRID.shape, np.uint8))], tmp_path / "study")
    (_,), (first,) = home.ingest(folder)
    (_,), (second,) = home.ingest(folder)
    assert second == replace(first, existed=True)
    # Other files in name and time, the same in content.
    (_,), (third,) = home.ingest(Path(shutil.copytree(folder, tmp_path / "copy")))
    assert (third.labels, third.existed) == (first.labels, True)
    assert home.catalog.count(LabelRow) == 1


def test_a_label_that_comes_before_its_image_waits_in_quarantine(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    early = save([segmentation(slices, np.ones(GRID.shape, np.uint8))], tmp_path / "early")
    _, (outcome,) = home.ingest(early)
    assert outcome.quarantined == ("no-image",)
    assert open_reasons(home) == ["no-image"]
    home.ingest(save(slices, tmp_path / "late"))
    _, (outcome,) = home.ingest(early)
    assert len(outcome.labels) == 1
    assert open_reasons(home) == []
    assert home.catalog.count(QuarantineRow) == 1


def test_a_label_in_another_frame_of_reference_is_refused(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    rtstruct = structure_set(slices[0], {"GTV": on_planes(GRID, box(4.5, 9.5), [2])}, frame=generate_uid())
    _, (outcome,) = home.ingest(save([*slices, rtstruct], tmp_path / "study"))
    assert outcome.quarantined == ("frame-of-reference-mismatch",)
    assert home.catalog.count(LabelRow) == 0


def test_a_label_of_another_patient_is_refused(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    seg = segmentation(slices, np.ones(GRID.shape, np.uint8))
    del seg.PatientID  # highdicom shares the element with the image
    seg.PatientID = "PAT-2"
    _, (outcome,) = home.ingest(save([*slices, seg], tmp_path / "study"))
    assert outcome.quarantined == ("patient-mismatch",)


def test_one_bad_instance_keeps_no_other_back(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    good, bad = (segmentation(slices, np.ones(GRID.shape, np.uint8)) for _ in range(2))
    bad.SeriesInstanceUID = good.SeriesInstanceUID
    bad.SegmentSequence[0].SegmentNumber = 5
    folder = save([*slices, good, bad], tmp_path / "study")
    _, (outcome,) = home.ingest(folder)
    assert (len(outcome.labels), outcome.quarantined, outcome.existed) == (1, ("unknown-segment",), False)
    _, (outcome,) = home.ingest(folder)
    assert (len(outcome.labels), outcome.quarantined) == (1, ("unknown-segment",))


def test_files_that_went_away_are_set_aside_and_an_unknown_series_is_told(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    folder = save([*slices, segmentation(slices, np.ones(GRID.shape, np.uint8))], tmp_path / "study")
    reader = LabelIngestor(home.catalog, home.vault, home.volumes, home.pseudonymizer)
    from tasks.ingest.run import Ingestor, IngestRules

    scanner = Ingestor(home.catalog, home.vault, home.volumes, home.pseudonymizer, IngestRules(), workers=1)
    report = scanner.scan([str(folder)])
    shutil.rmtree(folder)
    assert reader.ingest(report.labels[0]).quarantined == ("source-gone",)
    with pytest.raises(NotFoundError):
        reader.ingest(SeriesRef.to("0" * 32))


def test_without_a_named_series_the_grid_decides(home: Home, tmp_path: Path) -> None:
    """Two images of one study in one frame of reference; the label names neither."""
    frame, study = generate_uid(), generate_uid()
    shifted = Geometry(GRID.shape, tuple(map(tuple, _moved(GRID, (0.4, 0.3, 1.5)))))
    first = ct_series(GRID, frame=frame, study=study)
    second = ct_series(shifted, frame=frame, study=study)
    seg = segmentation(second, np.ones(GRID.shape, np.uint8))
    rtstruct = structure_set(second[0], {"GTV": on_planes(shifted, box(4.5, 9.5), [1, 2])})
    for label in (seg, rtstruct):
        label.pop("ReferencedSeriesSequence", None)
        label.pop("ReferencedFrameOfReferenceSequence", None)
    _, outcomes = home.ingest(save([*first, *second, seg, rtstruct], tmp_path / "study"))
    wanted = home.pseudonymizer.uid(second[0].SeriesInstanceUID)
    for outcome in outcomes:
        row = home.catalog.get(LabelRow, outcome.labels[0].key)
        assert row is not None
        assert row.series_uid == wanted
        assert any("names no series" in note for note in row.notes)


def test_a_label_without_a_frame_of_reference_must_lie_on_the_voxels_of_the_series_it_names(
    home: Home, tmp_path: Path
) -> None:
    frames = []
    for number, shift in enumerate((0.0, 0.4)):
        slices = ct_series(
            Geometry(GRID.shape, tuple(map(tuple, _moved(GRID, (shift, shift, 0))))), patient=f"P{number}"
        )
        seg = segmentation(ct_series(GRID, patient=f"P{number}"), np.ones(GRID.shape, np.uint8))
        del seg.FrameOfReferenceUID
        seg.ReferencedSeriesSequence[0].SeriesInstanceUID = slices[0].SeriesInstanceUID
        _, (outcome,) = home.ingest(save([*slices, seg], tmp_path / str(number)))
        frames.append(outcome.quarantined)
    assert frames == [(), ("frame-of-reference-mismatch",)]


def test_a_label_in_a_study_of_its_own_is_found_through_its_patient(home: Home, tmp_path: Path) -> None:
    slices = ct_series(GRID)
    rtstruct = structure_set(slices[0], {"GTV": on_planes(GRID, box(4.5, 9.5), [2])})
    rtstruct.StudyInstanceUID = generate_uid()
    rtstruct.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = []
    (image,), (outcome,) = home.ingest(save([*slices, rtstruct], tmp_path / "study"))
    row = home.catalog.get(LabelRow, outcome.labels[0].key)
    assert row is not None
    assert row.volume == image.volumes[0].key
    assert any("of its patient" in note for note in row.notes)


def _moved(geometry: Geometry, by: tuple[float, float, float]) -> np.ndarray:
    matrix = np.asarray(geometry.matrix)
    matrix[:3, 3] += by
    return matrix


def test_sarcoma_structures_land_on_the_image_they_were_drawn_on(shared_data: Path, home: Home, tmp_path: Path) -> None:
    """PET, CT and MR of one study share a frame of reference; each has its own structure set."""
    source = shared_data / "sarcoma" / "STS_003"
    images, labels = home.ingest(*(source / m / part for m in ("PET", "CT", "MR_T1") for part in ("rtstruct", "image")))
    assert [outcome.quarantined for outcome in [*images, *labels]] == [()] * 6
    seen = {}
    for outcome in labels:
        row = home.catalog.get(LabelRow, outcome.labels[0].key)
        assert row is not None
        volume = home.catalog.get(VolumeRow, row.volume)
        assert volume is not None
        seen[row.segments[0]["name"]] = volume.modality
        folder = {"PT": "PET", "CT": "CT", "MR": "MR_T1"}[volume.modality]
        truth = np.asarray(nib.load(source / folder / "mask.nii.gz").dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(home.volumes.open_mask(row.label).read().occupancy[0] > 0, truth > 0)
    assert seen == {"GTV_Mass_PET": "PT", "GTV_Mass_CT": "CT", "GTV_Mass_MR_T1": "MR"}


def test_the_shared_segmentations_with_their_images(shared_data: Path, home: Home) -> None:
    images, labels = home.ingest(shared_data / "segmentations")
    assert len(images) == 2
    assert sorted(len(outcome.labels) for outcome in labels) == [1, 1, 1]
    assert open_reasons(home) == []
