"""Small DICOM series made by pydicom, and a room to ingest them in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from models.errors import BadInputError
from models.pseudonyms import Pseudonymizer
from tasks.ingest.run import Ingestor, IngestRules, Outcome
from tasks.stores.catalog import Catalog
from tasks.stores.tables import QuarantineRow
from tasks.stores.vault import Vault
from tasks.stores.volumes import VolumeStore

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ROOT = "1.2.826.0.1.3680043.10.1234."


def image(
    pixels: np.ndarray,
    *,
    position: Iterable[float] | None = (0.0, 0.0, 0.0),
    orientation: Iterable[float] = AXIAL,
    series: str = "1",
    syntax: str = ExplicitVRLittleEndian,
    encoded: bytes | list[bytes] | None = None,
    **more: Any,
) -> Dataset:
    """One instance; `more` sets or (with None) removes elements."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid(ROOT)
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = ROOT + "2", ROOT + "3." + series, ROOT + "4"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = "MRN-4711", "Gruber^Hannelore", "19470811"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20240229", "120000", "ACC-0815"
    ds.Modality, ds.InstanceNumber, ds.ImageType = "CT", 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    if position is not None:
        ds.ImagePositionPatient = [_ds(v) for v in position]
        ds.ImageOrientationPatient = [_ds(v) for v in orientation]
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.75], 2.0
    ds.Rows, ds.Columns = pixels.shape[-2:] if pixels.shape[-1] != 3 else pixels.shape[-3:-1]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    for name, value in more.items():
        if value is None:
            ds.pop(name, None)
        else:
            setattr(ds, name, value)
    if encoded is None:
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    else:
        ds.PixelData = encapsulate([encoded] if isinstance(encoded, bytes) else encoded)
        ds["PixelData"].VR = "OB"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return ds


def stack(count: int = 4, *, gap: float = 2.0, shape: tuple[int, int] = (6, 5), **more: Any) -> list[Dataset]:
    """An axial series with a different ramp in each slice."""
    ramp = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(shape)
    return [
        image(ramp + np.uint16(1000 + 100 * n), position=(-10.0, -20.0, 30.0 + gap * n), InstanceNumber=n + 1, **more)
        for n in range(count)
    ]


def write(folder: Path, datasets: Iterable[Dataset], names: Iterable[str] | None = None) -> Path:
    """One file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, (ds, name) in enumerate(zip(datasets, names or iter(lambda: "", None), strict=False)):
        ds.save_as(folder / (name or f"{n:04d}.dcm"), enforce_file_format=True)
    return folder


def _ds(value: float) -> str:
    return f"{value:.10g}"[:16]


@dataclass(slots=True)
class Room:
    """Everything that ingest needs, in one folder."""

    home: Path
    catalog: Catalog
    vault: Vault
    volumes: VolumeStore
    ingestor: Ingestor

    @classmethod
    def at(cls, home: Path, *, allow: Iterable[str] = (), colour: bool = False) -> Room:
        catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
        vault, volumes = Vault(catalog, b"v" * 32), VolumeStore(str(home / "volumes"))
        rules = IngestRules(frozenset(allow), colour)
        return cls(
            home, catalog, vault, volumes, Ingestor(catalog, vault, volumes, Pseudonymizer(b"s" * 32), rules, workers=2)
        )

    def ingest(self, *paths: Path) -> list[Outcome]:
        return [self.ingestor.ingest(ref) for ref in self.ingestor.scan([str(p) for p in paths]).series]

    def only(self, *paths: Path) -> Any:
        """The one volume that lies there."""
        (outcome,) = self.ingest(*paths)
        assert outcome.quarantined == ()
        (ref,) = outcome.volumes
        return self.volumes.open(ref.key).read()

    def refused(self, *paths: Path) -> tuple[str, ...]:
        """The reasons why nothing there became a volume."""
        outcomes = self.ingest(*paths)
        assert not any(outcome.volumes for outcome in outcomes)
        return tuple(row.reason for row in self.catalog.find(QuarantineRow))


def reason(error: BadInputError) -> str:
    return error.reason
