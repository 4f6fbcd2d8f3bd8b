"""What is sent: that other readers accept it, that it says what the mask says, and whose it is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from models.errors import NotFoundError
from models.hashing import content_key
from models.refs import AnalysisRef
from tasks.deliver.objects import Result, known_uids, make
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.house import Stores
from tasks.stores.tables import PredictionRow, VolumeRow
from tests.components import needs
from tests.tasks.deliver.installation import (
    CODES,
    LIVER_AND_LESION,
    MADE_AT,
    Installation,
    ball,
    nowhere,
    stores_at,
    write_study,
)


def made(installation: Installation, analysis: AnalysisRef, *, pictures: bool = False) -> dict[str, Dataset]:
    """The objects by kind, as a reader of their bytes sees them."""
    results = make(installation.stores, installation.row(analysis), pictures=pictures)
    assert len({result.kind for result in results}) == len(results)
    return {result.kind: result.parsed() for result in results}


def complaints(results: Sequence[Result], folder: Path) -> list[str]:
    """dciodvfy's errors."""
    told = []
    for number, result in enumerate(results):
        path = folder / f"{number}-{result.kind}.dcm"
        path.write_bytes(result.content)
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
        told += [f"{result.kind}: {line}" for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
    return told


# -- what other readers say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2], ids=["axial", "oblique"])
def test_the_standards_checker_accepts_all_three(installation: Installation, tmp_path: Path, number: int) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in", number)
    analysis = installation.analysed(tmp_path / "in")
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert [result.kind for result in results] == ["seg", "sr", "sc"]
    assert complaints(results, tmp_path) == []


def test_highdicom_reads_the_mask_back(installation: Installation, tmp_path: Path) -> None:
    slices = write_study(tmp_path / "in", 2)
    analysis = installation.analysed(tmp_path / "in")
    seg = hd.seg.Segmentation.from_dataset(made(installation, analysis)["seg"])
    row = installation.row(analysis)
    mask = installation.stores.volumes.open_mask(row.predictions[0]).read()
    by_height = sorted(slices, key=lambda ds: mask.geometry.to_index(ds.ImagePositionPatient)[0])
    read = seg.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in by_height], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.moveaxis(read, -1, 0) > 0, mask.occupancy > 0)
    assert mask.occupancy[1].any(axis=(1, 2)).sum() < mask.occupancy[0].any(axis=(1, 2)).sum()
    assert seg.NumberOfFrames == mask.occupancy.any(axis=(2, 3)).sum(), "empty frames are left out"


def test_our_own_ingest_reads_the_mask_back(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in", 2)
    analysis = installation.analysed(tmp_path / "in")
    row = installation.row(analysis)
    for result in make(installation.stores, row, pictures=False):
        (tmp_path / "in" / f"{result.kind}.dcm").write_bytes(result.content)
    stores = installation.stores
    rooms = stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer
    (ref,) = Ingestor(*rooms, IngestRules(), workers=1).scan([str(tmp_path / "in")]).labels
    (label,) = LabelIngestor(*rooms).ingest(ref).labels
    read, mask = stores.volumes.open_mask(label.key).read(), stores.volumes.open_mask(row.predictions[0]).read()
    assert [segment.name for segment in read.segments] == ["liver", "lesion"]
    np.testing.assert_array_equal(read.occupancy, mask.occupancy)


@pytest.mark.parametrize(
    "name", ["enhanced/Philips", "mr_siemens_multiframe", "transfer_syntaxes/1.dcm", "mr_sagittal"]
)
def test_real_series_of_every_make(installation: Installation, shared_data: Path, tmp_path: Path, name: str) -> None:
    """Several volumes in one enhanced instance, a multi-frame one, a mosaic, and single slices."""
    needs("dciodvfy")
    analysis = installation.analysed(shared_data / "series" / name)
    row = installation.row(analysis)
    results = make(installation.stores, row, pictures=False)
    assert complaints(results, tmp_path) == []
    segmentations = [result.parsed() for result in results if result.kind == "seg"]
    assert len(segmentations) == len(row.predictions)
    for seg, prediction in zip(segmentations, row.predictions, strict=True):
        assert_on_its_sources(seg, shared_data / "series" / name)
        assert_same_voxels(installation, seg, prediction)


def assert_on_its_sources(seg: Dataset, folder: Path) -> None:
    """Each frame lies where the source frame lies that it names."""
    paths = [path for path in folder.rglob("*") if path.is_file()] or [folder]
    sources = {ds.SOPInstanceUID: ds for ds in (pydicom.dcmread(path, stop_before_pixels=True) for path in paths)}
    named = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named <= set(sources)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[item.ReferencedSOPInstanceUID]
        assert item.ReferencedSOPClassUID == source.SOPClassUID
        if "PerFrameFunctionalGroupsSequence" in source:
            group = source.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
            source = group.PlanePositionSequence[0]
        else:
            assert "ReferencedFrameNumber" not in item
        if "CSA Image Header" not in str(source.get((0x0029, 0x1010), "")) and len(sources) > 1:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(position, source.ImagePositionPatient, atol=1e-2)


def assert_same_voxels(installation: Installation, seg: Dataset, prediction: str) -> None:
    mask = installation.stores.volumes.open_mask(prediction).read()
    drawn = np.zeros_like(mask.occupancy)
    frames = pydicom.pixels.pixel_array(seg)
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        z = mask.geometry.to_index(group.PlanePositionSequence[0].ImagePositionPatient)[0]
        drawn[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1, round(z)] = frame * 255
    np.testing.assert_array_equal(drawn, mask.occupancy)


def test_a_flat_image_without_a_place_in_space(installation: Installation, shared_data: Path, tmp_path: Path) -> None:
    needs("dciodvfy")
    volumes = installation.ingest(shared_data / "odd" / "693_J2KR.dcm")
    assert [(v.shape_z, v.frame_of_reference) for v in volumes] == [(1, None)]
    package = installation.package()
    drawn = installation.segment(
        package, volumes[0], {"liver": ball(0, 0.5, 0.4, 0.2), "lesion": ball(0, 0.2, 0.2, 0.1)}
    )
    analysis = installation.analysis(package, [drawn], volumes[0].study)
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert complaints(results, tmp_path) == []
    seg = results[0].parsed()
    mask = installation.stores.volumes.open_mask(drawn).read()
    np.testing.assert_array_equal(pydicom.pixels.pixel_array(seg), mask.occupancy[:, 0] // 255)


# -- whose it is --------------------------------------------------------------------------------------------------

PERSONS: dict[str, dict[str, Any]] = {
    "western": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg^^Dr."},
    "japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "plain": {"SpecificCharacterSet": None, "PatientName": "Doe^Jane", "ReferringPhysicianName": ""},
    "unicode": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Łukasz^Żółć", "PatientSex": None},
}
IDENTITY = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""What the vault holds too."""
MORE = ("PatientAge", "PatientWeight", "StudyDescription")


@pytest.mark.parametrize("person", PERSONS)
def test_it_goes_home_under_the_original_identity(installation: Installation, tmp_path: Path, person: str) -> None:
    """Also without the originals: then the vault knows it, and the voxels and references stay the same."""
    original = write_study(tmp_path / "in", 2, **PERSONS[person])[0]
    analysis = installation.analysed(tmp_path / "in")
    before = made(installation, analysis, pictures=True)
    shutil.rmtree(tmp_path / "in")
    after = made(installation, analysis, pictures=True)
    for objects, names in ((before, (*IDENTITY, *MORE)), (after, IDENTITY)):
        assert list(objects) == ["seg", "sr", "sc"]
        for kind, ds in objects.items():
            for name in names:
                # An absent element that a result must have is there, and empty.
                assert (ds.get(name) or None) == (original.get(name) or None), (kind, name)
            assert ds.SeriesInstanceUID != original.SeriesInstanceUID
            assert ds.SOPInstanceUID == before[kind].SOPInstanceUID
    assert after["seg"].PixelData == before["seg"].PixelData
    assert after["seg"].ReferencedSeriesSequence == before["seg"].ReferencedSeriesSequence
    frames = zip(*(ds.PerFrameFunctionalGroupsSequence for ds in (before["seg"], after["seg"])), strict=True)
    for old, new in frames:
        assert old.DerivationImageSequence == new.DerivationImageSequence
        positions = (group.PlanePositionSequence[0].ImagePositionPatient for group in (old, new))
        np.testing.assert_allclose(*positions, atol=1e-3)


def test_our_own_words_may_need_more_than_the_original_character_set(
    installation: Installation, tmp_path: Path
) -> None:
    write_study(tmp_path / "in", **PERSONS["western"])
    drawn = {"Größe – печень": LIVER_AND_LESION["liver"]}
    objects = made(installation, installation.analysed(tmp_path / "in", structures=drawn))
    assert objects["seg"].SpecificCharacterSet == "ISO_IR 192"
    assert objects["seg"].PatientName == "Müller^Jörg^^Dr."
    assert objects["seg"].SegmentSequence[0].SegmentLabel == "Größe – печень"


def test_a_malformed_original_does_not_hold_up_the_result(installation: Installation, tmp_path: Path) -> None:
    write_study(
        tmp_path / "in", PatientSex="?", PatientAge="0Y", StudyID="longer than sixteen signs", StudyTime="25:00"
    )
    ds = made(installation, installation.analysed(tmp_path / "in"), pictures=True)["seg"]
    assert (ds.PatientSex, ds.StudyID) == ("?", "longer than sixteen signs"), (
        "as it came, for it is what it is filed by"
    )
    assert "PatientAge" not in ds


def test_a_volume_that_the_vault_does_not_know(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    analysis = installation.analysed(tmp_path / "in")
    (key,) = {row.series for row in installation.ingest(tmp_path / "in")}
    installation.stores.vault.remove("series", key)
    with pytest.raises(NotFoundError):
        make(installation.stores, installation.row(analysis), pictures=False)


# -- the same again -----------------------------------------------------------------------------------------------

MASKS = hnp.arrays(np.bool_, (2, 6, 8, 9), elements=st.booleans(), fill=st.just(False))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, VolumeRow]]:
    """An ingested series of 6 × 8 × 9 voxels."""
    folder = tmp_path_factory.mktemp("small")
    write_study(folder / "in", Rows=8, Columns=9, PixelData=bytes(144))
    installation = Installation(stores_at(folder / "home"))
    (volume,) = installation.ingest(folder / "in")
    yield installation, volume
    installation.stores.catalog.close()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(planes=MASKS, confidence=st.floats(0, 1))
def test_making_it_again_gives_the_same_bytes(
    small: tuple[Installation, VolumeRow], planes: NDArray[np.bool_], confidence: float
) -> None:
    first, volume = small
    drawn = {"liver": lambda _: planes[0], "lesion": lambda _: planes[1]}
    package = first.package(recipe=CODES)
    case = content_key(planes.tolist(), confidence)
    prediction = first.segment(package, volume, drawn, confidence=confidence, key=case)
    analysis = first.analysis(package, [prediction], volume.study, version=case)
    results = make(first.stores, first.row(analysis), pictures=True)
    second = Installation(Stores(first.stores.locations))  # as another process would open it
    again = make(second.stores, second.row(analysis), pictures=True)
    assert [(r.kind, r.content) for r in again] == [(r.kind, r.content) for r in results]
    assert [r.kind for r in results] == (["seg", "sr", "sc"] if planes.any() else ["sr"])
    known = known_uids(second.stores, second.row(analysis))
    assert {(r.sop_class, r.uid) for r in results} <= set(known.values())
    assert {second.stores.pseudonymizer.uid(r.uid) for r in results} <= set(known)
    if planes.any():
        seg = results[0].parsed()
        assert seg.NumberOfFrames == planes.any(axis=(2, 3)).sum()
        assert pydicom.pixels.pixel_array(seg).sum() == planes.sum()
    second.stores.catalog.close()


def test_each_version_and_each_package_has_objects_of_its_own(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    (volume,) = installation.ingest(tmp_path / "in")
    uids = []
    for recipe, version in (("", "1"), ("", "2"), (CODES, "1")):
        package = installation.package(recipe=recipe)
        drawn = installation.segment(package, volume, LIVER_AND_LESION)
        analysis = installation.analysis(package, [drawn], volume.study, version=version)
        objects = made(installation, analysis, pictures=True)
        uids += [ds.SOPInstanceUID for ds in objects.values()] + [ds.SeriesInstanceUID for ds in objects.values()]
    assert len(set(uids)) == len(uids) == 18
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def presence(group: Any) -> list[Any]:
    """What a group says of the presence of its finding."""
    return [e.value for e in group.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)]


# -- what they say ------------------------------------------------------------------------------------------------


def test_the_segmentation_names_structures_model_and_version(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    structures = {**LIVER_AND_LESION, "spleen": ball(0.5, 0.2, 0.2, 0.1), "kidney": nowhere}
    analysis = installation.analysed(tmp_path / "in", structures=structures)
    seg = made(installation, analysis)["seg"]
    segments = {item.SegmentLabel: item for item in seg.SegmentSequence}
    assert list(segments) == ["liver", "lesion", "spleen"], "what was not found has no segment"
    assert [(item.SegmentNumber, item.SegmentAlgorithmType) for item in segments.values()] == [
        (n, "AUTOMATIC") for n in (1, 2, 3)
    ]
    codes_of = {name: item.SegmentedPropertyTypeCodeSequence[0].CodeValue for name, item in segments.items()}
    assert codes_of == {"liver": "10200004", "lesion": "52988006", "spleen": "85756007"}
    algorithm = segments["liver"].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("liver", "7")
    assert (seg.Manufacturer, seg.SeriesDescription, seg.DeviceSerialNumber) == (
        "Nocturne",
        "liver 7",
        installation.row(analysis).package,
    )
    local = MADE_AT.astimezone()
    assert (seg.ContentDate, seg.ContentTime) == (f"{local:%Y%m%d}", f"{local:%H%M%S.%f}")
    source = pydicom.dcmread(tmp_path / "in" / "0.dcm")
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    references = seg.ReferencedSeriesSequence[0]
    assert references.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(references.ReferencedInstanceSequence) == 6, "all instances that were analysed"


def test_the_report_measures_what_the_segmentation_shows(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    structures = {**LIVER_AND_LESION, "kidney": nowhere}
    analysis = installation.analysed(tmp_path / "in", structures=structures)
    objects = made(installation, analysis)
    report = hd.sr.ComprehensiveSR.from_dataset(objects["sr"])
    measured = report.content.get_volumetric_roi_measurement_groups()
    assert [group.finding_type.meaning for group in measured] == ["Liver", "Lesion"]
    mask = installation.stores.volumes.open_mask(installation.row(analysis).predictions[0]).read()
    for number, group in enumerate(measured, start=1):
        (volume,) = group.get_measurements(name=codes.SCT.Volume)
        millilitres = (mask.occupancy[number - 1] > 0).sum() * mask.geometry.voxel_volume / 1000
        assert (float(volume.value), volume.unit.value) == (pytest.approx(millilitres, rel=1e-5), "mL")
        (probability,) = group.get_measurements(name=codes.DCM.Probability)
        assert (float(probability.value), probability.derivation) == (0.93, codes.SCT.Mean)
    segments = objects["seg"].SegmentSequence
    assert [str(group.tracking_uid) for group in measured] == [item.TrackingUID for item in segments]
    (absent,) = report.content.get_image_measurement_groups()
    assert (absent.finding_type.meaning, presence(absent)) == ("kidney", [codes.SCT.Absent])
    evidence = {uids[2] for uids in report.get_evidence()}
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "in").iterdir()}
    assert evidence == {*sources, objects["seg"].SOPInstanceUID}


def test_nothing_found_is_a_report_that_says_so(installation: Installation, tmp_path: Path) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in")
    analysis = installation.analysed(tmp_path / "in", structures={"liver": nowhere, "lesion": nowhere})
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert [result.kind for result in results] == ["sr"]
    assert complaints(results, tmp_path) == []
    report = hd.sr.ComprehensiveSR.from_dataset(results[0].parsed())
    told = [presence(group) for group in report.content.get_image_measurement_groups()]
    assert told == [[codes.SCT.Absent]] * 2


def test_what_is_too_unsure_is_not_reported(installation: Installation, tmp_path: Path) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in")
    recipe = "[deliver]\nmin_confidence = 0.95"
    results = make(
        installation.stores, installation.row(installation.analysed(tmp_path / "in", recipe=recipe)), pictures=True
    )
    assert [result.kind for result in results] == ["sr"]
    assert complaints(results, tmp_path) == []
    (group,) = hd.sr.ComprehensiveSR.from_dataset(results[0].parsed()).content.get_image_measurement_groups()
    assert presence(group) == [codes.DCM.PresenceUndetermined]
    assert group.get_measurements() == []


def test_an_image_unlike_the_training_is_told_so(installation: Installation, tmp_path: Path) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in")
    analysis = installation.analysed(tmp_path / "in")
    (prediction,) = installation.stores.catalog.find(PredictionRow)
    result = {**prediction.result, "familiar": False}
    installation.stores.catalog.change(PredictionRow, PredictionRow.prediction == prediction.prediction, result=result)
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert complaints(results, tmp_path) == []
    report = hd.sr.ComprehensiveSR.from_dataset(results[1].parsed())
    assert len(report.content.get_volumetric_roi_measurement_groups()) == 2
    (warning,) = report.content.get_image_measurement_groups()
    assert warning.finding_type.meaning == "Image unlike those that the model was trained on"
    assert presence(warning) == [codes.SCT.Present]


def test_overlapping_structures_stay_whole(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    structures = {"liver": ball(0.5, 0.5, 0.4, 0.3), "lesion": ball(0.5, 0.5, 0.4, 0.2)}
    analysis = installation.analysed(tmp_path / "in", structures=structures)
    seg = made(installation, analysis, pictures=True)["seg"]
    assert seg.SegmentsOverlap == "YES"
    assert_same_voxels(installation, seg, installation.row(analysis).predictions[0])


def test_classes_are_reported_with_their_probabilities(installation: Installation, tmp_path: Path) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in")
    (volume,) = installation.ingest(tmp_path / "in")
    recipe = '[deliver.codes.pneumonia]\ntype = {value = "233604007", meaning = "Pneumonia"}'
    package = installation.package(recipe=recipe, classes=("normal", "pneumonia"), kind="classification")
    called = installation.classify(package, volume, {"normal": 0.125, "pneumonia": 0.875})
    analysis = installation.analysis(package, [called], volume.study)
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert complaints(results, tmp_path) == []
    (result,) = results
    groups = hd.sr.ComprehensiveSR.from_dataset(result.parsed()).content.get_image_measurement_groups()
    told = {group.finding_type.meaning: float(group.get_measurements()[0].value) for group in groups}
    assert told == {"Pneumonia": 0.875, "normal": 0.125}
    assert [presence(group) for group in groups] == [[codes.SCT.Present], []], "the called one comes first"
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "in").iterdir()}
    assert {image.referenced_sop_instance_uid for image in groups[0].source_images} == sources


def test_the_picture_holds_contours_and_no_identity(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    picture = made(installation, installation.analysed(tmp_path / "in"), pictures=True)["sc"]
    assert (picture.BurnedInAnnotation, picture.PhotometricInterpretation) == ("NO", "RGB")
    pixels = picture.pixel_array.astype(int)
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1)) > 40
    assert coloured.sum() > 200, "grey slices alone have no colour"
    others = write_study(tmp_path / "other", PatientName="Another^Person", PatientID="OTHER", AccessionNumber="Z9")
    assert others
    again = Installation(stores_at(tmp_path / "again"))
    same = made(again, again.analysed(tmp_path / "other"), pictures=True)["sc"]
    assert same.PixelData == picture.PixelData, "the picture does not depend on who it is"
    again.stores.catalog.close()


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        ({"mass": 0.1, "effusion": 0.9, "nodule": 0.8}, {"effusion": "Present", "nodule": "Present", "mass": "Absent"}),
        ({"mass": 0.1, "effusion": 0.2, "nodule": 0.3}, {"mass": "Absent", "effusion": "Absent", "nodule": "Absent"}),
        ({"mass": 0.1, "effusion": 0.55, "nodule": 0.8}, {"nodule": "Present", "mass": "Absent"}),
    ],
)
def test_several_classes_are_each_present_or_absent(
    installation: Installation, tmp_path: Path, chances: dict[str, float], expected: dict[str, str]
) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in")
    (volume,) = installation.ingest(tmp_path / "in")
    package = installation.package(
        recipe="several = true\n[deliver]\nmin_confidence = 0.6",
        classes=tuple(chances),
        kind="classification",
        several=True,
    )
    called = installation.classify(package, volume, chances, threshold=0.5)
    analysis = installation.analysis(package, [called], volume.study)
    results = make(installation.stores, installation.row(analysis), pictures=True)
    assert complaints(results, tmp_path) == []
    groups = hd.sr.ComprehensiveSR.from_dataset(results[0].parsed()).content.get_image_measurement_groups()
    told = {group.finding_type.meaning: presence(group) for group in groups}
    assert told == {name: [getattr(codes.SCT, word)] for name, word in expected.items()}
    assert list(told) == list(expected), "what is there comes first"
    for group in groups:
        assert float(group.get_measurements()[0].value) == chances[group.finding_type.meaning]
