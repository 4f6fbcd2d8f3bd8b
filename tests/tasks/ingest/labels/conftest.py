"""A small installation, and images and labels to bring to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from tasks.ingest.labels.run import LabelIngestor, LabelOutcome
from tasks.ingest.run import Ingestor, IngestRules, Outcome
from tasks.stores.catalog import Catalog
from tasks.stores.vault import Vault
from tasks.stores.volumes import VolumeStore

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Home:
    """The stores that label ingest needs."""

    catalog: Catalog
    vault: Vault
    volumes: VolumeStore
    pseudonymizer: Pseudonymizer

    def ingest(self, *paths: Path) -> tuple[list[Outcome], list[LabelOutcome]]:
        """Scan, then images, then labels."""
        images = Ingestor(self.catalog, self.vault, self.volumes, self.pseudonymizer, IngestRules(), workers=1)
        labels = LabelIngestor(self.catalog, self.vault, self.volumes, self.pseudonymizer)
        report = images.scan([str(path) for path in paths])
        return [images.ingest(ref) for ref in report.series], [labels.ingest(ref) for ref in report.labels]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


def make_home(folder: Path) -> Home:
    catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
    volumes = VolumeStore(str(folder / "volumes"))
    return Home(catalog, Vault(catalog, b"v" * 32), volumes, Pseudonymizer(b"s" * 32))


@pytest.fixture
def pseudonymizer() -> Pseudonymizer:
    return Pseudonymizer(b"s" * 32)


def ct_series(
    geometry: Geometry,
    *,
    patient: str = "PAT-1",
    study: str | None = None,
    frame: str | None = None,
    series: str | None = None,
    modality: str = "CT",
) -> list[Dataset]:
    """A CT series of noise on `geometry`, in slice order."""
    orientation, spacing, positions = geometry.to_dicom()
    study, frame, series = study or generate_uid(), frame or generate_uid(), series or generate_uid()
    rng = np.random.default_rng(0)
    slices = []
    for number, position in enumerate(positions):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = patient, "Doe^Jane", "19500101", "F"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", "A1"
        ds.ReferringPhysicianName, ds.PositionReferenceIndicator, ds.Laterality = "", "", ""
        ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = modality, "Test", 1, number + 1
        ds.ImageOrientationPatient = [round(v, 10) for v in orientation]
        ds.ImagePositionPatient = [round(v, 6) for v in position]
        ds.PixelSpacing, ds.SliceThickness = [round(v, 8) for v in spacing], round(geometry.spacing[0], 8)
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = geometry.shape[1:]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
        ds.PixelData = rng.integers(-100, 100, geometry.shape[1:], dtype=np.int16).tobytes()
        slices.append(ds)
    return slices


def save(datasets: Sequence[Dataset], folder: Path) -> Path:
    """Write each into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for ds in datasets:
        ds.save_as(folder / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
    return folder


def describe(number: int, label: str) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=Code("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=Code("10200004", "SCT", "Liver"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def segmentation(
    slices: Sequence[Dataset], pixels: NDArray[np.generic], kind: str = "BINARY", names: Sequence[str] = ("Liver",)
) -> hd.seg.Segmentation:
    """A SEG of `slices`: pixels (z, y, x[, segment])."""
    return hd.seg.Segmentation(
        source_images=list(slices),
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[describe(n, name) for n, name in enumerate(names, start=1)],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Test",
        manufacturer_model_name="Test",
        software_versions="1",
        device_serial_number="1",
    )


def content(dataset: Dataset, folder: Path) -> bytes:
    """The file's bytes."""
    path = folder / f"{generate_uid()}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path.read_bytes()


def structure_set(
    image: Dataset, rois: dict[str, list[NDArray[np.float64]]], *, frame: str | None = None, kind: str = "CLOSED_PLANAR"
) -> Dataset:
    """An RTSTRUCT of closed contours (n, 3) LPS mm on the series of `image`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.481.3")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = image.PatientID, image.StudyInstanceUID, generate_uid()
    ds.Modality, ds.StructureSetLabel = "RTSTRUCT", "Test"
    frame = frame or image.FrameOfReferenceUID
    series, study, reference = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = image.SeriesInstanceUID, []
    study.RTReferencedSeriesSequence = [series]
    reference.FrameOfReferenceUID, reference.RTReferencedStudySequence = frame, [study]
    ds.ReferencedFrameOfReferenceSequence = [reference]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{v:.6f}" for v in np.asarray(points).ravel()]
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    return ds
