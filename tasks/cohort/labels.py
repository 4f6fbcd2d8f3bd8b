"""The truth of a phantom as a DICOM Segmentation (PS3.3 A.51)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from tasks.cohort.headers import Patient, stable_uid
from tasks.cohort.phantom import LESION, LIVER


def _segment(number: int, label: str, code: Code, category: Code, region: Code | None) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        anatomic_regions=[region] if region else None,
    )


_LIVER = Code("10200004", "SCT", "Liver")
_SEGMENTS: Final = [
    _segment(LIVER, "Liver", _LIVER, Code("123037004", "SCT", "Anatomical Structure"), None),
    _segment(
        LESION,
        "Lesion",
        Code("52988006", "SCT", "Lesion"),
        Code("49755003", "SCT", "Morphologically Altered Structure"),
        _LIVER,
    ),
]


def segmentation(patient: Patient, truth: NDArray[np.uint8], slices: list[Dataset]) -> hd.seg.Segmentation:
    """`truth` (z, y, x) as a BINARY segmentation of `slices`, in the same order: Liver without lesions, and Lesion."""
    day, time = _read(patient)
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=truth,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_SEGMENTS,
        series_instance_uid=stable_uid(patient.study, "series", "SEG"),
        series_number=20,
        sop_instance_uid=stable_uid(patient.study, "SEG"),
        instance_number=1,
        manufacturer="Nocturne demonstration",
        manufacturer_model_name="Phantom",
        software_versions="1",
        device_serial_number="DEMO-0002",
        series_description="Liver and lesions, by hand",
        content_creator_name="READER^Demo",
        content_date=day,
        content_time=time,
        series_date=day,
        series_time=time,
    )
    _settle(seg, patient)
    return seg


def _settle(seg: Dataset, patient: Patient) -> None:
    """Replace what highdicom draws or reads from the clock by what follows from the patient."""
    organisation = stable_uid(patient.study, "dimensions")
    day, time = _read(patient)
    for element in seg.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = organisation
        elif element.keyword in ("InstanceCreationDate", "InstanceCreationTime"):
            element.value = day if element.VR == "DA" else time
        elif element.keyword == "ContributionDateTime":
            element.value = day + time


def _read(patient: Patient) -> tuple[str, str]:
    """Date and time at which somebody outlined the liver."""
    moment = patient.examined + timedelta(hours=2)
    return f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
