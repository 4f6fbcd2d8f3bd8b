"""What is sent of lesions: one by one, with their confidence, under the same names in both objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from models.refs import AnalysisRef
from tasks.deliver.objects import make
from tests.components import needs
from tests.tasks.deliver.installation import CODES, Draw, Installation, ball, write_study
from tests.tasks.deliver.test_objects import complaints

LESIONS: dict[str, Draw] = {"lesion 1": ball(0.5, 0.5, 0.3, 0.12), "lesion 2": ball(0.5, 0.5, 0.8, 0.1)}


def analysed(
    installation: Installation, folder: Path, method: str, lesions: dict[str, Draw] | None = None, more: str = ""
) -> AnalysisRef:
    (volume,) = installation.ingest(folder)
    recipe = f'[detection]\nmethod = "{method}"\n{more}{CODES}'
    package = installation.package(recipe=recipe, kind="detection", classes=("lesion",))
    prediction = installation.detect(package, volume, LESIONS if lesions is None else lesions)
    return installation.analysis(package, [prediction], volume.study)


def sent(installation: Installation, analysis: AnalysisRef) -> dict[str, Dataset]:
    return {r.kind: r.parsed() for r in make(installation.stores, installation.row(analysis), pictures=False)}


def groups(report: Dataset) -> list[Any]:
    read = hd.sr.ComprehensiveSR.from_dataset(report).content
    assert isinstance(read, hd.sr.MeasurementReport)
    return [
        *read.get_volumetric_roi_measurement_groups(),
        *read.get_planar_roi_measurement_groups(),
        *read.get_image_measurement_groups(),
    ]


@pytest.mark.parametrize("number", [1, 2], ids=["axial", "oblique"])
@pytest.mark.parametrize("method", ["components", "retinanet"])
def test_the_standards_checker_accepts_lesions(
    installation: Installation, tmp_path: Path, method: str, number: int
) -> None:
    needs("dciodvfy")
    write_study(tmp_path / "in", number)
    analysis = analysed(installation, tmp_path / "in", method)
    results = make(installation.stores, installation.row(analysis), pictures=True)
    # A box is no segmentation.
    assert [r.kind for r in results] == (["seg", "sr", "sc"] if method == "components" else ["sr", "sc"])
    assert complaints(results, tmp_path) == []


def test_every_lesion_has_a_segment_and_a_group_under_one_name(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    told = sent(installation, analysed(installation, tmp_path / "in", "components"))
    segments = told["seg"].SegmentSequence
    assert [s.SegmentLabel for s in segments] == ["lesion 1", "lesion 2"]
    # Both are of one type: the number is the lesion's, not the kind's.
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in segments] == ["52988006", "52988006"]
    found = groups(told["sr"])
    assert [g.tracking_uid for g in found] == [s.TrackingUID for s in segments]
    assert len({s.TrackingUID for s in segments}) == 2
    for group in found:
        (volume,) = group.get_measurements(name=codes.SCT.Volume)
        (chance,) = group.get_measurements(name=codes.DCM.Probability)
        assert volume.value > 0
        assert chance.value == pytest.approx(0.8)
        assert group.finding_type == codes.SCT.Lesion


def test_a_box_is_a_rectangle_on_each_slice_that_it_reaches(installation: Installation, tmp_path: Path) -> None:
    write_study(tmp_path / "in")
    analysis = analysed(installation, tmp_path / "in", "retinanet")
    mask = installation.stores.volumes.open_mask(installation.row(analysis).predictions[0]).read()
    found = groups(sent(installation, analysis)["sr"])
    assert len(found) == 2
    for group, plane in zip(found, mask.occupancy, strict=True):
        inside = plane > 0
        assert len(group.roi) == int(inside.any(axis=(1, 2)).sum())
        spans = []
        for region in group.roi:
            corners = np.asarray(region.value)
            assert (corners[0] == corners[-1]).all(), "an outline closes"
            spans.append(corners.max(0) - corners.min(0))
        columns, rows = inside.any(axis=(0, 1)).sum(), inside.any(axis=(0, 2)).sum()
        assert np.max(spans, axis=0).tolist() == [columns, rows]
        assert not group.get_measurements(name=codes.SCT.Volume), "a box tells no volume"


@pytest.mark.parametrize("method", ["components", "retinanet"])
def test_no_lesion_is_a_report_that_says_so(installation: Installation, tmp_path: Path, method: str) -> None:
    write_study(tmp_path / "in")
    told = sent(installation, analysed(installation, tmp_path / "in", method, {}))
    assert list(told) == ["sr"]
    (group,) = groups(told["sr"])
    (presence,) = group.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)
    assert presence.value == codes.SCT.Absent


@pytest.mark.parametrize("method", ["components", "retinanet"])
def test_an_unsure_lesion_is_not_reported(installation: Installation, tmp_path: Path, method: str) -> None:
    write_study(tmp_path / "in")
    analysis = analysed(installation, tmp_path / "in", method, more="[deliver]\nmin_confidence = 0.9\n")
    told = sent(installation, analysis)
    assert list(told) == ["sr"]
    (group,) = groups(told["sr"])
    (presence,) = group.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)
    assert presence.value == codes.DCM.PresenceUndetermined


def test_boxes_on_frames_name_their_frames(installation: Installation, shared_data: Path, tmp_path: Path) -> None:
    needs("dciodvfy")
    volumes = installation.ingest(shared_data / "series" / "mr_siemens_multiframe")
    package = installation.package(
        recipe=f'[detection]\nmethod = "retinanet"\n{CODES}', kind="detection", classes=("lesion",)
    )
    analysis = installation.analysis(package, [installation.detect(package, volumes[0], LESIONS)], volumes[0].study)
    results = make(installation.stores, installation.row(analysis), pictures=False)
    assert complaints(results, tmp_path) == []
    frames = [
        region.ContentSequence[0].ReferencedSOPSequence[0].get("ReferencedFrameNumber")
        for group in groups(results[0].parsed())
        for region in getattr(group, "roi", None) or ()
    ]
    assert frames
    assert all(frames)
