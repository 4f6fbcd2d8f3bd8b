"""C-STORE into our listener, beside Orthanc and a plain pynetdicom script; and our listener under SIGKILL.

    python benchmarks/receive.py [--work FOLDER] [--instances N] [--repeat N] [--associations N …] [--kills N]

Each server runs in a process of its own, on loopback, with an empty store for every turn; every one syncs what it
acknowledges (Orthanc: SyncStorageArea). The senders are dcmtk's storescu, one process an association, with
TCP_NODELAY=1, without which they crawl; instances are of 0.5 MB, sent as they are. The contestants take turns. Prints
instances a second (median, best) and the ratio to Orthanc's median; read the ratios.

--kills kills our listener so many times at random moments while four associations send, starts it again, and then holds
what was acknowledged against the spool and the catalog.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.components import dcmtk  # noqa: E402

ME = str(Path(__file__).resolve())
SIDE = 512  # 16 bits: 0.5 MB
SECRET = b"s" * 32
ENVIRONMENT = os.environ | {"TCP_NODELAY": "1"}
START_SECONDS = 60


# -- what is sent -------------------------------------------------------------------------------------------------


def write_study(folder: Path, instances: int) -> list[Path]:
    """CT instances of one new study."""
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    pixels = np.random.default_rng(7).integers(0, 4096, (SIDE, SIDE), dtype=np.uint16)
    paths = []
    for number in range(instances):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260102", "120000", "A1"
        ds.Modality, ds.Manufacturer, ds.SeriesDescription = "CT", "Test", "CT thorax axial"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Bench^Mark", "BENCH-1", "19500101", "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyID, ds.SeriesNumber = study, series, "1", 1
        ds.InstanceNumber = number + 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = pixels.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = np.roll(pixels, number).tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            ds.SOPInstanceUID,
        )
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:05d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def send(port: int, studies: list[list[Path]]) -> float:
    """Seconds until every study has been sent, each over an association of its own."""
    begun = time.perf_counter()
    senders = [
        subprocess.Popen(
            [dcmtk("storescu"), "-aec", "BENCH", "-aet", "BENCHSCU", "127.0.0.1", str(port), *map(str, paths)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        for paths in studies
    ]
    for sender in senders:
        _, told = sender.communicate()
        if sender.returncode:
            raise RuntimeError(f"storescu: {told.decode(errors='replace')[-500:]}")
    return time.perf_counter() - begun


# -- the servers --------------------------------------------------------------------------------------------------


def wait_for_the_end() -> None:
    """Until the process is told to end."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    while not told:  # a wait without end can miss a signal that comes as it begins
        time.sleep(0.2)


def serve_ours(folder: Path, port: int) -> None:
    """Our listener with its catalog and its spool, as `nocturne up` runs it."""
    from models.hospital import Listener as Settings
    from models.pseudonyms import Pseudonymizer
    from tasks.receive.listener import Listener
    from tasks.receive.reception import Reception
    from tasks.stores.catalog import Catalog
    from tasks.stores.spool import Spool

    names = Pseudonymizer(SECRET)
    catalog = Catalog(f"sqlite:///{folder / 'catalog.db'}")
    settings = Settings(port=port, ae_title="BENCH", free_bytes=0)
    with Reception(catalog, Spool(folder / "spool", names), names, source="listener") as reception:
        reception.recover()
        with Listener(settings, reception, catalog, names):
            wait_for_the_end()


def serve_plain(folder: Path, port: int) -> None:
    """What a script does: pynetdicom's handler writes the file and syncs it."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def store(event: evt.Event) -> int:
        with (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").open("wb") as handle:
            handle.write(event.encoded_dataset())
            handle.flush()
            os.fsync(handle.fileno())
        return 0

    ae = AE("BENCH")
    ae.maximum_pdu_size = 128 << 10
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), ExplicitVRLittleEndian)
    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    wait_for_the_end()


SERVED: dict[str, Callable[[Path, int], None]] = {"ours": serve_ours, "plain": serve_plain}


def python(kind: str) -> Callable[[Path, int], list[str]]:
    """The command of one of the servers above."""
    return lambda folder, port: [sys.executable, ME, "--serve", kind, str(folder), str(port)]


def orthanc(folder: Path, port: int) -> list[str]:
    """Orthanc that syncs what it stores and takes it from our senders on loopback only."""
    configuration = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "SyncStorageArea": True,
        "HttpServerEnabled": False,
        "DicomPort": port,
        "DicomAet": "BENCH",
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"senders": ["BENCHSCU", "127.0.0.1", 104]},
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    return ["Orthanc", str(folder / "orthanc.json")]


CONTESTANTS: dict[str, Callable[[Path, int], list[str]]] = {
    "ours": python("ours"),
    "Orthanc, SyncStorageArea": orthanc,
    "pynetdicom, write + fsync": python("plain"),
}
RIVAL = "Orthanc, SyncStorageArea"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], port: int, log: Path) -> subprocess.Popen[bytes]:
    """A server that listens."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=ENVIRONMENT)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"{command[0]} does not listen: {log.read_text()[-2000:]}")


@contextmanager
def running(command: Callable[[Path, int], list[str]], folder: Path) -> Iterator[int]:
    """A server with an empty store; yields its port."""
    folder.mkdir(parents=True)
    port = free_port()
    process = start(command(folder, port), port, folder / "log")
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


# -- throughput ---------------------------------------------------------------------------------------------------


def measured(labels: list[str], studies: list[list[Path]], scratch: Path, repeat: int) -> dict[str, list[float]]:
    """Instances a second of every contestant, in turns; a first turn warms the page cache."""
    rates: dict[str, list[float]] = {label: [] for label in labels}
    count = sum(map(len, studies))
    for turn in range(repeat + 1):
        for label in labels:
            with running(CONTESTANTS[label], scratch / f"{turn}") as port:
                send(port, [studies[0][:5]])  # what a process does only once
                os.sync()
                taken = send(port, [paths[5:] for paths in studies])
            if turn:
                rates[label].append((count - 5 * len(studies)) / taken)
    return rates


def print_table(table: dict[int, dict[str, list[float]]], labels: list[str]) -> None:
    """Median and best rate, and the ratio of the medians to Orthanc's."""
    head = " | ".join(f"{n} association{'s' if n > 1 else ''}" for n in table)
    print(f"| instances/s: median (best), × Orthanc | {head} |\n|---" + "|---" * len(table) + "|")
    for label in labels:
        cells = []
        for rates in table.values():
            middle = statistics.median(rates[label])
            ratio = f", {middle / statistics.median(rates[RIVAL]):.2f}" if RIVAL in rates else ""
            cells.append(f"{middle:.0f} ({max(rates[label]):.0f}){ratio}")
        print(f"| {label} | " + " | ".join(cells) + " |")


# -- kills --------------------------------------------------------------------------------------------------------


def killed(folder: Path, kills: int, associations: int) -> tuple[int, int]:
    """How many instances were acknowledged over so many kills, and how many of them are not there."""
    from tests.tasks.receive.killing import Killed

    folder.mkdir(parents=True)
    session = Killed(folder, lambda home, port: [sys.executable, ME, "--serve", "ours", str(home), str(port)], SECRET)
    return session.run(kills, associations)


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nocturne-benchmark-receive")
    parser.add_argument("--instances", type=int, default=200, help="of each association")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--associations", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--only", nargs="*", help="ours, Orthanc, pynetdicom")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, folder, port = options.serve
        SERVED[kind](Path(folder), int(port))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        if options.kills:
            acknowledged, lost = killed(Path(scratch) / "killed", options.kills, max(options.associations))
            print(f"{options.kills} kills: {acknowledged} instances acknowledged, {lost} lost")
            sys.exit(lost > 0)
        labels = [label for label in CONTESTANTS if not options.only or label.startswith(tuple(options.only))]
        if shutil.which("Orthanc") is None:
            labels = [label for label in labels if label != RIVAL]
        studies = [
            write_study(Path(scratch) / f"in-{n}", options.instances + 5) for n in range(max(options.associations))
        ]
        table = {n: measured(labels, studies[:n], Path(scratch), options.repeat) for n in options.associations}
        print_table(table, labels)


if __name__ == "__main__":
    main()
