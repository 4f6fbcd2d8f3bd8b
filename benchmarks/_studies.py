"""Small CT studies with a table of classes, written once: what a benchmark of many studies takes in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SIDE = 32
CLASSES = ("normal", "lesion")
TABLE = "labels.csv"
_ROOT = "1.2.826.0.1.3680043.10.1234"


def write_studies(folder: Path, numbers: range, slices: int) -> Path:
    """A folder of `slices` × 32 × 32 for each number, and a table of the patients' classes: every other has a bright
    block. Returns `folder`, which `table` lies in.
    """
    for number in numbers:
        study = folder / "images" / f"P{number:05}"
        study.mkdir(parents=True)
        for place, instance in enumerate(_instances(number, slices)):
            instance.save_as(study / f"{place:03}.dcm", enforce_file_format=True)
    rows = [f"P{number:05},{CLASSES[number % 2]}" for number in numbers]
    (folder / TABLE).write_text("\n".join(["PatientID,label", *rows]) + "\n")
    return folder


def _instances(number: int, slices: int) -> Iterator[Dataset]:
    """One study's slices, from feet to head."""
    rng = np.random.default_rng([2026, number])
    voxels = rng.normal(1000, 30, (slices, SIDE, SIDE))
    if number % 2:
        voxels[:, 8:20, 8:20] += 200
    base = _header(number)
    for place, pixels in enumerate(voxels.astype(np.uint16)):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"{base.SeriesInstanceUID}.{place + 1}"
        base.InstanceNumber = place + 1
        base.ImagePositionPatient = [-10, -20, 30 + 2 * place]
        base.PixelData = pixels.tobytes()
        yield base


def _header(number: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{_ROOT}.{number + 1}", f"{_ROOT}.{number + 1}.1"
    ds.FrameOfReferenceUID = f"{_ROOT}.{number + 1}.2"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = f"P{number:05}", f"Phantom^{number}", "19500101"
    ds.PatientSex, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "O", "20240229", "120000", f"A{number}"
    ds.Modality, ds.ImageType, ds.Manufacturer = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "Aster"
    ds.ImageOrientationPatient, ds.PixelSpacing, ds.SliceThickness = [1, 0, 0, 0, 1, 0], [1.0, 1.0], 2.0
    ds.Rows = ds.Columns = SIDE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    return ds
