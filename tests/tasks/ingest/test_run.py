from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from models.errors import NotFoundError, ServiceUnavailableError
from models.volume import Volume
from tasks.ingest.run import Ingestor, Outcome
from tasks.stores.tables import QuarantineRow, SeriesRow, StudyRow, VaultRow, VolumeRow
from tests.tasks.ingest.synthetic import ROOT, Room, image, stack, write


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room.at(tmp_path / "home", allow={"CR", "US"})


def quarantine(room: Room) -> list[tuple[str, bool]]:
    return sorted((row.reason, row.resolved_at is None) for row in room.catalog.find(QuarantineRow))


# -- real series, against independent readers ---------------------------------------------------------------------


def grid_of(read: Any) -> tuple[np.ndarray, np.ndarray]:
    """(z, y, x) values and the affine (z, y, x) → LPS of a SimpleITK image."""
    import SimpleITK as sitk  # noqa: N813

    affine = np.eye(4)
    affine[:3, :3] = (np.reshape(read.GetDirection(), (3, 3)) * read.GetSpacing())[:, ::-1]
    affine[:3, 3] = read.GetOrigin()
    return sitk.GetArrayFromImage(read), affine


def by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A series, as its series reader sorts it."""
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return grid_of(reader.Execute())


def assert_same(volume: Volume, array: np.ndarray, affine: np.ndarray) -> None:
    np.testing.assert_allclose(volume.array, array, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(volume.geometry.matrix, affine, atol=2e-3)


SINGLE = ["mr_ge", "mr_philips", "mr_siemens", "mr_hitachi", "mr_rle", "mr_sagittal"]


@pytest.mark.parametrize("name", [f"series/{name}" for name in SINGLE] + ["segmentations/ct_3slice"])
def test_real_series_as_simpleitk_reads_them(shared_data: Path, room: Room, name: str) -> None:
    assert_same(room.only(shared_data / name), *by_simpleitk(shared_data / name))


@pytest.mark.parametrize("name", ["STS_003/CT", "STS_003/PET", "STS_003/MR_T1"])
def test_sarcoma_series_as_simpleitk_reads_them(shared_data: Path, room: Room, name: str) -> None:
    folder = shared_data / "sarcoma" / name / "image"
    volume = room.only(folder)
    assert_same(volume, *by_simpleitk(folder))
    assert volume.unit == {"CT": "HU", "PET": "SUVbw", "MR_T1": "arbitrary"}[folder.parent.name]


def test_the_siemens_ct_as_simpleitk_reads_it(shared_data: Path, room: Room, tmp_path: Path) -> None:
    folder = shared_data / "series" / "ct_siemens_jpeg2000"
    assert set(room.refused(folder)) == {"no-uid"}, "without a series UID nothing says what belongs together"
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = ROOT + "7", ROOT + "8"
        write(tmp_path / "mended", [ds], [path.name])
    assert_same(room.only(tmp_path / "mended"), *by_simpleitk(tmp_path / "mended"))


def nifti_grid(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    return volume.array.transpose(2, 1, 0), volume.geometry.to_nifti()


def in_one_orientation(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    read = nib.as_closest_canonical(nib.Nifti1Image(data.astype(np.float64), affine))
    return np.asarray(read.dataobj), read.affine


@pytest.mark.parametrize("name", ["mr_philips_enhanced", "mr_siemens_multiframe"])
def test_enhanced_series_as_simpleitk_reads_them(shared_data: Path, room: Room, name: str) -> None:
    import SimpleITK as sitk  # noqa: N813

    (path,) = (shared_data / "series" / name).iterdir()
    array, affine = grid_of(sitk.ReadImage(str(path)))
    volume = room.only(path)
    if np.dot(affine[:3, 0], volume.geometry.matrix[:3, 0]) < 0:
        # SimpleITK keeps the frames' own order: against the normal here.
        array, affine[:3, 3], affine[:3, 0] = array[::-1], affine[:3, 3] + 7 * affine[:3, 0], -affine[:3, 0]
    assert_same(volume, array, affine)


def test_a_mosaic_as_nibabel_reads_it(shared_data: Path, room: Room) -> None:
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    path = shared_data / "series" / "transfer_syntaxes" / "1.dcm"
    wrapped = wrapper_from_file(str(path))
    data, affine = in_one_orientation(wrapped.get_data(), np.diag([-1, -1, 1, 1]) @ wrapped.affine)
    ours, our_affine = in_one_orientation(*nifti_grid(room.only(path)))
    np.testing.assert_array_equal(ours, data)
    np.testing.assert_allclose(our_affine, affine, atol=1e-2)


def test_enhanced_series_of_several_stacks(shared_data: Path, room: Room) -> None:
    (philips,) = room.ingest(shared_data / "series" / "enhanced" / "Philips")
    assert [room.volumes.open(v.key).shape for v in philips.volumes] == [(32, 64, 64)] * 2
    path = next((shared_data / "series" / "enhanced" / "Philips").iterdir())
    ds = pydicom.dcmread(path)
    for ref in philips.volumes:
        volume = room.volumes.open(ref.key).read()
        record = room.vault.get("series", room.catalog.get(VolumeRow, ref.key).series)
        for place, number in enumerate(record["volumes"][ref.key]["frames"]):
            group = ds.PerFrameFunctionalGroupsSequence[number - 1]
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(volume.geometry.to_world([place, 0, 0]), position, atol=1e-2)
            values = group.PixelValueTransformationSequence[0]
            expected = ds.pixel_array[number - 1] * float(values.RescaleSlope) + float(values.RescaleIntercept)
            np.testing.assert_allclose(volume.array[place], expected, rtol=1e-4, atol=1e-3)
    (siemens,) = room.ingest(shared_data / "series" / "enhanced" / "Siemens")
    first = [room.volumes.open(v.key).read() for v in siemens.volumes]
    assert len(first) == 4
    for n, volume in enumerate(first, 1):
        ds = pydicom.dcmread(shared_data / "series/enhanced/Siemens/XA10" / f"6_{n}.dcm")
        np.testing.assert_array_equal(volume.array, ds.pixel_array)


ODD: dict[str, tuple[str, ...]] = {
    "gdcm-US-ALOKA-16.dcm": ("colour",),
    "693_J2KR.dcm": (),
    "bad_sequence.dcm": ("bad-uid",),
    "MR-SIEMENS-DICOM-WithOverlays.dcm": (),
    "OBXXXX1A_rle_2frame.dcm": ("no-position",),
    "emri_small_jpeg_2k_lossless_too_short.dcm": ("no-position",),
    "CR-ModalitySequenceLUT.dcm": (),
}


@pytest.mark.fault("files/odd")
def test_every_odd_file_is_ingested_or_set_aside(shared_data: Path, tmp_path: Path) -> None:
    assert {p.name for p in (shared_data / "odd").iterdir()} == set(ODD)
    for name, expected in ODD.items():
        room = Room.at(tmp_path / name, allow={"CR", "US"})
        if expected:
            assert room.refused(shared_data / "odd" / name) == expected, name
        else:
            room.only(shared_data / "odd" / name)


def test_overlays_leave_no_trace(shared_data: Path, room: Room) -> None:
    path = shared_data / "odd" / "MR-SIEMENS-DICOM-WithOverlays.dcm"
    ds = pydicom.dcmread(path)
    volume = room.only(path)
    np.testing.assert_array_equal(volume.array[0], ds.pixel_array & 0x0FFF)
    assert not any(tag.startswith("60") for tag in volume.attributes)


def test_copies_of_one_image_in_nine_encodings_are_no_volume(shared_data: Path, room: Room) -> None:
    assert room.refused(shared_data / "series" / "transfer_syntaxes") == ("duplicate-slices",)


def test_a_radiograph_without_burned_in_annotation_waits_for_a_person(shared_data: Path, tmp_path: Path) -> None:
    strict = Room.at(tmp_path)
    assert strict.refused(shared_data / "odd" / "CR-ModalitySequenceLUT.dcm") == ("burned-in-unknown",)
    strict.ingestor = Room.at(tmp_path, allow={"CR"}).ingestor
    strict.only(shared_data / "odd" / "CR-ModalitySequenceLUT.dcm")
    assert quarantine(strict) == [("burned-in-unknown", False)]


def test_labels_and_reports_are_told_apart(shared_data: Path, room: Room, tmp_path: Path) -> None:
    report = image(np.zeros((2, 2), np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    shot = image(np.zeros((2, 2), np.uint16), SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT", series="9")
    write(tmp_path / "in", [report, shot])
    (tmp_path / "in" / "README").write_text("no DICOM")
    found = room.ingestor.scan(
        [str(shared_data / "segmentations"), str(shared_data / "sarcoma" / "STS_003"), str(tmp_path)]
    )
    assert len(found.labels) == 6
    assert len(found.series) == 5
    assert found.not_images == 2
    assert found.quarantined == 0


# -- what must not matter -----------------------------------------------------------------------------------------


def keys(outcomes: list[Outcome]) -> list[str]:
    return sorted(ref.key for outcome in outcomes for ref in outcome.volumes)


def test_order_and_names_of_files_do_not_matter(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "series" / "mr_sagittal"
    files = sorted(source.iterdir())
    random.Random(5).shuffle(files)
    shuffled = tmp_path / "shuffled"
    for n, path in enumerate(files):
        folder = shuffled / str(n % 3)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{n:x}.txt")
    shutil.copy(files[0], shuffled / "copy")
    first, second = (Room.at(tmp_path / name) for name in ("one", "two"))
    assert keys(first.ingest(source)) == keys(second.ingest(shuffled))
    one, two = (room.volumes.open(room.catalog.find(VolumeRow)[0].volume).read() for room in (first, second))
    np.testing.assert_array_equal(one.array, two.array)
    assert one.geometry == two.geometry
    assert one.instances == two.instances


def test_archives_and_media_give_the_same_volume(tmp_path: Path) -> None:
    slices = stack(4)
    folder = write(tmp_path / "in", slices)
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    shutil.make_archive(str(tmp_path / "packed"), "gztar", folder)
    files = FileSet()
    for ds in slices:
        ds.StudyID, ds.SeriesNumber = "1", 1
        files.add(ds)
    files.write(tmp_path / "media")
    rooms = [Room.at(tmp_path / str(n)) for n in range(4)]
    places = [folder, tmp_path / "in.zip", tmp_path / "packed.tar.gz", tmp_path / "media" / "DICOMDIR"]
    arrays = [room.only(place).array for room, place in zip(rooms, places, strict=True)]
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])
    assert keys(rooms[0].ingest(folder)) == keys(rooms[1].ingest(places[1])) == keys(rooms[2].ingest(places[2]))


# -- again, at once, and interrupted ------------------------------------------------------------------------------


def test_doing_it_again_finds_it_done(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", stack(4))
    (first,) = room.ingest(folder)
    monkeypatch.setattr("tasks.ingest.run.Intake.decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("tasks.ingest.run.values_of", lambda *_, **__: pytest.fail("made again"))
    (second,) = room.ingest(folder)
    assert (first.existed, second.existed) == (False, True)
    assert second.volumes == first.volumes
    # Other copies of the same files are read and hashed, and found done as well.
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "0000.dcm", (1, 1))
    (third,) = room.ingest(tmp_path / "copy")
    assert third.existed
    assert third.ref != second.ref
    assert third.volumes == first.volumes
    assert room.catalog.count(VolumeRow) == room.catalog.count(SeriesRow) == room.catalog.count(StudyRow) == 1


def test_the_same_files_are_not_even_read_again(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", stack(4))
    room.ingest(folder)
    monkeypatch.setattr("tasks.ingest.run.Intake.read", lambda *_: pytest.fail("read again"))
    assert room.ingest(folder)[0].existed


def test_a_series_that_is_completed_leaves_quarantine(tmp_path: Path, room: Room) -> None:
    slices = stack(6)
    folder = write(tmp_path / "in", slices[:2] + slices[3:])
    assert room.refused(folder) == ("missing-slices",)
    assert room.refused(folder) == ("missing-slices",)
    assert quarantine(room) == [("missing-slices", True)]
    write(folder, slices[2:3], ["late"])
    room.only(folder)
    assert quarantine(room) == [("missing-slices", False)]
    (folder / "late").unlink()
    room.refused(folder)
    assert quarantine(room) == [("missing-slices", True)]


def test_one_bad_stack_does_not_hold_up_the_rest(tmp_path: Path, room: Room) -> None:
    pixels = np.zeros((6, 5), np.uint16)
    scout = image(pixels, orientation=(1, 0, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (outcome,) = room.ingest(write(tmp_path / "in", [*stack(4), scout]))
    assert len(outcome.volumes) == 1
    assert outcome.quarantined == ("mixed-orientation",)
    assert outcome.instances == 5
    (row,) = room.catalog.find(QuarantineRow)
    assert (row.instances, row.stage, row.modality) == (1, "ingest", "CT")
    (again,) = room.ingest(tmp_path / "in")
    assert (again.existed, again.quarantined, again.volumes) == (True, outcome.quarantined, outcome.volumes)


def test_a_table_that_breaks_its_schema_sets_the_series_aside(tmp_path: Path, room: Room) -> None:
    slices = stack(3)
    for ds in slices:
        ds.PhotometricInterpretation = "MONOCHROME2"
    slices[1].file_meta.MediaStorageSOPInstanceUID = slices[1].SOPInstanceUID
    folder = write(tmp_path / "in", slices)
    with pytest.MonkeyPatch.context() as patch:
        from models import schemas

        patch.setattr(schemas, "INSTANCES", schemas.INSTANCES.add_columns({"absent": schemas.pa.Column(int)}))
        patch.setattr("tasks.ingest.table.ordinary", lambda columns: False)
        assert room.refused(folder) == ("bad-table",)
    assert room.volumes.place.exists("x" * 32) is False
    assert list(room.volumes.place.keys()) == []
    room.only(folder)


def test_files_that_went_or_changed_since_the_scan_are_told(tmp_path: Path, room: Room) -> None:
    folder = write(tmp_path / "in", stack(3))
    (ref,) = room.ingestor.scan([str(folder)]).series
    path = folder / "0001.dcm"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(NotFoundError) as caught:
        room.ingestor.ingest(ref)
    assert "scan again" in str(caught.value)
    path.unlink()
    with pytest.raises(NotFoundError):
        room.ingestor.ingest(ref)
    assert room.catalog.count(QuarantineRow) == 0


def test_what_may_not_be_read_is_set_aside(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", stack(3))
    write(folder / "closed", stack(2, series="2"))
    scandir, open_ = os.scandir, os.open

    def guarded(place: Any, *rest: Any, **more: Any) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return (open_ if rest else scandir)(place, *rest, **more)

    monkeypatch.setattr(os, "scandir", guarded)
    monkeypatch.setattr(os, "open", guarded)
    found = room.ingestor.scan([str(folder)])
    assert (len(found.series), found.quarantined) == (1, 1)
    assert quarantine(room) == [("unreadable", True)]


def test_a_share_that_is_away_is_worth_another_try(tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    (ref,) = room.ingestor.scan([str(write(tmp_path / "in", stack(3)))]).series

    def away(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.ingest.pixels.os.readv", away)
        with pytest.raises(ServiceUnavailableError):
            room.ingestor.ingest(ref)
    assert room.ingestor.ingest(ref).volumes


def _ingest_in_child(home: Path, folder: Path, start: Any, results: Any) -> None:
    room = Room.at(home)
    start.wait(300)
    results.put(keys(room.ingest(folder)))


def test_two_processes_at_once_do_no_harm(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", stack(12, shape=(64, 64)))
    Room.at(tmp_path / "home")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_ingest_in_child, args=(tmp_path / "home", folder, start, results)) for _ in range(2)
    ]
    for child in children:
        child.start()
    assert results.get(timeout=300) == results.get(timeout=300)
    for child in children:
        child.join(300)
    room = Room.at(tmp_path / "home")
    (row,) = room.catalog.find(VolumeRow)
    assert list(room.volumes.place.keys()) == [row.volume]
    assert room.volumes.open(row.volume).read().array.shape == (12, 64, 64)
    assert room.catalog.count(VaultRow, VaultRow.kind == "series") == 1


def _die_before_the_row(home: Path, folder: Path) -> None:
    room = Room.at(home)
    room.catalog.insert = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
    room.ingest(folder)


@pytest.mark.fault("stores/killed")
def test_killed_between_publish_and_row_leaves_only_what_a_sweep_removes(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", stack(4))
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_die_before_the_row, args=(tmp_path / "home", folder))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    room = Room.at(tmp_path / "home")
    assert room.catalog.count(VolumeRow) == room.catalog.count(SeriesRow) == 0
    assert room.catalog.count(VaultRow, VaultRow.kind == "series") == 0
    assert len(list(room.volumes.place.keys())) == 1
    assert len(room.volumes.place.sweep(set(), older_than_seconds=-1)) >= 1
    assert list(room.volumes.place.keys()) == []
    room.only(folder)


# -- identities ---------------------------------------------------------------------------------------------------


def test_no_identity_leaves_the_vault(tmp_path: Path, room: Room) -> None:
    good, bad = stack(4), stack(4, series="5")
    bad[2].ImagePositionPatient = [0, 0, 500]
    broken = image(np.zeros((2, 2), np.uint16), series="6")
    broken.SeriesInstanceUID = ""
    folder = tmp_path / "in" / "Gruber_Hannelore_MRN-4711"
    write(folder, [*good, *bad, broken])
    outcomes = room.ingest(folder)
    assert sum(len(o.volumes) for o in outcomes) == 1
    uids = [ds.SOPInstanceUID for ds in [*good, *bad]] + [good[0].StudyInstanceUID, good[0].SeriesInstanceUID]
    secrets = [s.encode() for s in ("Gruber", "Hannelore", "MRN-4711", "ACC-0815", "19470811", "20240229", *uids)]
    room.catalog.close()
    files = [path for path in room.home.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes() + str(path.relative_to(room.home)).encode()
        assert [s for s in secrets if s in content] == [], path
    told = repr(outcomes) + "".join(repr(vars(row)) for row in room.catalog.find(QuarantineRow))
    assert [s for s in secrets if s.decode() in told] == []


TEXTS = ["Modality", "PhotometricInterpretation", "ImageType", "RescaleType", "SUVType", "Units", "BurnedInAnnotation"]


@pytest.mark.parametrize("keyword", TEXTS)
def test_a_name_in_a_code_goes_nowhere(tmp_path: Path, room: Room, keyword: str) -> None:
    slices = stack(3, **{keyword: "gruber^hannelore"})
    outcomes = room.ingest(write(tmp_path / "in", slices))
    told = repr(outcomes) + "".join(repr(vars(row)) for row in room.catalog.find(QuarantineRow))
    assert "gruber" not in told.lower()
    room.catalog.close()
    for path in [p for p in room.home.rglob("*") if p.is_file()]:
        assert b"hannelore" not in path.read_bytes().lower(), path


def test_the_vault_knows_the_way_home(tmp_path: Path, room: Room) -> None:
    slices = stack(4)
    volume = room.only(write(tmp_path / "in", slices[::-1]))
    (row,) = room.catalog.find(VolumeRow)
    record = room.vault.get("series", row.series)
    assert record["study_uid"] == slices[0].StudyInstanceUID
    assert record["series_uid"] == slices[0].SeriesInstanceUID
    assert record["volumes"][row.volume]["instances"] == [ds.SOPInstanceUID for ds in slices]
    assert record["identity"]["PatientID"] == "MRN-4711"
    assert record["identity"]["PatientName"] == "Gruber^Hannelore"
    assert record["identity"]["AccessionNumber"] == "ACC-0815"
    assert len(record["sources"]) == 4
    assert len(volume.instances) == 4
    assert volume.attributes["00100020"]["Value"] == [row.patient]
    assert row.patient.startswith("P-")
    assert room.catalog.find(StudyRow)[0].study_date < "20240229"


def test_rows_say_what_was_made(tmp_path: Path, room: Room) -> None:
    slices = stack(4, Manufacturer="Siemens", SeriesDescription="CT thorax", FrameOfReferenceUID=ROOT + "44")
    (outcome,) = room.ingest(write(tmp_path / "in", slices))
    row = room.catalog.get(VolumeRow, outcome.volumes[0].key)
    assert row is not None
    assert (row.shape_z, row.shape_y, row.shape_x) == (4, 6, 5)
    assert (row.spacing_z, row.spacing_y, row.spacing_x) == (2.0, 0.5, 0.75)
    assert (row.unit, row.modality, row.slice_thickness, row.channels) == ("HU", "CT", 2.0, 1)
    assert row.frame_of_reference is not None
    assert row.frame_of_reference.startswith("2.25.")
    (series,) = room.catalog.find(SeriesRow)
    assert (series.instances, series.series_uid, series.study) == (4, row.series_uid, row.study)


def test_a_study_of_two_patients_is_refused(tmp_path: Path, room: Room) -> None:
    room.only(write(tmp_path / "one", stack(3)))
    (outcome,) = room.ingest(write(tmp_path / "two", stack(3, series="2", PatientID="MRN-4712")))
    assert (outcome.volumes, outcome.quarantined) == ((), ("mixed-patients",))


def test_a_series_without_patient_is_its_study(tmp_path: Path, room: Room) -> None:
    def anonymous(ds: Dataset) -> Dataset:
        ds.PatientID = ""
        return ds

    volume = room.only(write(tmp_path / "in", [anonymous(ds) for ds in stack(3)]))
    assert volume.attributes["00100020"]["Value"] == [room.catalog.find(VolumeRow)[0].patient]


def test_an_ingestor_serves_many_threads(tmp_path: Path, room: Room) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for n in range(6):
        write(tmp_path / "in" / str(n), stack(3, series=str(n)))
    refs = room.ingestor.scan([str(tmp_path / "in")]).series
    ingestor: Ingestor = room.ingestor
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(ingestor.ingest, refs))
    assert len({key for o in outcomes for key in o.volumes}) == 6
