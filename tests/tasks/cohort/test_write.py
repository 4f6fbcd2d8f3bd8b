"""The cohort is genuine DICOM that says exactly what the phantom is, appears whole, and appears once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from models.errors import SettingsError
from models.geometry import Geometry
from tasks.cohort import write
from tasks.cohort.phantom import LESION, LIVER
from tasks.cohort.write import Case, Cohort, draw_case, write_cohort

SEED = 11


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("demo") / "cohort", patients=2, broken=3, seed=SEED)


@pytest.fixture(scope="module", params=[1, 2], ids=["aster", "borealis"])
def study(request: pytest.FixtureRequest, cohort: Cohort) -> tuple[Path, Case]:
    case = draw_case(SEED, request.param)
    return cohort.incoming / case.patient.patient_id, case


def images(folder: Path) -> list[pydicom.Dataset]:
    """The CT slices in the order of their file names."""
    read = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return [ds for ds in read if ds.Modality == "CT"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- genuine DICOM -----------------------------------------------------------------------------------------------


def test_dciodvfy_has_nothing_to_say(study: tuple[Path, Case]) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    for path in study[0].iterdir():
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))]
        assert not said, f"{path.name}: {said}"


def test_simpleitk_reads_the_phantom_and_its_place(study: tuple[Path, Case]) -> None:
    sitk = pytest.importorskip("SimpleITK")
    folder, case = study
    series = str(images(folder)[0].SeriesInstanceUID)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
    image = sitk.ReadImage(names)
    wanted = case.phantom.geometry
    assert np.array_equal(sitk.GetArrayFromImage(image), case.phantom.hu)
    assert np.allclose(image.GetSpacing()[::-1], wanted.spacing, atol=1e-5)
    assert np.allclose(image.GetOrigin(), wanted.origin, atol=1e-5)
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    assert np.allclose(direction, wanted.direction, atol=1e-6)


def test_the_segmentation_is_the_truth(study: tuple[Path, Case]) -> None:
    folder, case = study
    seg = hd.seg.segread(folder / "SEG_0001.dcm")
    assert [(s.segment_label, s.segmented_property_type.value) for s in map(seg.get_segment_description, (1, 2))] == [
        ("Liver", "10200004"),
        ("Lesion", "52988006"),
    ]
    by_position = sorted(images(folder), key=lambda ds: float(np.dot(ds.ImagePositionPatient, (0, 0, 1))))
    planes = seg.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in by_position], ignore_spatial_locations=False, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(planes[..., 0] == 1, case.phantom.truth == LIVER)
    assert np.array_equal(planes[..., 1] == 1, case.phantom.truth == LESION)


def test_the_makers_keep_their_own_conventions(cohort: Cohort) -> None:
    aster, borealis = (images(cohort.incoming / f"DEMO-000{n}") for n in (1, 2))
    heights = [float(ds.ImagePositionPatient[2]) for ds in aster]
    assert heights == sorted(heights, reverse=True), "named from the head down"
    assert [ds.InstanceNumber for ds in aster] == list(range(1, len(aster) + 1))
    assert (aster[0].PixelRepresentation, aster[0].BitsStored, aster[0].RescaleIntercept) == (0, 12, -1024)
    assert not aster[0].file_meta.TransferSyntaxUID.is_implicit_VR
    stacked = sorted(borealis, key=lambda ds: float(ds.ImagePositionPatient[2]))
    numbers = [int(ds.InstanceNumber) for ds in stacked]
    assert sorted(numbers) == list(range(1, len(stacked) + 1))
    assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))
    assert (stacked[0].PixelRepresentation, stacked[0].RescaleIntercept) == (1, 0)
    assert stacked[0].file_meta.TransferSyntaxUID.is_implicit_VR
    assert any(element.tag.is_private for element in stacked[0])


def test_every_image_holds_identities_to_be_taken_away(study: tuple[Path, Case]) -> None:
    for ds in images(study[0]):
        for keyword in (
            *("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName"),
            *("InstitutionName", "StationName", "OperatorsName", "PatientComments"),
        ):
            assert ds[keyword].value, keyword
        assert ds.BurnedInAnnotation == "NO"
        assert "DEMO" in str(ds.PatientName)


# -- what is in it -----------------------------------------------------------------------------------------------


def test_the_held_out_study_has_its_truth_elsewhere(cohort: Cohort) -> None:
    slices = images(cohort.held_out)
    assert len(slices) == len(list(cohort.held_out.iterdir())), "no segmentation among them"
    with np.load(cohort.truth, allow_pickle=False) as kept:
        truth, affine = kept["truth"], kept["affine"]
    assert truth.shape == (len(slices), slices[0].Rows, slices[0].Columns)
    assert set(np.unique(truth)) == {0, LIVER, LESION}
    lowest = min(slices, key=lambda ds: float(ds.ImagePositionPatient[2]))
    assert np.allclose(Geometry(truth.shape, affine).origin, [float(v) for v in lowest.ImagePositionPatient])


def test_broken_studies_are_broken_as_told(cohort: Cohort) -> None:
    assert [b.fault for b in cohort.broken] == ["missing-slice", "truncated-pixels", "other-rows"]
    assert all((b.folder / "SEG_0001.dcm").is_file() and b.what for b in cohort.broken)
    gap, cut, odd = (images(b.folder) for b in cohort.broken)
    heights = np.sort([float(ds.ImagePositionPatient[2]) for ds in gap])
    steps = np.diff(heights)
    assert np.isclose(steps.max(), 2 * np.median(steps), rtol=0.01)
    assert 3 < steps.argmax() < len(steps) - 3, "in the middle"
    lengths = sorted(len(ds.PixelData) for ds in cut)
    assert lengths[0] < lengths[1] == lengths[-1] == cut[0].Rows * cut[0].Columns * 2
    rows = sorted(ds.Rows for ds in odd)
    assert rows[0] == rows[1] - 8
    assert rows[1] == rows[-1]


# -- once, whole, always the same --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(cohort: Cohort, tmp_path: Path) -> None:
    again = write_cohort(tmp_path / "again", patients=2, broken=3, seed=SEED)
    assert again.digest == cohort.digest
    assert contents(again.folder) == contents(cohort.folder)


def test_another_seed_gives_others_and_more_patients_keep_the_first(tmp_path: Path) -> None:
    small = write_cohort(tmp_path / "small", patients=1, broken=0, seed=SEED)
    large = write_cohort(tmp_path / "large", patients=2, broken=0, seed=SEED)
    other = write_cohort(tmp_path / "other", patients=1, broken=0, seed=SEED + 1)
    assert contents(small.incoming / "DEMO-0001") == contents(large.incoming / "DEMO-0001")
    assert len({small.digest, large.digest, other.digest}) == 3


def test_a_second_call_finds_it_done(cohort: Cohort) -> None:
    before = {p: p.stat().st_mtime_ns for p in cohort.folder.rglob("*")}
    calls: list[tuple[int, int]] = []
    again = write_cohort(
        cohort.folder, patients=2, broken=3, seed=SEED, on_case=lambda done, of: calls.append((done, of))
    )
    assert again == cohort
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in cohort.folder.rglob("*")} == before


def test_progress_counts_every_study(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_cohort(tmp_path / "c", patients=1, broken=1, seed=SEED, on_case=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_run_leaves_nothing_and_the_next_one_finishes(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Not an Exception: like the signal that ends a process."""

    def stop(done: int, of: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        write_cohort(tmp_path / "c", patients=2, broken=0, seed=SEED, on_case=stop)
    assert list(tmp_path.iterdir()) == []
    assert write_cohort(tmp_path / "c", patients=1, broken=0, seed=SEED).held_out.is_dir()


def test_what_a_killed_process_left_is_swept_up_but_not_a_neighbours_work(tmp_path: Path) -> None:
    left, working = tmp_path / ".c.old.partial", tmp_path / ".c.busy.partial"
    for folder in (left, working):
        (folder / "new").mkdir(parents=True)
    os.utime(left, (0, 0))
    write_cohort(tmp_path / "c", patients=1, broken=0, seed=SEED)
    assert sorted(p.name for p in tmp_path.iterdir()) == [working.name, "c"]


def test_a_damaged_cohort_is_made_again(tmp_path: Path) -> None:
    first = write_cohort(tmp_path / "c", patients=1, broken=0, seed=SEED)
    next(first.held_out.iterdir()).unlink()
    again = write_cohort(tmp_path / "c", patients=1, broken=0, seed=SEED)
    assert again == first
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    manifest = write._Manifest.model_validate_json((again.folder / write.MANIFEST).read_bytes())
    assert len(contents(again.folder)) == manifest.files + 1


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(SettingsError) as refused:
        write_cohort(tmp_path, patients=1, broken=0)
    assert refused.value.reason == "folder-in-use"
    assert [p.name for p in tmp_path.iterdir()] == ["keep.txt"]


def test_numbers_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        write_cohort(tmp_path / "c", patients=0)
    assert not (tmp_path / "c").exists()
