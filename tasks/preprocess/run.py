"""Looking at many cases and preparing them, each once: what is there already is left alone.

One bad case is set aside with its error and the rest goes on; a lost worker or a busy store is tried again. Finished
cases stay finished whatever happens to the others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from models.errors import (
    BadInputError,
    IntegrityError,
    LabelError,
    MemoryExhaustedError,
    NocturneError,
    NotFoundError,
    TransientError,
    WorkerLostError,
)
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import CaseFacts, Fingerprint, PreparePlan
from models.recipe import LabelClass
from models.volume import Volume
from tasks.imaging.compose import Registration, read_case
from tasks.imaging.masks import map_of
from tasks.imaging.prepare import prepare_image, prepare_mask
from tasks.imaging.resample import resample_to_grid
from tasks.preprocess.fingerprint import CaseSample, look_at_case, summarise, thinned
from tasks.progress import stage
from tasks.stores.places import write_synced
from tasks.stores.prepared import COMPOSED, About, PreparedStore, prepared_key
from tasks.stores.transforms import TransformStore
from tasks.stores.volumes import VolumeStore

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 3
FACTS = ".facts"
"""Beside the prepared cases: what the fingerprint keeps of each case."""

FACTS_FORMAT = 2
"""Rises when more is kept of a case, so that what was kept before is looked at again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Case:
    """What is needed to open one case: the volume store's URL, and keys in it.

    `label` is the label's key, and the mask's in the volume store; "" where the case has no label. `target` is the
    class index of a classified image, `classes` says of each class whether an image that may show several shows it
    (the label is no mask then); −1 and empty for a mask. `channels` are the volumes beside it ("" where one is
    missing), `registration` says how they are brought to it.
    """

    url: str
    volume: str
    label: str = ""
    target: int = -1
    classes: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()
    registration: Registration = "none"

    @property
    def has_mask(self) -> bool:
        """Whether the label is a mask."""
        return bool(self.label) and self.target < 0 and not self.classes


@dataclass(frozen=True, slots=True)
class Reading:
    """How masks become maps: the classes in their order, the occupancy from which a voxel is inside, and whether
    classes may overlap."""

    classes: tuple[LabelClass, ...]
    fraction: float = 0.5
    regions: bool = False


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What came of many cases: a value for each good one, an error for each set aside; how many were new."""

    done: Mapping[Case, T]
    failures: tuple[tuple[Case, NocturneError], ...] = ()
    computed: int = 0


@dataclass(frozen=True, slots=True)
class FingerprintOutcome:
    """The cohort's fingerprint, and the cases that could not be looked at."""

    fingerprint: Fingerprint
    failures: tuple[tuple[Case, NocturneError], ...] = field(default=())
    computed: int = 0


def fingerprint_dataset(
    client: Client | None,
    cases: Sequence[Case],
    reading: Reading,
    root: Path,
    *,
    dataset: str,
    modality: str,
    modalities: tuple[str, ...] = (),
    outliers: Literal["none", "zscore", "iqr"] = "iqr",
    seed: int = 0,
) -> FingerprintOutcome:
    """The fingerprint of the training cases; what is known of a case is kept under `root`.

    `modalities` are the channels', where cases are made of several series.

    Without a client the work is done here. Raises NothingToDoError where no case is good, TransientError where cases
    remain undone although they were tried again.
    """
    known = {
        case: thinned(sample, len(cases), seed)
        for case in cases
        if (sample := _load(_facts_file(root, case, reading, seed))) is not None
    }
    new = [case for case in cases if case not in known]
    looking = partial(_look, reading=reading, root=root, seed=seed, among=len(cases))
    outcome = _each(client, looking, new, "fingerprint")
    everything = [*known.values(), *outcome.done.values()]
    seen = summarise(dataset, modality, everything, classes=len(reading.classes), outliers=outliers, seed=seed)
    return FingerprintOutcome(seen.model_copy(update={"modalities": modalities}), outcome.failures, outcome.computed)


def prepare_dataset(
    client: Client | None, cases: Sequence[Case], reading: Reading, plan: PreparePlan, root: Path
) -> Outcome[str]:
    """Prepared arrays of all cases in the store at `root`: each case's key, computing only what is not there.

    Without a client the work is done here. Raises TransientError as `fingerprint_dataset` does.
    """
    store = PreparedStore(root)
    keys = {case: case_key(case, reading, plan) for case in cases}
    new = [case for case in cases if not store.exists(keys[case])]
    outcome = _each(client, partial(_prepare, reading=reading, plan=plan, root=root), new, "prepare")
    bad = {case for case, _ in outcome.failures}
    return Outcome({c: k for c, k in keys.items() if c not in bad}, outcome.failures, outcome.computed)


def case_key(case: Case, reading: Reading, plan: PreparePlan) -> str:
    """The key of the case's prepared arrays."""
    return prepared_key(
        case.volume,
        case.label or None,
        plan,
        reading.classes,
        reading.fraction,
        case.target,
        regions=reading.regions,
        channels=case.channels,
        registration=case.registration,
    )


# -- one case, on a worker --------------------------------------------------------------------------------------


def _look(case: Case, reading: Reading, root: Path, seed: int, among: int = 1) -> CaseSample:
    volume, labels = _read(case, reading, root)
    sample = look_at_case(
        case.volume,
        volume.array,
        volume.geometry,
        labels=labels,
        classes=len(reading.classes),
        regions=reading.regions,
        target=case.target,
        shows=case.classes,
        seed=seed,
    )
    _save(_facts_file(root, case, reading, seed), sample)
    return thinned(sample, among, seed)


def _prepare(case: Case, reading: Reading, plan: PreparePlan, root: Path) -> str:
    volume, labels = _read(case, reading, root)
    prepared = prepare_image(volume.array, volume.geometry, plan)
    mask = None if labels is None else prepare_mask(labels, volume.geometry, plan, prepared)
    if mask is not None and labels is not None and labels.any() and not mask.any():
        raise LabelError(
            "no voxel of its structures is left on the plan's grid",
            hint="give a finer preprocess.spacing, or set preprocess.crop to none",
            reason="label-vanished",
        )
    key = case_key(case, reading, plan)
    about = About(case.volume, prepared.geometry, volume.geometry, prepared.crop, case.target, reading.regions)
    PreparedStore(root).write(key, prepared.array, mask, about)
    return key


def _read(case: Case, reading: Reading, root: Path) -> tuple[Volume, NDArray[np.uint8] | None]:
    """The volume with all its channels, and its label map on the volume's grid."""
    store = VolumeStore(case.url)
    volume = read_case(store, case.volume, case.channels, case.registration, TransformStore(root))
    if not case.has_mask:
        return volume, None
    mask = store.open_mask(case.label).read()
    labels = map_of(mask, reading.classes, reading.fraction, regions=reading.regions)
    if not mask.geometry.same_grid(volume.geometry):
        labels = _brought_over(labels, mask.geometry, volume.geometry)
    return volume, labels


def _brought_over(labels: NDArray[np.uint8], source: Geometry, target: Geometry) -> NDArray[np.uint8]:
    return np.asarray(resample_to_grid(labels, source, target, order=0), dtype=np.uint8)


# -- what is kept of a case -------------------------------------------------------------------------------------


def _facts_file(root: Path, case: Case, reading: Reading, seed: int) -> Path:
    told = [c.model_dump(mode="json") for c in reading.classes] if case.has_mask else []
    meant: list[object] = [case.target, list(case.classes), reading.regions]
    meant += [[COMPOSED, case.registration, *case.channels]] if case.channels else []
    key = content_key("facts", FACTS_FORMAT, case.volume, case.label, told, reading.fraction, meant, seed)
    return Path(root) / FACTS / key[:2] / f"{key}.npz"


def _save(file: Path, sample: CaseSample) -> None:
    buffer = io.BytesIO()
    facts = np.frombuffer(sample.facts.model_dump_json().encode(), np.uint8)
    np.savez(buffer, facts=facts, voxels=sample.voxels, target=np.int64(sample.target), shows=np.array(sample.shows))
    write_synced(file, buffer.getvalue())


def _load(file: Path) -> CaseSample | None:
    """What was kept, or None: it can be made again."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            facts = CaseFacts.model_validate_json(kept["facts"].tobytes())
            return CaseSample(facts, kept["voxels"], int(kept["target"]), tuple(map(int, kept["shows"])))
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


# -- many cases -------------------------------------------------------------------------------------------------


def _each(client: Client | None, work: Callable[[Case], T], cases: Sequence[Case], name: str) -> Outcome[T]:
    """`work` on every case. Raises the first TransientError that outlasted its retries, after all others are done."""
    if not cases:
        return Outcome({})
    done: dict[Case, T] = {}
    failures: list[tuple[Case, NocturneError]] = []
    lost: list[TransientError] = []
    guarded = partial(_guarded, work)
    with stage(name, len(cases), "cases") as progress:
        for case, result in _on_dask(client, guarded, cases, name) if client else _here(guarded, cases):
            if isinstance(result, TransientError):
                lost.append(result)
            elif isinstance(result, NocturneError):
                failures.append((case, result))
            else:
                done[case] = result
            progress.advance(1, f"{len(failures)} set aside" if failures else None)
    if lost:
        raise lost[0]
    ordered = sorted(failures, key=lambda failure: (failure[0].volume, failure[0].label))
    return Outcome(done, tuple(ordered), len(cases))


def _guarded(work: Callable[[Case], T], case: Case) -> T | NocturneError:
    """The case's value, or why it is set aside. What may heal is raised, so that it is tried again."""
    try:
        return work(case)
    except (BadInputError, IntegrityError, NotFoundError) as error:
        return error.at(case.volume)
    except MemoryError as error:
        if isinstance(error, NocturneError):
            raise
        raise MemoryExhaustedError("too little memory for this case just now", where=case.volume) from error


def _here(work: Callable[[Case], T | NocturneError], cases: Sequence[Case]) -> Iterable[tuple[Case, T | NocturneError]]:
    for case in cases:
        try:
            yield case, work(case)
        except TransientError as error:
            yield case, error


def _on_dask(
    client: Client, work: Callable[[Case], T | NocturneError], cases: Sequence[Case], name: str
) -> Iterable[tuple[Case, T | NocturneError]]:
    from distributed import KilledWorker

    from tasks.preprocess.cluster import all_memory, roomiest_workers

    suspects = []
    for case, result in _side_by_side(client, work, cases, name):
        if isinstance(result, WorkerLostError) and isinstance(result.__cause__, KilledWorker):
            suspects.append((case, result))
        else:
            yield case, result
    if not suspects:
        return
    # What waited or ran beside a case that ends its worker is lost with it. Alone, each answers for itself.
    with all_memory(client) as roomy:
        for case, result in suspects:
            roomiest = roomiest_workers(roomy)
            if len(cases) > 1 or roomiest or roomy is not client:
                yield from _side_by_side(roomy, work, [case], name, roomiest)
            else:
                yield case, result


def _side_by_side(
    client: Client,
    work: Callable[[Case], T | NocturneError],
    cases: Sequence[Case],
    name: str,
    preferred: Sequence[str] = (),
) -> Iterable[tuple[Case, T | NocturneError]]:
    from distributed import as_completed

    from tasks.preprocess.cluster import given_up_when_alone

    where: dict[str, Any] = {"workers": list(preferred), "allow_other_workers": True} if preferred else {}
    futures = client.map(partial(_on_worker, work), cases, retries=RETRIES, pure=False, key=name, **where)
    case_of = dict(zip((f.key for f in futures), cases, strict=True))
    try:
        with given_up_when_alone(client, futures):
            for future in as_completed(futures, loop=client.loop):
                case = case_of[future.key]
                yield case, _result(future, case)
                future.release()
    finally:
        client.cancel(futures)


def _on_worker(work: Callable[[Case], T | NocturneError], case: Case) -> T | NocturneError:
    from tasks.preprocess.workers import lighten, of_use_here

    of_use_here()
    try:
        return work(case)
    finally:
        lighten()


def _result(future: Future[T | NocturneError], case: Case) -> T | NocturneError:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except TransientError as error:
        return error
    except (KilledWorker, FutureCancelledError) as error:
        lost = WorkerLostError(
            "the worker died each time it took up this case, or none was left",
            where=case.volume,
            hint="it may need more memory than a worker has (a local one had all of this machine's in the end): give "
            "workers more (`dask worker --memory-limit`, a larger machine), or write a coarser preprocess.spacing",
        )
        lost.__cause__ = error
        return lost
