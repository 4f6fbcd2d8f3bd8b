"""Instances for the receiving tests: small, genuine DICOM, in every encoding."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = "MARKER^Patient"
PATIENT_ID = "MARKER-0815"


def instance(study: str | None = None, *, side: int = 16, seed: int = 0, **values: Any) -> Dataset:
    """A CT slice with a sequence and a private block before the UIDs of study and series."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20240102", "101112", "A1"
    ds.Modality = "CT"
    referenced = Dataset()
    referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID = CTImageStorage, generate_uid()
    ds.ReferencedStudySequence = Sequence([referenced, referenced])
    block = ds.private_block(0x0009, "MAKER", create=True)
    block.add_new(0x01, "UN", b"abc\0")
    ds.PatientName, ds.PatientID = PATIENT, PATIENT_ID
    ds.StudyInstanceUID = study or generate_uid()
    ds.SeriesInstanceUID = f"{ds.StudyInstanceUID[:60]}.1"
    ds.InstanceNumber = 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = side
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    pixels = np.random.default_rng(seed).integers(0, 4096, (side, side), dtype=np.uint16)
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for name, value in values.items():
        setattr(ds, name, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def encoded(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set alone, as it travels."""
    ds.file_meta.TransferSyntaxUID = syntax
    out = BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    written = out.getvalue()
    return written[144 + int.from_bytes(written[140:144], "little") :]


def write(folder: Path, *datasets: Dataset) -> list[Path]:
    """Part 10 files under plain names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets):
        path = folder / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
