"""Ingest of one CT series, 120 × 512 × 512 int16, beside what a user would pick instead.

    python benchmarks/ingest.py [--work FOLDER] [--slices N] [--repeat N]

Writes a synthetic series in every encoding for which an encoder is at hand, outside the repository, then times in one
run: our ingest in a running process (scan, checks, digests, de-identification, pixels, Zarr, catalog and vault; the
catalog is open) and as a whole process (imports, a new catalog), dcm2niix uncompressed and gzip, SimpleITK to NIfTI,
and a plain pydicom loop to Zarr, both in a running process. The contestants take turns, with the files in the page
cache. Prints medians and the least as a Markdown table; read the ratios.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

ROOT = Path(__file__).resolve().parent.parent
ENCODINGS = {
    "uncompressed": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG 2000": JPEG2000Lossless,
}


# -- the series ---------------------------------------------------------------------------------------------------


def phantom(slices: int) -> np.ndarray:
    """A body-like volume with noise, stored values of 12 bits: it compresses about as a CT does."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    volume = np.empty((slices, 512, 512), np.uint16)
    for n in range(slices):
        size = 0.6 + 0.1 * np.sin(n / slices * np.pi)
        body = (x / size) ** 2 + (y / (0.7 * size)) ** 2 < 1
        organ = (x - 0.2) ** 2 + (y + 0.1 * n / slices) ** 2 < 0.04
        bone = (x**2 + (y - 0.3) ** 2) < 0.006
        image = 24 + body * 1010 + organ * 60 + bone * 800 + rng.normal(0, 12, x.shape) * body
        volume[n] = np.clip(image, 0, 4095)
    return volume


def encoded(image: np.ndarray, syntax: str) -> bytes:
    """One compressed frame of 12 bits."""
    import imagecodecs

    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(image))
    if syntax == JPEGLosslessSV1:
        return bytes(imagecodecs.ljpeg_encode(image, bitspersample=12))
    return bytes(imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0, reversible=True, bitspersample=12))


def write_series(folder: Path, volume: np.ndarray, syntax: str) -> None:
    """One file per slice, as a scanner sends them."""
    folder.mkdir(parents=True)
    root = f"2.25.{abs(hash(syntax)) % 10**20}"
    for n, image in enumerate(volume):
        ds = header(root, n, image.shape)
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax in (ExplicitVRLittleEndian, RLELossless):
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.PixelData = image.tobytes()
            if syntax == RLELossless:
                ds.compress(RLELossless, generate_instance_uid=False)
        else:
            ds.PixelData = encapsulate([encoded(image, syntax)])
            ds["PixelData"].VR = "OB"
        ds.save_as(folder / f"{n:04d}.dcm", enforce_file_format=True)


def header(root: str, n: int, shape: tuple[int, ...]) -> Dataset:
    """A CT header of ordinary size."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{root}.1.{n + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{root}.2", f"{root}.3", f"{root}.4"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "BENCH-1", "Bench^Mark", "19500101", "O"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.AccessionNumber, ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "A1", "1", 1, n + 1
    ds.Manufacturer, ds.ManufacturerModelName, ds.SeriesDescription = "Test", "benchmark", "CT thorax axial"
    ds.KVP, ds.SliceThickness, ds.ConvolutionKernel, ds.PatientPosition = 120, 1.5, "B30f", "HFS"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-180.0, -180.0, 1.5 * n], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, (ds.Rows, ds.Columns) = [0.7, 0.7], shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    return ds


Contestant = Callable[[Path, Path], float | None]


# -- the contestants ----------------------------------------------------------------------------------------------


def ours(source: Path, target: Path) -> float:
    """Everything: scan, checks, de-identification, digests, pixels, Zarr, catalog, vault; seconds once it is set up."""
    from models.pseudonyms import Pseudonymizer
    from tasks.ingest.run import Ingestor, IngestRules
    from tasks.stores.catalog import Catalog
    from tasks.stores.vault import Vault
    from tasks.stores.volumes import VolumeStore

    catalog = Catalog(f"sqlite:///{target}/catalog.db")
    ingestor = Ingestor(
        catalog,
        Vault(catalog, b"v" * 32),
        VolumeStore(str(target / "volumes")),
        Pseudonymizer(b"s" * 32),
        IngestRules(),
    )
    begun = time.perf_counter()
    for ref in ingestor.scan([str(source)]).series:
        outcome = ingestor.ingest(ref)
        assert outcome.volumes, outcome.quarantined
    return time.perf_counter() - begun


def ours_whole(source: Path, target: Path) -> None:
    """The same in a process of its own, imports and an empty catalog included."""
    run(sys.executable, str(Path(__file__).resolve()), "--ours", str(source), str(target), cwd=ROOT)


def dcm2niix(source: Path, target: Path) -> None:
    """Uncompressed NIfTI."""
    run("dcm2niix", "-z", "n", "-b", "n", "-o", str(target), str(source))


def dcm2niix_gzip(source: Path, target: Path) -> None:
    """NIfTI compressed by the tool itself."""
    run("dcm2niix", "-z", "i", "-b", "n", "-o", str(target), str(source))


def simpleitk(source: Path, target: Path) -> None:
    """Its series reader, to uncompressed NIfTI; in this process."""
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
    sitk.WriteImage(reader.Execute(), str(target / "image.nii"))


def pydicom_loop(source: Path, target: Path) -> None:
    """What a script does: dcmread, sort by position, pixel_array, stack, Zarr; in this process."""
    import pydicom
    import zarr

    datasets = [pydicom.dcmread(path) for path in source.iterdir()]
    datasets.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    volume = np.stack([ds.pixel_array.astype(np.int16) + np.int16(ds.RescaleIntercept) for ds in datasets])
    zarr.create_array(str(target / "image.zarr"), data=volume)


def run(*command: str, cwd: Path | None = None) -> None:
    """One process; its failure is ours."""
    subprocess.run(command, check=True, capture_output=True, cwd=cwd)


def once(work: Contestant, source: Path, target: Path) -> float | None:
    """Seconds of one run into an empty folder; None where the tool cannot read the series."""
    target.mkdir(parents=True)
    begun = time.perf_counter()
    try:
        told = work(source, target)
        return told if told is not None else time.perf_counter() - begun
    except Exception as error:  # noqa: BLE001 - a tool that fails is a result too
        print(f"{work.__name__}: {type(error).__name__}", file=sys.stderr)
        return None
    finally:
        shutil.rmtree(target)


def measured(contestants: dict[str, Contestant], source: Path, scratch: Path, repeat: int) -> dict[str, list[float]]:
    """Seconds of every contestant, in turns; a first turn warms imports and the page cache."""
    times: dict[str, list[float]] = {label: [] for label in contestants}
    for turn in range(repeat + 1):
        for label, work in contestants.items():
            taken = once(work, source, scratch / f"{turn}-{work.__name__}")
            if turn and taken is not None:
                times[label].append(taken)
    return times


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nocturne-benchmark-ingest")
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(ENCODINGS))
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(*options.ours)
        return
    sys.path.insert(0, str(ROOT))
    contestants: dict[str, Contestant] = {
        "ours, running": ours,
        "ours, whole process": ours_whole,
        "SimpleITK → NIfTI, running": simpleitk,
        "pydicom loop → Zarr, running": pydicom_loop,
    }
    if shutil.which("dcm2niix"):
        contestants |= {"dcm2niix, uncompressed": dcm2niix, "dcm2niix, gzip": dcm2niix_gzip}
    volume = phantom(options.slices)
    table: dict[str, dict[str, list[float]]] = {}
    for name in options.only:
        source = options.work / name.replace(" ", "-") / str(options.slices)
        if not source.is_dir():
            write_series(source, volume, ENCODINGS[name])
        with tempfile.TemporaryDirectory(dir=options.work) as scratch:
            table[name] = measured(contestants, source, Path(scratch), options.repeat)
    print_table(table, list(contestants))


def print_table(table: dict[str, dict[str, list[float]]], labels: list[str]) -> None:
    """Median seconds (least), and how many times as long as ours in a running process (of the medians)."""
    print("| median s (least), × ours | " + " | ".join(table) + " |\n|---" + "|---" * len(table) + "|")
    for label in labels:
        cells = []
        for times in table.values():
            mine, base = times[label], statistics.median(times["ours, running"])
            middle = statistics.median(mine) if mine else 0.0
            cells.append(f"{middle:.3f} ({min(mine):.3f}), {middle / base:.2f}" if mine else "–")
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
