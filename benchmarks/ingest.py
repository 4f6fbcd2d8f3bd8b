"""Ingest of CT series of 120 × 512 × 512 int16, beside what a user would pick instead.

    python benchmarks/ingest.py [--repeat N] [--slices N] [--series N] [--only NAME …] [--quick]

Eight uncompressed series, then one of each compressed encoding, written into a temporary folder. Ours does all that
ingest does: scan, checks, digests, de-identification, pixels, compressed and checksummed Zarr, catalog and vault, each
volume synced to the disk before its row. Nobody else syncs. Files lie in the page cache, and what the contestant before
has left unwritten is synced before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from _turns import ROOT, Contestant, Goal, Served, Turn, arguments, one_turn, table, turns
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from models.pseudonyms import Pseudonymizer
from models.series import Source
from tasks.ingest import codecs
from tasks.ingest.headers import read_header
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.catalog import Catalog
from tasks.stores.vault import Vault
from tasks.stores.volumes import VolumeStore

READER = Path(__file__).resolve().parent / "peers" / "read_series.py"
CORES = 2
FLOOR_TIMES = 0.715
ENCODINGS = {
    "uncompressed": ExplicitVRLittleEndian,
    "JPEG-LS": JPEGLSLossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
}
DCM2NIIX_TIMES = {"JPEG-LS": 5.0, "JPEG lossless": 2.0, "JPEG 2000": 1.3, "RLE": 1.0}


# -- the series ---------------------------------------------------------------------------------------------------


def phantom(slices: int, number: int) -> NDArray[np.uint16]:
    """A body-like volume of 12 bits. Noise in and round the body: it compresses about as a CT does (2.7 times)."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    seen = x**2 + y**2 < 1
    volume = np.empty((slices, 512, 512), np.uint16)
    for n in range(slices):
        size = 0.6 + 0.1 * np.sin(n / slices * np.pi)
        body = (x / size) ** 2 + (y / (0.7 * size)) ** 2 < 1
        organ = (x - 0.2) ** 2 + (y + 0.1 * n / slices) ** 2 < 0.04
        bone = (x**2 + (y - 0.3) ** 2) < 0.006
        noise = rng.standard_normal(x.shape, np.float32) * np.where(body, 24, 14) * seen
        volume[n] = np.clip(24 + body * 1010 + organ * 60 + bone * 800 + noise, 0, 4095)
    return volume


def encoded(image: NDArray[np.uint16], syntax: str) -> bytes:
    """One compressed frame of 12 bits."""
    import imagecodecs

    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(image))
    if syntax == JPEGLosslessSV1:
        return bytes(imagecodecs.ljpeg_encode(image, bitspersample=12))
    return bytes(imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0, reversible=True, bitspersample=12))


def write_series(folder: Path, volume: NDArray[np.uint16], syntax: str, number: int) -> None:
    """One file per slice, as a scanner sends them."""
    folder.mkdir(parents=True)

    def write(n: int) -> None:
        ds = header(f"2.25.{1000 + number}", n, volume[n].shape)
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax in (ExplicitVRLittleEndian, RLELossless):
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.PixelData = volume[n].tobytes()
            if syntax == RLELossless:
                ds.compress(RLELossless, generate_instance_uid=False)
        else:
            ds.PixelData = encapsulate([encoded(volume[n], syntax)])
            ds["PixelData"].VR = "OB"
        ds.save_as(folder / f"{n:04d}.dcm", enforce_file_format=True)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(write, range(len(volume))))


def header(root: str, n: int, shape: tuple[int, ...]) -> Dataset:
    """A CT header of ordinary size."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{root}.1.{n + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{root}.2", f"{root}.3", f"{root}.4"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = root, "Bench^Mark", "19500101", "O"
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


# -- ours ---------------------------------------------------------------------------------------------------------


def ingested(sources: Sequence[Path], home: Path) -> tuple[Turn, list[NDArray[np.int16]]]:
    """An ingest with an open, empty catalog, as many series at a time as the flow takes; the volumes, by position."""
    catalog = Catalog(f"sqlite:///{home}/catalog.db")
    volumes = VolumeStore(str(home / "volumes"))
    room = Ingestor(catalog, Vault(catalog, b"v" * 32), volumes, Pseudonymizer(b"s" * 32), IngestRules())
    begun, worked = time.perf_counter(), time.process_time()
    found = room.scan([str(source) for source in sources])
    with ThreadPoolExecutor(CORES) as pool:
        done = list(pool.map(room.ingest, found.series))
    turn = Turn(time.perf_counter() - begun, time.process_time() - worked)
    if len(done) != len(sources) or any(outcome.quarantined or outcome.existed for outcome in done):
        raise RuntimeError(f"not all was ingested: {[outcome.quarantined for outcome in done]}")
    return turn, [volumes.open(outcome.volumes[0].key).read().array for outcome in done[:1]]


def ours(sources: Sequence[Path], folder: Path) -> Turn:
    """In this process."""
    return ingested(sources, folder)[0]


def ours_whole(sources: Sequence[Path], folder: Path) -> None:
    """The same in a process of its own: its imports, a new catalog and its tables count too."""
    run(sys.executable, __file__, "--ours", folder, *sources)


# -- the others ---------------------------------------------------------------------------------------------------


def two_at_a_time(work: Callable[[Path, Path], None], sources: Sequence[Path], folder: Path) -> None:
    """`work` on every series, side by side."""
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(lambda source: work(source, folder), sources))


def dcm2niix(source: Path, folder: Path, packing: str = "n") -> None:
    """A whole process, to NIfTI; `packing` "i": gzip by the tool itself."""
    run("dcm2niix", "-z", packing, "-b", "n", "-f", source.name, "-o", folder, source)


def dcmdjpls(source: Path, folder: Path) -> None:
    """DCMTK makes each file uncompressed, a process a file, for a dcm2niix that is built without JPEG-LS."""
    plain = folder / source.name
    plain.mkdir()
    for path in source.iterdir():
        run("dcmdjpls", path, plain / path.name)
    dcm2niix(plain, folder)


def by_peer(library: str, source: Path, folder: Path) -> None:
    """A whole process."""
    run(sys.executable, READER, library, folder, source)


def one_after_the_other(library: str, sources: Sequence[Path], folder: Path) -> None:
    """A process each."""
    for source in sources:
        by_peer(library, source, folder)


def floor(source: Path, folder: Path) -> Turn:
    """The same decoder in two threads, over files that are in memory, and the voxels into one file as they are."""
    headers = [read_header(Source(str(path))) for path in sorted(source.iterdir())]
    frames = [codecs.frames_of(Path(h.source.path).read_bytes(), h)[0] for h in headers]
    begun, worked = time.perf_counter(), time.process_time()
    volume = np.empty((len(headers), headers[0].rows, headers[0].columns), np.uint16)

    def decode(n: int) -> None:
        volume[n] = codecs.decode(frames[n], headers[n])

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(decode, range(len(headers))))
    volume.tofile(folder / "volume.raw")
    return Turn(time.perf_counter() - begun, time.process_time() - worked)


def run(*command: object) -> None:
    """One process; its failure is ours."""
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[:3]} failed: {done.stderr[-500:]}")


# -- the run ------------------------------------------------------------------------------------------------------


def alone(work: Callable[[Path], object], scratch: Path) -> Contestant:
    """`work` into an empty folder; what others have left to be written is on the disk before."""

    def turn() -> Turn:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            os.sync()
            return one_turn(lambda: work(Path(folder)))

    return turn


def agreement(source: Path, volume: NDArray[np.uint16], convert: Callable[[Path, Path], object], scratch: Path) -> str:
    """Whether ours and a NIfTI hold exactly the phantom, in HU."""
    import SimpleITK as sitk  # noqa: N813

    wanted, told = volume.astype(np.int16) - 1024, []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        (mine,) = ingested([source], Path(folder))[1]
        convert(source, Path(folder))
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(next(Path(folder).glob("*.nii")))))
    for name, found in (("ours", mine), ("dcm2niix's", theirs)):
        # dcm2niix stores rows from the bottom up.
        same = any(np.array_equal(found[:, ::step], wanted) for step in (1, -1))
        told.append(f"{name} {'equal' if same else '**differ from**'} the phantom")
    return ", ".join(told)


def uncompressed(work: Path, given: argparse.Namespace) -> str:
    """All series, everyone."""
    sources = [work / "uncompressed" / f"{n}" for n in range(given.series)]
    for n, source in enumerate(sources):
        write_series(source, volume := phantom(given.slices, n), ExplicitVRLittleEndian, n)
    told = agreement(sources[-1], volume, dcm2niix, work)
    some = sources[:1]
    names = {
        "ours": "Nocturne → compressed, checksummed Zarr; running process",
        "whole": "Nocturne, whole process with a new catalog",
        "gzip": "dcm2niix → gzip NIfTI; whole processes, two at a time",
        "plain": "dcm2niix → uncompressed NIfTI; whole processes, two at a time",
        "sitk": "SimpleITK → uncompressed NIfTI; whole processes, one after the other",
        "sitk running": "SimpleITK → uncompressed NIfTI; running process",
        "monai": f"MONAI LoadImage → memory; whole processes, one after the other (1 series, × {len(sources)})",
        "monai running": f"MONAI LoadImage → memory; running process (1 series, × {len(sources)})",
    }
    with ExitStack() as open_:

        def served(library: str, these: Sequence[Path]) -> Served:
            (target := work / library).mkdir()
            return open_.enter_context(Served(sys.executable, READER, library, target, *these, "--serve"))

        running, reading = served("simpleitk", sources), served("monai", some)
        contestants: dict[str, Callable[[Path], object]] = {
            "ours": partial(ours, sources),
            "whole": partial(ours_whole, sources),
            "gzip": partial(two_at_a_time, partial(dcm2niix, packing="i"), sources),
            "plain": partial(two_at_a_time, dcm2niix, sources),
            "sitk": partial(one_after_the_other, "simpleitk", sources),
            "sitk running": lambda folder: running(),
            "monai": lambda folder: times(one_turn(partial(by_peer, "monai", some[0], folder)), len(sources)),
            "monai running": lambda folder: times(reading(), len(sources)),
        }
        found = turns({names[key]: alone(call, work) for key, call in contestants.items()}, given.repeat)
    goals = [Goal(names["gzip"], 8), Goal(names["plain"], 0.5), Goal(names["sitk"], 3), Goal(names["monai"], 30)]
    about = f"{given.series} CT series of {given.slices} × 512 × 512, uncompressed"
    return f"**{about}**\n\n{table(found, goals)}\n\nVoxels: {told}."


def times(turn: Turn, count: int) -> Turn:
    """What so many would have taken."""
    return Turn(turn.seconds * count, turn.cpu_seconds * count, turn.peak_mb)


def compressed(name: str, work: Path, given: argparse.Namespace) -> str:
    """One series of one encoding."""
    source, volume = work / name.replace(" ", "-"), phantom(given.slices, 0)
    write_series(source, volume, ENCODINGS[name], 100)
    convert, peer = dcm2niix, "dcm2niix → uncompressed NIfTI; whole process"
    if name == "JPEG-LS":
        convert, peer = dcmdjpls, "dcmdjpls, a process a file, and dcm2niix"
    told = agreement(source, volume, convert, work)
    decoding = "decode floor: the same decoder in two threads from memory, raw write"
    contestants: dict[str, Callable[[Path], object]] = {
        "Nocturne → compressed, checksummed Zarr; running process": partial(ours, [source]),
        peer: partial(convert, source),
        decoding: partial(floor, source),
    }
    found = turns({label: alone(call, work) for label, call in contestants.items()}, given.repeat)
    goals = [Goal(peer, DCM2NIIX_TIMES[name]), Goal(decoding, FLOOR_TIMES)]
    shutil.rmtree(source)
    return f"**One series, {name}**\n\n{table(found, goals)}\n\nVoxels: {told}."


def main() -> None:
    """Write, measure, print."""
    parser = arguments(__doc__)
    parser.set_defaults(repeat=3)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--only", nargs="*", default=list(ENCODINGS), choices=list(ENCODINGS))
    parser.add_argument("--ours", nargs="+", type=Path, metavar="PATH", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ours:
        ours(given.ours[1:], given.ours[0])
        return
    with tempfile.TemporaryDirectory(prefix="nocturne-benchmark-") as folder:
        for name in given.only:
            work = Path(folder)
            print(uncompressed(work, given) if name == "uncompressed" else compressed(name, work, given), end="\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
