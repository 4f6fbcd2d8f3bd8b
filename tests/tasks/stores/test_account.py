"""The account adds up after every history, and what does not add up is told by name."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from models.account import Standing
from models.hashing import content_key
from models.hospital import Completion, Destination
from models.refs import AnalysisRef, StudyVersionRef
from tasks.deliver.run import Dispatcher, enqueue
from tasks.receive.completion import Completer
from tasks.receive.indexing import Arrived, Index, Refused, Told
from tasks.receive.versions import Outcome, close_version, open_version
from tasks.stores.account import account, strays
from tasks.stores.catalog import Catalog
from tasks.stores.house import Stores
from tasks.stores.spool import Stored
from tasks.stores.tables import (
    AnalysisRow,
    ArrivalRow,
    Base,
    DatasetRecord,
    DeliveryRow,
    OutboxRow,
    PackageRow,
    StudyVersionRow,
)
from tests.tasks.deliver.installation import stores_at

STUDIES = 4
PLACES = tuple(Destination(name=name, kind="folder", path=Path("nowhere")) for name in ("pacs", "archive"))
SENDING: tuple[Outcome, ...] = ("delivered", "waiting", "refused")
QUIET: tuple[Outcome, ...] = ("predicted", "ingested", "nothing-fits")
ENDS: tuple[Outcome, ...] = (*SENDING, *QUIET, "quarantined", "failed")
NEVER = Completion(quiet_seconds=86_000, cap_seconds=86_400)
PACKAGE = "package"


@dataclass
class Version:
    """What the test knows of one version of a study."""

    key: str
    outcome: str = ""
    deliveries: dict[str, tuple[str, str]] = field(default_factory=dict)  # by key: destination, state


@dataclass
class Study:
    """What the test knows of one study."""

    name: str
    instances: int = 0
    waiting: int = 0
    told: bool = False
    versions: list[Version] = field(default_factory=list)

    @property
    def standing(self) -> str:
        """By the words of the account's page."""
        last = self.versions[-1] if self.versions else None
        states = {place: state for version in self.versions for place, state in version.deliveries.values()}
        if self.waiting or last is None:
            return "coming_in"
        if last.outcome in ("", "failed", "quarantined"):
            return last.outcome or "to_be_analysed"
        if any(state == "waiting" for version in self.versions for _, state in version.deliveries.values()):
            return "in_outbox"
        if "refused" in states.values():
            return "refused"
        return "sent" if states else "nothing_to_send"


class History:
    """Events by the code that serves, on one catalog, with a model of what they should come to."""

    def __init__(self, stores: Stores) -> None:
        self.stores, self.catalog = stores, stores.catalog
        self.index, self.completer = Index(self.catalog, "listener"), Completer(self.catalog, {}, NEVER)
        self.dispatcher = Dispatcher(stores, PLACES, ae_title="NOCTURNE")
        self.studies = [Study(f"2.25.{number}") for number in range(STUDIES)]
        self.unfiled: set[str] = set()
        self.catalog.add(
            DatasetRecord(dataset="dataset", name="one", kind="segmentation", classes=[], counts={}),
            PackageRow(package=PACKAGE, name="one", dataset="dataset", weights_sha256="0"),
        )

    def instance(self, study: Study, again: bool) -> None:
        """One more, or one that came before."""
        if not again or not study.instances:
            study.instances += 1
            study.waiting, study.told = study.waiting + 1, study.told and bool(study.waiting)
        name = hashlib.sha256(f"{study.name} {study.instances}".encode()).hexdigest()
        stored = Stored(name, study.name, "2.25.9", f"{study.name}.{study.instances}", "1.2", "CT", 1, Path(), new=True)
        self.index.write([Arrived(stored, datetime.now(UTC))])
        if study.waiting and not again:
            study.told = False  # said before this one came

    def refuse(self, study: Study, number: int) -> None:
        """An instance that cannot be filed, whosever it is."""
        self.unfiled.add(name := content_key("refused", study.name, number))
        self.index.write([Refused(name, "no-study", "names no study")])

    def tell(self, study: Study) -> None:
        """Its sender says that it is whole."""
        study.told = study.waiting > 0
        self.index.write([Told(study.name, datetime.now(UTC))])

    def look(self) -> None:
        """Whatever is whole becomes a version."""
        due = [study for study in self.studies if study.waiting and study.told]
        assert self.completer.look() == len(due)
        for study in due:
            row = max(self.rows(study), key=lambda version: version.number)
            study.versions.append(Version(row.version))
            study.waiting, study.told = 0, False

    def end(self, study: Study, outcome: Outcome, places: int) -> None:
        """The run of its latest version comes to an end, if it has begun and not ended."""
        open_ones = [version for version in study.versions if version.outcome in ("", "failed")]
        if not open_ones:
            return
        version = open_ones[places % len(open_ones)]
        ref = StudyVersionRef.to(version.key)
        assert open_version(self.stores, ref, "run").batch is not None
        if outcome in SENDING:
            self.analysed(study, version, places)
        close_version(self.stores, ref, outcome)
        version.outcome = outcome

    def analysed(self, study: Study, version: Version, places: int) -> None:
        """Something is found, and put on its way."""
        analysis = content_key("analysis", version.key)
        row = AnalysisRow(
            analysis=analysis,
            version=version.key,
            study=study.name,
            package=PACKAGE,
            name="one",
            predictions=[analysis],
        )
        self.catalog.add(row)
        for ref in enqueue(self.stores, AnalysisRef.to(analysis), PLACES[:places]):
            delivery = self.catalog.get(DeliveryRow, ref.key)
            assert delivery is not None
            version.deliveries[ref.key] = delivery.destination, "waiting"

    def deliver(self, study: Study, state: str) -> None:
        """The oldest result that waits is sent, or refused; what was denied waits again."""
        for version in study.versions:
            for key, (place, before) in version.deliveries.items():
                row = self.catalog.get(DeliveryRow, key)
                assert row is not None
                if before == "waiting" and state in ("sent", "committed", "refused"):
                    self.dispatcher._record(row, state, "")  # type: ignore[arg-type]
                elif before == "sent" and state == "waiting":
                    self.dispatcher._send_again(row)
                else:
                    continue
                version.deliveries[key] = place, state
                return

    def rows(self, study: Study) -> list[StudyVersionRow]:
        return list(self.catalog.find(StudyVersionRow, StudyVersionRow.study == study.name))

    def play(self, event: tuple[int, int, int]) -> None:
        """An event from three numbers."""
        what, which, how = event
        study = self.studies[which]
        match what:
            case 0:
                self.instance(study, again=how == 0)
            case 1:
                self.tell(study)
            case 2:
                self.look()
            case 3:
                self.end(study, ENDS[how % len(ENDS)], 1 + how % 2)
            case 4:
                self.deliver(study, ("sent", "committed", "refused", "waiting")[how % 4])
            case 5:
                self.instance(study, again=False)
                self.tell(study)
                self.look()
            case _:
                self.refuse(study, how)

    def check(self) -> None:
        """The account is what the model says, and nothing is lost."""
        came = [study for study in self.studies if study.instances]
        expected = Counter(study.standing for study in came)
        found = account(self.catalog)
        assert {one.value: n for one in Standing if (n := found.how_many(one))} == dict(expected)
        assert found.received == found.delivered + found.quarantined + found.waiting == len(came)
        assert found.holds
        assert found.instances == sum(study.instances for study in came)
        assert found.unfiled == len(self.unfiled)
        assert strays(self.catalog) == ()


EVENTS = st.tuples(st.integers(0, 6), st.integers(0, STUDIES - 1), st.integers(0, 15))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    stores = stores_at(tmp_path_factory.mktemp("account"))
    yield stores
    stores.catalog.close()


def emptied(stores: Stores) -> Stores:
    """Its catalog, with nothing in it."""
    with stores.catalog.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    return stores


@settings(max_examples=20)
@given(st.lists(EVENTS, min_size=1, max_size=30))
def test_every_history_adds_up(shared: Stores, events: list[tuple[int, int, int]]) -> None:
    history = History(emptied(shared))
    for event in events:
        history.play(event)
    history.check()


def through(history: History, rng: random.Random, steps: int) -> None:
    """A history in which studies get far."""
    for step in range(steps):
        history.play((rng.choices(range(7), (3, 2, 2, 6, 8, 3, 1))[0], rng.randrange(STUDIES), rng.randrange(16)))
        if step % 40 == 0:
            history.check()
    history.check()


def test_a_long_history_on_every_database(catalog: Catalog, tmp_path: Path) -> None:
    stores = stores_at(tmp_path)
    stores.__dict__["catalog"] = catalog
    through(History(stores), random.Random(7), 120)


def one_of_each(stores: Stores) -> History:
    """Four studies: sent, in the outbox, to be analysed, coming in."""
    history = History(emptied(stores))
    for number, study in enumerate(history.studies):
        history.instance(study, again=False)
        if number < 3:
            history.tell(study)
    history.look()
    history.end(history.studies[0], "delivered", 2)
    history.deliver(history.studies[0], "sent")
    history.deliver(history.studies[0], "committed")
    history.end(history.studies[1], "waiting", 1)
    history.check()
    return history


def test_the_words_of_the_sum(shared: Stores) -> None:
    found = account(one_of_each(shared).catalog)
    assert str(found) == "4 = 1 delivered + 0 quarantined + 3 waiting"
    assert found.to_json()["coming_in"] == found.to_json()["sent"] == 1


def test_one_bad_instance_of_a_good_study_is_told_apart(shared: Stores) -> None:
    history = one_of_each(shared)
    history.refuse(history.studies[0], 1)
    found = account(history.catalog)
    assert (found.quarantined, found.sent, found.unfiled) == (0, 1, 1)
    assert found.holds


def test_a_study_whose_version_is_lost_is_named(shared: Stores) -> None:
    history = one_of_each(shared)
    with history.catalog.transaction() as session:
        session.execute(delete(StudyVersionRow).where(StudyVersionRow.study == history.studies[2].name))
    found = account(history.catalog)
    assert (found.unaccounted, found.holds) == (1, False)
    assert "1 UNACCOUNTED FOR" in str(found)
    (lost,) = strays(history.catalog)
    assert lost.study == history.studies[2].name
    assert "never held to be whole" in lost.why


def test_a_study_that_is_counted_twice_is_named(shared: Stores) -> None:
    history = one_of_each(shared)
    name = history.studies[0].name
    history.catalog.add(
        StudyVersionRow(version="again", study=name, number=1, instances=[], why="told", outcome="failed")
    )
    assert account(history.catalog).unaccounted == -1
    (lost,) = strays(history.catalog)
    assert (lost.study, lost.why) == (name, "two versions of it are the latest")


def test_a_version_of_a_study_that_never_came_is_named(shared: Stores) -> None:
    history = one_of_each(shared)
    with history.catalog.transaction() as session:
        session.execute(delete(ArrivalRow).where(ArrivalRow.study == history.studies[2].name))
    found = account(history.catalog)
    assert (found.received, found.unaccounted) == (3, -1)
    assert [(one.study, "not among" in one.why) for one in strays(history.catalog)] == [(history.studies[2].name, True)]


@pytest.mark.parametrize(("kind", "number"), [("delivery", 1), ("event", 2)])
def test_what_waits_for_a_message_that_is_gone_is_named(shared: Stores, kind: str, number: int) -> None:
    history = one_of_each(shared)
    name = history.studies[number].name
    with history.catalog.transaction() as session:
        keys = select(DeliveryRow.delivery).where(DeliveryRow.study == name)
        version = history.studies[number].versions[0].key
        gone = OutboxRow.message.in_(keys) if kind == "delivery" else OutboxRow.message == f"arrived-{version}"
        session.execute(delete(OutboxRow).where(gone).execution_options(synchronize_session=False))
    assert account(history.catalog).holds, "it is in its place: nothing will bring it on"
    assert [one.study for one in strays(history.catalog)] == [name]


def test_results_without_a_delivery_are_named(shared: Stores) -> None:
    history = one_of_each(shared)
    name = history.studies[2].name
    with history.catalog.transaction() as session:
        session.execute(update(StudyVersionRow).where(StudyVersionRow.study == name).values(outcome="delivered"))
    assert [(one.study, "no delivery" in one.why) for one in strays(history.catalog)] == [(name, True)]
