"""The DICOM modules of a CT image (PS3.3 A.3), as two made-up scanners fill them in for made-up patients."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from models.geometry import Geometry

_STARS: Final = (
    *("Vega", "Rigel", "Altair", "Deneb", "Spica", "Capella", "Mira", "Antares", "Pollux", "Castor", "Sirius"),
    *("Procyon", "Bellatrix", "Alcor", "Mizar", "Atria", "Hadar", "Avior", "Eltanin", "Nunki", "Scheat"),
)


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient who never was, with one examination. Everything here identifies, and must not pass ingest."""

    patient_id: str
    name: str
    sex: str
    birth_date: date
    weight_kg: float
    accession: str
    study: UID
    examined: datetime
    referrer: str

    @property
    def age(self) -> str:
        """DICOM's age string at the examination."""
        return f"{(self.examined.date() - self.birth_date).days // 365:03d}Y"


@dataclass(frozen=True, slots=True)
class Scanner:
    """One maker's conventions.

    `bits` and `signed` say how CT numbers are stored over `intercept`; `shuffled` that instance numbers do not
    follow the position and slices run to the head, not from it; `oblique` that the slices are not quite axial.
    """

    manufacturer: str
    model: str
    station: str
    software: str
    institution: str
    description: str
    kernel: str
    kvp: int
    syntax: UID
    bits: int
    signed: bool
    intercept: int
    shuffled: bool
    oblique: bool
    private: bool


ASTER: Final = Scanner(
    manufacturer="Aster Imaging (fictional)",
    model="Aster One 64",
    station="ASTERCT1",
    software="1.4.2",
    institution="Nowhere General Hospital (fictional)",
    description="Abdomen portal venous 5.0 soft",
    kernel="SOFT",
    kvp=120,
    syntax=ExplicitVRLittleEndian,
    bits=12,
    signed=False,
    intercept=-1024,
    shuffled=False,
    oblique=False,
    private=False,
)
BOREALIS: Final = Scanner(
    manufacturer="Borealis Medical Systems (fictional)",
    model="Aurora CT",
    station="BOR-CT-02",
    software="VB20A",
    institution="Elsewhere University Clinic (fictional)",
    description="ABD PV Br40 S3",
    kernel="Br40",
    kvp=100,
    syntax=ImplicitVRLittleEndian,
    bits=16,
    signed=True,
    intercept=0,
    shuffled=True,
    oblique=True,
    private=True,
)


def stable_uid(*parts: object) -> UID:
    """The same UID in the 2.25 arc (PS3.5 B.2) for the same parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:15], 'big')}")


def draw_patient(rng: np.random.Generator, patient_id: str, seed: int) -> Patient:
    """Someone of 25 to 85 years, examined in the spring of 2026."""
    examined = datetime(2026, 3, 2, 7) + timedelta(minutes=int(rng.integers(0, 80 * 24 * 60)))
    return Patient(
        patient_id=patient_id,
        name=f"DEMO-{rng.choice(_STARS)}^{rng.choice(_STARS)}",
        sex=str(rng.choice(["F", "M"])),
        birth_date=examined.date() - timedelta(days=int(rng.integers(25 * 366, 85 * 365))),
        weight_kg=float(rng.integers(48, 105)),
        accession=f"ACC{int(rng.integers(10**6, 10**7))}",
        study=stable_uid("study", seed, patient_id),
        examined=examined,
        referrer=f"REFERRER^{rng.choice(_STARS)}",
    )


def ct_slice(
    patient: Patient, scanner: Scanner, geometry: Geometry, hu: NDArray[np.int16], index: int, number: int
) -> Dataset:
    """Slice `index` of `hu` (z, y, x) as a CT Image instance with Instance Number `number`, ready to be saved."""
    ds = Dataset()
    _sop_common(ds, patient, index, number)
    _patient(ds, patient)
    _study(ds, patient)
    _series(ds, patient, scanner)
    _equipment(ds, patient, scanner)
    _image(ds, patient, scanner, number)
    _plane(ds, patient, geometry, index)
    _acquisition(ds, scanner)
    _pixels(ds, scanner, hu[index])
    if scanner.private:
        _private(ds, patient)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = scanner.syntax
    return ds


def _sop_common(ds: Dataset, patient: Patient, index: int, number: int) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = stable_uid(patient.study, "CT", index)
    ds.InstanceNumber = number
    ds.InstanceCreationDate, ds.InstanceCreationTime = _when(patient.examined + timedelta(minutes=4))


def _patient(ds: Dataset, patient: Patient) -> None:
    ds.PatientName, ds.PatientID, ds.PatientSex = patient.name, patient.patient_id, patient.sex
    ds.IssuerOfPatientID = "NOWHERE"
    ds.PatientBirthDate = _when(datetime.combine(patient.birth_date, datetime.min.time()))[0]
    ds.PatientAge, ds.PatientWeight = patient.age, patient.weight_kg
    ds.PatientComments = f"Fictional patient {patient.name} of a demonstration"


def _study(ds: Dataset, patient: Patient) -> None:
    ds.StudyInstanceUID, ds.StudyID = patient.study, patient.accession[-4:]
    ds.StudyDate, ds.StudyTime = _when(patient.examined)
    ds.AccessionNumber, ds.ReferringPhysicianName = patient.accession, patient.referrer
    ds.StudyDescription = "CT abdomen with contrast"


def _series(ds: Dataset, patient: Patient, scanner: Scanner) -> None:
    ds.Modality, ds.SeriesNumber = "CT", 2
    ds.SeriesInstanceUID = stable_uid(patient.study, "series", "CT")
    ds.SeriesDate, ds.SeriesTime = _when(patient.examined + timedelta(minutes=3))
    ds.SeriesDescription, ds.ProtocolName = scanner.description, "Abdomen PV"
    ds.BodyPartExamined = "ABDOMEN"
    feet_first = scanner.oblique and int(patient.accession[-1]) % 2 == 0
    ds.PatientPosition = "FFS" if feet_first else "HFS"
    ds.OperatorsName, ds.PerformingPhysicianName = "OPERATOR^Demo", "RADIOLOGIST^Demo"
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = patient.accession, f"S{patient.accession}"
    request.RequestedProcedureDescription = f"CT abdomen for {patient.name}"
    ds.RequestAttributesSequence = [request]


def _equipment(ds: Dataset, patient: Patient, scanner: Scanner) -> None:
    ds.Manufacturer, ds.ManufacturerModelName = scanner.manufacturer, scanner.model
    ds.StationName, ds.SoftwareVersions, ds.DeviceSerialNumber = scanner.station, scanner.software, "DEMO-0001"
    ds.InstitutionName, ds.InstitutionAddress = scanner.institution, "1 Hospital Road, Nowhere"
    ds.FrameOfReferenceUID = stable_uid(patient.study, "frame")
    ds.PositionReferenceIndicator = ""


def _image(ds: Dataset, patient: Patient, scanner: Scanner, number: int) -> None:
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    taken = patient.examined + timedelta(minutes=3, milliseconds=150 * number)
    ds.AcquisitionDate, ds.AcquisitionTime = ds.ContentDate, ds.ContentTime = _when(taken)
    ds.AcquisitionNumber = 1
    ds.BurnedInAnnotation = "NO"
    if scanner.shuffled:
        ds.WindowCenter, ds.WindowWidth = [40, 300], [350, 1500]
        ds.WindowCenterWidthExplanation = ["SOFT", "BONE"]
    else:
        ds.WindowCenter, ds.WindowWidth = 50, 400


def _plane(ds: Dataset, patient: Patient, geometry: Geometry, index: int) -> None:
    orientation, spacing, positions = geometry.to_dicom()
    ds.ImageOrientationPatient = [_decimal(v) for v in orientation]
    ds.ImagePositionPatient = [_decimal(v) for v in positions[index]]
    ds.PixelSpacing = [_decimal(v) for v in spacing]
    ds.SliceThickness = _decimal(geometry.spacing[0])
    ds.SliceLocation = _decimal(round(float(np.dot(positions[index], geometry.normal)), 3))


def _acquisition(ds: Dataset, scanner: Scanner) -> None:
    ds.KVP, ds.XRayTubeCurrent, ds.ExposureTime = scanner.kvp, 180, 500
    ds.ConvolutionKernel, ds.GantryDetectorTilt = scanner.kernel, 0
    ds.ScanOptions = "HELICAL MODE"
    ds.ContrastBolusAgent = "Fictional contrast medium"


def _pixels(ds: Dataset, scanner: Scanner, hu: NDArray[np.int16]) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, scanner.bits, scanner.bits - 1
    ds.PixelRepresentation = int(scanner.signed)
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = scanner.intercept, 1, "HU"
    stored = (hu.astype(np.int32) - scanner.intercept).astype("<i2" if scanner.signed else "<u2")
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"


def _private(ds: Dataset, patient: Patient) -> None:
    """What makers tuck away: the name again, and bytes only they can read."""
    block = ds.private_block(0x0029, "BOREALIS CT HEADER", create=True)
    block.add_new(0x08, "LO", "IMAGE NUM 4")
    block.add_new(0x09, "PN", patient.name)
    block.add_new(0x10, "OB", hashlib.sha256(patient.name.encode()).digest() * 4)


def _when(moment: datetime) -> tuple[str, str]:
    return f"{moment:%Y%m%d}", f"{moment:%H%M%S.%f}"


def _decimal(value: float) -> DSfloat:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return DSfloat(value, auto_format=True)
