"""The demo's patients as folders of DICOM files, as they would lie on a share that a PACS exports to.

incoming/DEMO-0001/     a CT series, a file per slice, and its SEG       (one folder per patient)
incoming/DEMO-9001/     the same, broken on purpose
arriving/DEMO-5001/     a CT series without a SEG: the study that arrives when the model is there
truth/DEMO-5001.npz     what a model should find in it
cohort.json             what was written; its presence means that all of it was
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydicom.dataset import Dataset

from models.errors import SettingsError
from tasks.cohort.headers import ASTER, BOREALIS, Patient, Scanner, ct_slice, draw_patient
from tasks.cohort.labels import segmentation
from tasks.cohort.phantom import Phantom, make_phantom

MANIFEST: Final = "cohort.json"
_EDITION = 1
"""Counts up whenever the same seed gives other bytes than before."""

Fault = Literal["missing-slice", "truncated-pixels", "other-rows"]
_FAULTS: tuple[Fault, ...] = get_args(Fault)
_TOLD: dict[Fault, str] = {
    "missing-slice": "one slice in the middle never arrived",
    "truncated-pixels": "one slice's pixel data ends half-way",
    "other-rows": "one slice has fewer rows than the others",
}


@dataclass(frozen=True, slots=True)
class BrokenStudy:
    """A study broken on purpose."""

    folder: Path
    fault: Fault

    @property
    def what(self) -> str:
        """The fault in words."""
        return _TOLD[self.fault]


@dataclass(frozen=True, slots=True)
class Cohort:
    """What lies in `folder`: `patients` sound studies and the `broken` ones under `incoming`, `held_out` beside.

    `truth` is an .npz with `truth` (z, y, x; 1 liver, 2 lesion) and the 4×4 `affine` of the held-out study;
    `digest` is SHA-256 over every file's path and bytes.
    """

    folder: Path
    patients: int
    held_out: Path
    truth: Path
    broken: tuple[BrokenStudy, ...]
    digest: str

    @property
    def incoming(self) -> Path:
        """The folder of all labelled studies."""
        return self.folder / "incoming"


@dataclass(frozen=True, slots=True)
class Case:
    """One patient on one scanner, before it is written."""

    patient: Patient
    scanner: Scanner
    phantom: Phantom


class _Manifest(BaseModel):
    """`cohort.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    edition: int = _EDITION
    seed: int
    patients: int
    broken: int
    files: int = 0
    size: int = 0
    digest: str = ""

    def asks_like(self, other: _Manifest) -> bool:
        """Whether both stand for the same bytes."""
        return all(getattr(self, f) == getattr(other, f) for f in ("edition", "seed", "patients", "broken"))


def write_cohort(
    folder: Path,
    *,
    patients: int = 24,
    broken: int = 2,
    seed: int = 2026,
    on_case: Callable[[int, int], None] | None = None,
) -> Cohort:
    """The cohort in `folder`, written unless it is there already; `on_case(done, of)` follows each study.

    The same numbers give the same bytes. It appears at once, whole: a run that is killed leaves nothing under
    `folder`. An earlier cohort there is replaced; anything else is left alone with a SettingsError.
    """
    if patients < 1 or broken < 0:
        raise SettingsError("a cohort needs at least one patient, and a number of broken studies of 0 or more")
    folder = folder.absolute()
    wanted = _Manifest(seed=seed, patients=patients, broken=broken)
    if present := _present(folder, wanted):
        return present
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        written = _write_all(workshop / "new", wanted, on_case)
        _publish(workshop, folder, wanted)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return _cohort(folder, written)


def draw_case(seed: int, number: int) -> Case:
    """Patient `number` of cohort `seed`; odd numbers were on one maker's scanner, even ones on the other's."""
    rng = np.random.default_rng([seed, number])
    scanner = ASTER if number % 2 else BOREALIS
    patient = draw_patient(rng, _name(number), seed)
    return Case(patient, scanner, make_phantom(rng, oblique=scanner.oblique))


# -- the folder --------------------------------------------------------------------------------------------------

_HELD_OUT, _FIRST_BROKEN = 5001, 9001


def _name(number: int) -> str:
    return f"DEMO-{number:04d}"


def _cohort(folder: Path, manifest: _Manifest) -> Cohort:
    broken = tuple(
        BrokenStudy(folder / "incoming" / _name(_FIRST_BROKEN + i), _FAULTS[i % len(_FAULTS)])
        for i in range(manifest.broken)
    )
    held_out = folder / "arriving" / _name(_HELD_OUT)
    truth = folder / "truth" / f"{_name(_HELD_OUT)}.npz"
    return Cohort(folder, manifest.patients, held_out, truth, broken, manifest.digest)


def _present(folder: Path, wanted: _Manifest) -> Cohort | None:
    """The cohort that is wanted, if it is there with all its files at their sizes."""
    try:
        found = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    sizes = [path.stat().st_size for path in _files(folder)]
    whole = (len(sizes), sum(sizes)) == (found.files, found.size)
    return _cohort(folder, found) if whole and found.asks_like(wanted) else None


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SettingsError(
            "the demo's folder holds something else", reason="folder-in-use", hint="name an empty or a new folder"
        )


def _sweep(folder: Path) -> None:
    """Clear away what killed runs left beside `folder`; nobody takes an hour to write a cohort."""
    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)


def _publish(workshop: Path, folder: Path, wanted: _Manifest) -> None:
    """Put the finished cohort in its place; another process that was first has written the same bytes."""
    if (folder / MANIFEST).is_file() and not _present(folder, wanted):
        folder.rename(workshop / "old")
    try:
        (workshop / "new").rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _present(folder, wanted):
            raise


def _files(folder: Path) -> list[Path]:
    """Every file but the manifest, in the order in which the digest takes them."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _write_all(folder: Path, wanted: _Manifest, on_case: Callable[[int, int], None] | None) -> _Manifest:
    total = wanted.patients + wanted.broken + 1
    for done, _ in enumerate(_write_studies(folder, wanted), start=1):
        if on_case:
            on_case(done, total)
    digest, size = hashlib.sha256(), 0
    files = _files(folder)
    for path in files:
        content = path.read_bytes()
        size += len(content)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    manifest = wanted.model_copy(update={"files": len(files), "size": size, "digest": digest.hexdigest()})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _write_studies(folder: Path, wanted: _Manifest) -> Iterator[Path]:
    plan = _cohort(folder, wanted)
    for number in range(1, wanted.patients + 1):
        _write_labelled(plan.incoming / _name(number), draw_case(wanted.seed, number))
        yield plan.incoming / _name(number)
    for i, study in enumerate(plan.broken):
        case = draw_case(wanted.seed, _FIRST_BROKEN + i)
        slices = _write_labelled(study.folder, case)
        middle = slices[len(slices) // 2]
        _break(study.folder / _file_name(case.scanner, middle), middle, study.fault)
        yield study.folder
    case = draw_case(wanted.seed, _HELD_OUT)
    _write_images(plan.held_out, case)
    plan.truth.parent.mkdir()
    np.savez(plan.truth, truth=case.phantom.truth, affine=case.phantom.geometry.matrix)
    yield plan.held_out


# -- one study ---------------------------------------------------------------------------------------------------


def _write_labelled(folder: Path, case: Case) -> list[Dataset]:
    """A study of a CT series and its SEG. Returns the slices from feet to head."""
    slices = _write_images(folder, case)
    segmentation(case.patient, case.phantom.truth, slices).save_as(folder / "SEG_0001.dcm")
    return slices


def _write_images(folder: Path, case: Case) -> list[Dataset]:
    """A file per slice, named as the scanner names them. Returns the slices from feet to head."""
    folder.mkdir(parents=True)
    slices = []
    for index, number in enumerate(_instance_numbers(case)):
        ds = ct_slice(case.patient, case.scanner, case.phantom.geometry, case.phantom.hu, index, number)
        ds.save_as(folder / _file_name(case.scanner, ds), enforce_file_format=True)
        slices.append(ds)
    return slices


def _instance_numbers(case: Case) -> list[int]:
    """Each slice's Instance Number, feet to head: from the head down, or as reconstruction happened to end."""
    count = case.phantom.geometry.shape[0]
    if not case.scanner.shuffled:
        return list(range(count, 0, -1))
    order = np.random.default_rng(int(case.patient.accession[3:])).permutation(count)
    return [int(n) + 1 for n in order]


def _file_name(scanner: Scanner, ds: Dataset) -> str:
    if not scanner.shuffled:
        return f"IM_{ds.InstanceNumber:04d}.dcm"
    return hashlib.sha256(ds.SOPInstanceUID.encode()).hexdigest()[:8].upper()


def _break(path: Path, ds: Dataset, fault: Fault) -> None:
    """Spoil the slice `ds`, which was written to `path`."""
    match fault:
        case "missing-slice":
            path.unlink()
        case "truncated-pixels":
            path.write_bytes(path.read_bytes()[: -(len(ds.PixelData) // 2)])
        case "other-rows":
            ds.Rows -= 8
            ds.PixelData = ds.PixelData[: ds.Rows * ds.Columns * 2]
            ds.save_as(path, enforce_file_format=True)
