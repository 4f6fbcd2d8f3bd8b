"""A hospital that many small studies go through: an untrained model that serves, senders, and what processes hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache

import numpy as np
import psutil
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from flows.environment import open_stores
from models.account import Account
from models.recipe import Recipe
from models.settings import Settings
from tasks.cohort.headers import stable_uid
from tasks.deliver.run import due_again
from tasks.stores.account import account
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import DeliveryRow, StudyVersionRow
from tests.components import phantom_study, until
from tests.flows.hospital import PATIENCE, Hospital
from tests.tasks.predict.samples import a_package
from tests.tasks.receive.peer import Answers, ask, associate, of, requester, unhurried
from tests.tasks.train.samples import balls

SIDE = 32
PROCESSES = ("listener", "relay", "arrivals")
SENDERS, AT_ONCE = 3, 2
RECIPE = 'name = "soak"\nkind = "segmentation"\nimages.modality = "CT"\nlabels.source = "SEG"\n'


class Kind(StrEnum):
    """What is special about a study; each comes once in ten."""

    BROKEN = "its pixels are cut short"
    LATE = "a slice comes after it was held to be whole"
    RESENT = "all of it is sent twice"
    NAMELESS = "one instance names no study"
    HALF = "one series is broken, the other one is not"
    OTHER = "no model is for it"
    GOOD = ""


_TENTHS = dict(enumerate(kind for kind in Kind if kind is not Kind.GOOD))


@dataclass(frozen=True)
class Sent:
    """One study as it is sent: `late` after the rest was held to be whole."""

    number: int
    kind: Kind
    first: tuple[Dataset, ...]
    late: tuple[Dataset, ...] = ()
    nameless: tuple[Dataset, ...] = ()

    @property
    def uid(self) -> str:
        """Its Study Instance UID."""
        return str(self.first[0].StudyInstanceUID)

    def expected(self) -> Expected:
        """What is to come of it."""
        results = 0 if self.kind in (Kind.BROKEN, Kind.OTHER) else 2 if self.late else 1
        return Expected(self.uid, self.kind, len(self.first) + len(self.late), results)


@dataclass(frozen=True)
class Expected:
    """A study without its pixels: instances that are kept, and reports that the PACS is to have of it in the end."""

    uid: str
    kind: Kind
    instances: int
    results: int


def study(number: int) -> Sent:
    """Of 3 to 5 slices of 32 × 32, of a patient of its own."""
    kind = _TENTHS.get(number % 10, Kind.GOOD)
    slices = _series(number, 1, MRImageStorage if kind is Kind.OTHER else CTImageStorage)
    match kind:
        case Kind.BROKEN:
            return Sent(number, kind, tuple(map(_cut, slices)))
        case Kind.LATE:
            return Sent(number, kind, tuple(slices[:-1]), late=(slices[-1],))
        case Kind.NAMELESS:
            return Sent(number, kind, tuple(slices), nameless=(_nameless(slices[0]),))
        case Kind.HALF:
            return Sent(number, kind, (*slices, *map(_cut, _series(number, 2, CTImageStorage))))
        case _:
            return Sent(number, kind, tuple(slices))


@cache
def _template() -> tuple[Dataset, ...]:
    return tuple(phantom_study(1, slices=5))


def _series(number: int, series: int, sop_class: str) -> list[Dataset]:
    rng, slices = np.random.default_rng([number, series]), []
    for place, template in enumerate(_template()[: 3 + number % 3]):
        ds = deepcopy(template)
        ds.PatientID, ds.PatientName, ds.AccessionNumber = f"SOAK{number}", f"Soak^{number}", f"A{number}"
        ds.StudyInstanceUID = stable_uid("soak", number)
        ds.SeriesInstanceUID = stable_uid("soak", number, series)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = stable_uid("soak", number, series, place)
        ds.FrameOfReferenceUID = stable_uid("soak", number, "frame")
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        ds.Modality = "MR" if sop_class == MRImageStorage else "CT"
        ds.Rows = ds.Columns = SIDE
        ds.PixelData = rng.integers(0, 4, (SIDE, SIDE), np.uint16).tobytes()
        slices.append(ds)
    return slices


def _cut(ds: Dataset) -> Dataset:
    ds.PixelData = ds.PixelData[: SIDE * SIDE // 2]
    return ds


def _nameless(ds: Dataset) -> Dataset:
    lost = deepcopy(ds)
    lost.SOPInstanceUID = lost.file_meta.MediaStorageSOPInstanceUID = stable_uid(str(ds.SOPInstanceUID), "nameless")
    del lost.StudyInstanceUID
    return lost


# -- an installation ----------------------------------------------------------------------------------------------


@dataclass
class Soaked(Hospital):
    """An installation with a listener and one destination, and a small model that serves."""

    stores: Stores = field(init=False)

    def settle(self) -> None:
        """Settings, and the model."""
        super().settle()
        file = self.home.folder / "nocturne.toml"
        head, _, rest = file.read_text().partition("[[watched]]")
        several = f"[arrivals]\nat_once = {AT_ONCE}\n\n"
        file.write_text(head + several + "[[destinations]]" + rest.partition("[[destinations]]")[2])
        self.stores = open_stores(Settings(home=self.home.folder, secret=self.environment["NOCTURNE_SECRET"]))
        package = a_package(self.stores, replace(balls(), recipe=Recipe.parse(RECIPE, where="soak")))
        folder = self.stores.packages.local(package.key)
        made = self.stores.registry.log_package(read_description(folder), folder, metrics={})
        self.stores.registry.set_champion(made.name, made.version)

    def open(self) -> None:
        """Everything but what watches."""
        self.start("prefect")
        until(self.prefect_answers, "the Prefect server answers", PATIENCE)
        self.command("deploy")
        self.start(*PROCESSES)
        until(lambda: set(PROCESSES) <= self.signs(), "all processes live", PATIENCE)
        until(self.worker_is_there, "the worker for arrivals is online", PATIENCE)

    def account(self) -> Account:
        """As `nocturne status` tells it."""
        return account(self.stores.catalog)

    def versions_of(self, sent: Sent) -> int:
        """How often it was held to be whole."""
        name = self.stores.pseudonymizer.uid(sent.uid)
        return self.stores.catalog.count(StudyVersionRow, StudyVersionRow.study == name)

    def send_all(self, studies: Sequence[Sent]) -> None:
        """By several senders at once, each over one association for all of its studies."""
        parts = [studies[place::SENDERS] for place in range(SENDERS)]
        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(self._send_part, [part for part in parts if part]))

    def _send_part(self, studies: Sequence[Sent]) -> None:
        answers = Answers()
        assoc = associate(_scanner(), self.listener_port, handlers=answers.handlers, ae_title="NOCTURNE")
        assert assoc.is_established
        unhurried(assoc)

        def store(*slices: Dataset) -> list[int]:
            return [int(assoc.send_c_store(ds).Status) for ds in slices]

        def whole(*slices: Dataset) -> None:
            assert not any(store(*slices))
            assert ask(assoc, *map(of, slices)) == 0
            assert answers.next()[0] == 1, "not all of it has arrived"

        for sent in studies:
            assert all(store(*sent.nameless)), "what names no study is refused"
            whole(*sent.first)
            if sent.late:
                until(lambda: self.versions_of(sent) == 1, "the study to be whole", PATIENCE)  # noqa: B023 - now
                whole(*sent.late)
            if sent.kind is Kind.RESENT:
                whole(*sent.first)
        answers.settle()
        assoc.release()

    def send_one_again(self) -> None:
        """As if a run had been killed before it wrote down that its result had arrived: the relay sees to it.

        So it has loaded early what it makes results with.
        """
        catalog = self.stores.catalog
        there = DeliveryRow.state == "committed"
        until(lambda: catalog.count(DeliveryRow, there), "a result to be there", PATIENCE)
        name = catalog.find(DeliveryRow, there, limit=1)[0].delivery
        with catalog.transaction() as session:
            due_again(session, [name], "")
        until(lambda: catalog.count(DeliveryRow, DeliveryRow.delivery == name, there), "it to be seen there", PATIENCE)

    def reports(self) -> dict[str, int]:
        """How many structured reports the PACS holds, by Study Instance UID."""
        found: dict[str, int] = {}
        with self.pacs.client() as client:
            query = {"Level": "Series", "Query": {"Modality": "SR"}, "Expand": True}
            for series in client.post("/tools/find", json=query).raise_for_status().json():
                parent = client.get(f"/series/{series['ID']}/study").raise_for_status().json()
                uid = parent["MainDicomTags"]["StudyInstanceUID"]
                found[uid] = found.get(uid, 0) + len(series["Instances"])
        return found


def _scanner() -> AE:
    ae = requester("SCANNER")
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    return ae


# -- what processes hold ------------------------------------------------------------------------------------------


@dataclass
class Held:
    """The least resident megabytes and open files of every process while some studies more were done.

    What a run takes while it runs comes and goes by more than what could grow: what does not go is there at rest too.
    """

    done: list[int] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, list[float]] = field(default_factory=dict)
    _least: dict[str, tuple[float, int]] = field(default_factory=dict)

    def look(self, hospital: Soaked) -> None:
        """Once; often, between two `keep`."""
        for name, process in _processes(hospital):
            megabytes, files = process.memory_info().rss / 1e6, process.num_fds()
            least = self._least.get(name, (megabytes, files))
            self._least[name] = (min(least[0], megabytes), min(least[1], files))

    def keep(self, done: int) -> None:
        """What was the least since the last time, with how many studies are done."""
        self.done.append(done)
        for name, (megabytes, files) in self._least.items():
            self.memory.setdefault(name, []).append(megabytes)
            self.files.setdefault(name, []).append(files)
        self._least.clear()

    def growth(self, kept: dict[str, list[float]], *, warm: int) -> dict[str, float]:
        """By least squares what a thousand studies more take, once `warm` studies were done."""
        late = [place for place, done in enumerate(self.done) if done >= warm]
        x = np.array([self.done[place] for place in late], float)
        return {
            name: 1000 * float(np.polyfit(x, [values[place] for place in late], 1)[0])
            for name, values in kept.items()
            if len(values) == len(self.done)
        }


def _processes(hospital: Soaked) -> Iterator[tuple[str, psutil.Process]]:
    for name, started in hospital.running.items():
        yield name, psutil.Process(started.pid)
    children = psutil.Process(hospital.running["arrivals"].pid).children()
    engines = [child for child in children if any("warm_engine" in word for word in child.cmdline())]
    for number, engine in enumerate(engines, 1):
        yield f"warm engine {number}", engine


def soak(hospital: Soaked, number: int, *, at_once: int, held: Held) -> list[Expected]:
    """Send so many studies, `at_once` of them on their way at any time, and wait until all are at rest."""
    every: list[Expected] = []
    for start in range(0, number, at_once // 2):
        some = [study(n) for n in range(start, min(start + at_once // 2, number))]
        hospital.send_all(some)
        every += [sent.expected() for sent in some]
        settle(hospital, at_once // 2 if len(every) < number else 0, held)
        if start == 0:
            hospital.send_one_again()
        held.keep(len(every) - hospital.account().waiting)
    return every


def settle(hospital: Soaked, left: int, held: Held) -> None:
    """Until no more than `left` studies wait; fails where none gets on for long."""

    def waiting() -> int:
        held.look(hospital)
        return hospital.account().waiting

    now = waiting()
    while now > left:
        before = now
        until(lambda: waiting() < before, f"one of {before} gets on", 4 * PATIENCE)  # noqa: B023
        now = waiting()
