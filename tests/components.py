"""Real components for tests, on free loopback ports and in temporary folders: Orthanc and a dcmtk archive.

Import the fixtures by name where they are needed: `from tests.components import orthanc  # noqa: F401`.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from tasks.cohort.headers import ct_slice, stable_uid
from tasks.cohort.write import Case, draw_case

DEADLINE_SECONDS = 180.0
"""For what is certain to happen: long enough for a machine that does other work, or rests for a while."""
_PLUGINS = Path("/usr/share/orthanc/plugins")
_ATTEMPTS = 5
"""A program that is no test may take a port between our finding it free and the component's binding it."""


def free_port() -> int:
    """A TCP port on loopback that nobody uses, and that no other test is given while this process lives.

    It lies below those that the system hands out: no connection's own end may come to lie on it, not even that of a
    client that asks for this very port before its server listens.
    """
    first = _first_of_the_systems()
    for port in random.SystemRandom().sample(range(_LOWEST_PORT, first), first - _LOWEST_PORT):
        if port not in _HELD and _held(port):
            with socket.socket() as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return port
    pytest.fail("no port is free")


_LOWEST_PORT = 10_000
_HELD: dict[int, socket.socket] = {}


def _first_of_the_systems() -> int:
    told = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return max(int(told[0]), 2 * _LOWEST_PORT)


def _held(port: int) -> bool:
    """Reserve it among all tests on this machine, until this process ends: by a name in the kernel, not by a file."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0nocturne-test-port-{port}")
    except OSError:
        holder.close()
        return False
    _HELD[port] = holder
    return True


def until(holds: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """What `holds` answers once it is true; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        if found := holds():
            return found
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def needs(*programs: str) -> None:
    """Skip the test where a program is not installed."""
    if absent := [name for name in programs if shutil.which(name, path=_elsewhere()) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")


def dcmtk(program: str) -> str:
    """Where it is. An activated environment puts pynetdicom's programs first, which have the same names."""
    return shutil.which(program, path=_elsewhere()) or program


def _elsewhere() -> str:
    """The search path without the virtual environment's programs."""
    own = Path(sys.prefix, "bin") if sys.prefix != sys.base_prefix else None
    return os.pathsep.join(folder for folder in os.get_exec_path() if Path(folder) != own)


def part10(dataset: Dataset) -> bytes:
    """The file of a data set."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class _Process:
    """A program that is started again on the same ports, and ended with its test."""

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool]) -> None:
        self._command, self._log, self._ready = command, log, ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether it runs and answers; False where it ended at once (a port that was taken)."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, "TCP_NODELAY": "1"}, cwd=self._log.parent
            )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return False
            if self._ready():
                return True
            time.sleep(0.05)
        self.stop()
        pytest.fail(f"{self._command[0]} does not answer within {seconds:.0f} s: {self._log.read_text()[-2000:]}")

    def stop(self, *, at_once: bool = False) -> None:
        """End it, and wait until its ports are free again."""
        if self._process is None:
            return
        (self._process.kill if at_once else self._process.terminate)()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


# -- Orthanc ------------------------------------------------------------------------------------------------------


@dataclass
class Orthanc:
    """A running Orthanc: its REST and DICOMweb interfaces, and its AE."""

    folder: Path
    http_port: int
    dicom_port: int
    ae_title: str = "ORTHANC"
    user: str = "nocturne"
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    _process: _Process | None = None

    @property
    def url(self) -> str:
        """The REST interface."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb(self) -> str:
        """The DICOMweb root."""
        return f"{self.url}/dicom-web"

    def client(self) -> httpx.Client:
        """A client of the REST interface that has logged in."""
        return httpx.Client(base_url=self.url, auth=(self.user, self.password), timeout=120, trust_env=False)

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        with self.client() as client:
            return client.get(path).raise_for_status().json()

    def upload(self, file: bytes) -> str:
        """Store an instance; returns Orthanc's identifier of it."""
        with self.client() as client:
            return str(client.post("/instances", content=file).raise_for_status().json()["ID"])

    def upload_all(self, files: Iterable[bytes]) -> list[str]:
        """Store instances over one connection."""
        with self.client() as client:
            return [str(client.post("/instances", content=f).raise_for_status().json()["ID"]) for f in files]

    def delete(self, path: str) -> None:
        """Delete a resource."""
        with self.client() as client:
            client.delete(path).raise_for_status()

    def clear(self) -> None:
        """Delete every patient; the changes feed counts on."""
        for patient in self.get("/patients"):
            self.delete(f"/patients/{patient}")

    def know(self, ae_title: str, port: int, host: str = "127.0.0.1") -> None:
        """Tell it of an AE that may ask it and to which it can send."""
        modality = {"AET": ae_title, "Host": host, "Port": port, "AllowTranscoding": False}
        with self.client() as client:
            client.put(f"/modalities/{ae_title.lower()}", json=modality).raise_for_status()

    def stop(self) -> None:
        """Stop it; its data stay."""
        assert self._process
        self._process.stop()

    def start(self) -> None:
        """Start it anew on the same ports."""
        assert self._process
        assert self._process.start(), "Orthanc did not come back on its ports"

    def empty(self) -> None:
        """Lose the whole database: it starts counting at 1 again."""
        assert self._process
        self._process.stop(at_once=True)
        shutil.rmtree(self.folder / "db")
        self.start()


@contextmanager
def running_orthanc(
    folder: Path,
    *,
    stable_seconds: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Orthanc]:
    """An Orthanc with DICOMweb in `folder`; skips the test where it is not installed."""
    needs("Orthanc")
    plugins = [str(_PLUGINS / name) for name in ("libOrthancDicomWeb.so", "libOrthancGdcm.so")]
    if absent := [name for name in plugins if not Path(name).is_file()]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    for _ in range(_ATTEMPTS):
        orthanc = Orthanc(folder, free_port(), free_port())
        file = folder / "orthanc.json"
        file.write_text(json.dumps(_configuration(orthanc, plugins, stable_seconds) | dict(options or {})))
        orthanc._process = _Process(["Orthanc", str(file)], folder / "orthanc.log", lambda o=orthanc: _answers(o))  # type: ignore[misc]
        if orthanc._process.start():
            break
    else:
        pytest.fail(f"Orthanc does not start: {(folder / 'orthanc.log').read_text()[-2000:]}")
    try:
        yield orthanc
    finally:
        orthanc._process.stop(at_once=True)  # it takes seconds to end in order, and its data go too


def _configuration(orthanc: Orthanc, plugins: list[str], stable_seconds: int) -> dict[str, Any]:
    return {
        "Name": "test",
        "StorageDirectory": str(orthanc.folder / "db"),
        "IndexDirectory": str(orthanc.folder / "db"),
        "HttpPort": orthanc.http_port,
        "DicomPort": orthanc.dicom_port,
        "DicomAet": orthanc.ae_title,
        "DicomCheckCalledAet": True,
        "DicomModalitiesInDatabase": True,
        "RemoteAccessAllowed": False,  # Debian's binds every address: only loopback is answered
        "AuthenticationEnabled": True,
        "RegisteredUsers": {orthanc.user: orthanc.password},
        "StableAge": stable_seconds,
        "DicomScpTimeout": 120,
        "DicomScuTimeout": 120,
        "HttpTimeout": 120,
        "SyncStorageArea": False,
        "Plugins": plugins,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _answers(orthanc: Orthanc) -> bool:
    try:
        return bool(orthanc.get("/system"))
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def _orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def orthanc(_orthanc: Orthanc) -> Orthanc:
    """The session's Orthanc, without patients."""
    _orthanc.clear()
    return _orthanc


# -- dcmtk --------------------------------------------------------------------------------------------------------


@dataclass
class Archive:
    """A running dcmqrscp: C-STORE, C-FIND, C-GET and C-MOVE for one AE."""

    folder: Path
    port: int
    ae_title: str = "ARCHIVE"
    _process: _Process | None = None

    def send(self, *files: Path) -> None:
        """Store files by `storescu`, each as it is."""
        command = [
            dcmtk("storescu"),
            "-aec",
            self.ae_title,
            "-xf",
            *_proposals(self.folder),
            "127.0.0.1",
            str(self.port),
        ]
        done = subprocess.run(
            [*command, *map(str, files)], capture_output=True, text=True, env={**os.environ, "TCP_NODELAY": "1"}
        )
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """Stop it; its data stay."""
        assert self._process
        self._process.stop()


@contextmanager
def running_archive(
    folder: Path, *, movers: Mapping[str, int] | None = None, options: Iterable[str] = ()
) -> Iterator[Archive]:
    """A dcmqrscp in `folder` that can move to `movers` (AE title and port on loopback)."""
    needs("dcmqrscp", "storescu")
    for _ in range(_ATTEMPTS):
        archive = Archive(folder, free_port())
        (folder / "archive").mkdir(exist_ok=True)
        file = folder / "dcmqrscp.cfg"
        file.write_text(_table(archive, movers or {}))
        command = ["dcmqrscp", "-c", str(file), *options]
        archive._process = _Process(command, folder / "dcmqrscp.log", lambda a=archive: _listens(a.port))  # type: ignore[misc]
        if archive._process.start():
            break
    else:
        pytest.fail(f"dcmqrscp does not start: {(folder / 'dcmqrscp.log').read_text()[-2000:]}")
    try:
        yield archive
    finally:
        archive.stop()


def _table(archive: Archive, movers: Mapping[str, int]) -> str:
    hosts = [f"mover{n} = ({title}, 127.0.0.1, {port})" for n, (title, port) in enumerate(movers.items())]
    return "\n".join(
        [
            f"NetworkTCPPort = {archive.port}",
            "MaxPDUSize = 131072",
            "MaxAssociations = 16",
            "HostTable BEGIN",
            *hosts,
            "HostTable END",
            "VendorTable BEGIN",
            "VendorTable END",
            "AETable BEGIN",
            f"{archive.ae_title} {archive.folder / 'archive'} RW (500, 10240mb) ANY",
            "AETable END",
            "",
        ]
    )


def _proposals(folder: Path) -> tuple[str, str]:
    """storescu's association profile: for each storage class the encodings of the real test images, each alone."""
    encodings = {
        "Plain": "LittleEndianExplicit",
        "Implicit": "LittleEndianImplicit",
        "Big": "BigEndianExplicit",
        "Jpeg2000": "JPEG2000LosslessOnly",
        "Jpegls": "JPEGLSLossless",
        "Jpegll": "JPEGLossless:Non-hierarchical-1stOrderPrediction",
        "Rle": "RLELossless",
    }
    classes = ["CTImageStorage", "MRImageStorage", "EnhancedMRImageStorage", "SegmentationStorage"]
    lines = ["[[TransferSyntaxes]]"]
    for name, syntax in encodings.items():
        lines += [f"[{name}]", f"TransferSyntax1 = {syntax}"]
    lines += ["[[PresentationContexts]]", "[All]"]
    pairs = [(one, name) for one in classes for name in encodings]
    lines += [f"PresentationContext{n} = {one}\\{name}" for n, (one, name) in enumerate(pairs, 1)]
    lines += ["[[Profiles]]", "[Default]", "PresentationContexts = All", ""]
    file = folder / "storescu.cfg"
    file.write_text("\n".join(lines))
    return str(file), "Default"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(10)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- images -------------------------------------------------------------------------------------------------------


def phantom_study(
    number: int = 1, *, seed: int = 2026, slices: int = 4, examined: datetime | None = None
) -> list[Dataset]:
    """The first slices of one of the demo's CT studies: genuine DICOM of a patient who never was."""
    case = _case(seed, number)
    patient = replace(case.patient, examined=examined or case.patient.examined)
    parts = patient, case.scanner, case.phantom.geometry, case.phantom.hu
    return [ct_slice(*parts, index, index + 1) for index in range(slices)]


@cache
def _case(seed: int, number: int) -> Case:
    return draw_case(seed, number)


def segmentation_of(slices: Sequence[Dataset]) -> Dataset:
    """A SEG instance in the study of `slices`: what one of our results looks like to a PACS."""
    ds = deepcopy(slices[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = stable_uid(ds.StudyInstanceUID, "SEG")
    ds.SeriesInstanceUID, ds.Modality = stable_uid(ds.StudyInstanceUID, "series", "SEG"), "SEG"
    return ds
