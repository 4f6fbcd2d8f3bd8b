"""When a study is whole; that a late instance makes one more version; and that nothing is told twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.hospital import Completion
from tasks.receive.completion import Completer
from tasks.stores.catalog import Catalog
from tasks.stores.outbox import Outbox
from tasks.stores.tables import (
    AnalysisRow,
    ArrivalRow,
    Base,
    DatasetRecord,
    DeliveryRow,
    InstanceRow,
    OutboxRow,
    PackageRow,
    StudyVersionRow,
    now,
)

RULE = Completion(quiet_seconds=60, cap_seconds=600)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


def arrive(
    catalog: Catalog, *instances: str, study: str = "2.25.1", quiet: float = 0, since: float = 0, told: bool = False
) -> None:
    """Instances of a study, the last `quiet` and the first `since` seconds ago."""
    moment = now()
    catalog.add(
        *(
            InstanceRow(instance=i, sop_uid=f"uid-{i}", series_uid="2.25.2", study=study, sop_class="CT")
            for i in instances
        )
    )
    last = moment - timedelta(seconds=quiet)
    row = ArrivalRow(
        study=study, source="listener", first_at=moment - timedelta(seconds=max(since, quiet)), last_at=last
    )
    catalog.add(row)
    catalog.change(
        ArrivalRow,
        ArrivalRow.study == study,
        waiting=len(instances),
        first_at=row.first_at,
        last_at=last,
        told_at=moment if told else None,
    )


def completer(catalog: Catalog) -> Completer:
    return Completer(catalog, {"listener": RULE}, Completion())


@pytest.mark.parametrize(
    ("quiet", "since", "told", "why"),
    [(5, 30, False, None), (61, 61, False, "quiet"), (1, 601, False, "cap"), (1, 2, True, "told")],
)
def test_the_three_ways_to_be_whole(catalog: Catalog, quiet: float, since: float, told: bool, why: str | None) -> None:
    arrive(catalog, "a", "b", quiet=quiet, since=since, told=told)
    assert completer(catalog).look() == (why is not None)
    versions = catalog.find(StudyVersionRow)
    assert [(v.why, v.instances, v.number) for v in versions] == ([(why, ["a", "b"], 1)] if why else [])
    assert Outbox(catalog).waiting("event") == len(versions)


def test_what_the_sender_said_does_not_hold_for_what_came_after(catalog: Catalog) -> None:
    arrive(catalog, "a", told=True)
    catalog.change(ArrivalRow, ArrivalRow.study == "2.25.1", last_at=now() + timedelta(seconds=1))
    assert completer(catalog).look() == 0


@pytest.mark.fault("receive/late-slice")
def test_a_late_instance_makes_one_more_version_with_all_instances(catalog: Catalog) -> None:
    look = completer(catalog).look
    arrive(catalog, "a", "b", told=True)
    assert [look(), look()] == [1, 0]
    arrive(catalog, "c", told=True)
    assert [look(), look()] == [1, 0]
    versions = catalog.find(StudyVersionRow, order_by=StudyVersionRow.number)
    assert [v.instances for v in versions] == [["a", "b"], ["a", "b", "c"]]
    assert len({row.message for row in catalog.find(OutboxRow)}) == 2


def test_the_same_set_of_instances_is_never_two_versions(catalog: Catalog) -> None:
    look = completer(catalog).look
    arrive(catalog, "a", told=True)
    look()
    catalog.change(ArrivalRow, ArrivalRow.study == "2.25.1", waiting=1, told_at=now())
    assert look() == 0
    assert catalog.count(StudyVersionRow) == 1
    assert catalog.count(ArrivalRow, ArrivalRow.waiting > 0) == 0


def test_our_own_results_coming_back_call_for_nothing(catalog: Catalog) -> None:
    look = completer(catalog).look
    arrive(catalog, "a", told=True)
    look()
    (version,) = catalog.find(StudyVersionRow)
    catalog.add(*_analysis(version.version))
    catalog.add(
        DeliveryRow(
            delivery="d",
            analysis="an",
            study="2.25.1",
            destination="pacs",
            objects=[{"kind": "seg", "uid": "uid-seg"}],
        )
    )
    arrive(catalog, "seg", told=True)
    assert look() == 0
    assert catalog.count(StudyVersionRow) == 1
    arrive(catalog, "b", told=True)
    assert look() == 1
    assert catalog.find(StudyVersionRow, StudyVersionRow.number == 2)[0].instances == ["a", "b"]


def _analysis(version: str) -> list[Base]:
    return [
        DatasetRecord(dataset="ds", name="n", kind="segmentation", classes=[], counts={}),
        PackageRow(package="p", name="n", dataset="ds", weights_sha256="0"),
        AnalysisRow(analysis="an", version=version, study="2.25.1", package="p", name="n"),
    ]


def test_a_conflict_flags_the_version(catalog: Catalog) -> None:
    arrive(catalog, "a", told=True)
    catalog.change(ArrivalRow, ArrivalRow.study == "2.25.1", conflicts=1)
    completer(catalog).look()
    assert catalog.find(StudyVersionRow)[0].flags == ["conflict"]


def test_each_source_has_its_own_rule(catalog: Catalog) -> None:
    arrive(catalog, "a", quiet=10)
    slow, quick = Completion(quiet_seconds=3600), Completion(quiet_seconds=5)
    assert Completer(catalog, {"listener": slow}, quick).look() == 0
    assert Completer(catalog, {"folder": slow}, quick).look() == 1


@settings(max_examples=25, deadline=None)
@given(batches=st.lists(st.sets(st.integers(0, 30), max_size=6), max_size=6))
def test_every_instance_is_in_the_last_version_and_versions_only_grow(
    tmp_path_factory: pytest.TempPathFactory, batches: list[set[int]]
) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path_factory.mktemp('c') / 'catalog.db'}")
    seen: set[str] = set()
    for batch in batches:
        new = {f"i{n:02}" for n in batch} - seen
        if new:
            arrive(catalog, *sorted(new), told=True)
            seen |= new
        assert completer(catalog).look() == bool(new)
    sets = [set(v.instances) for v in catalog.find(StudyVersionRow, order_by=StudyVersionRow.number)]
    assert all(earlier < later for earlier, later in itertools.pairwise(sets))
    assert (sets[-1] if sets else set()) == seen
    catalog.close()
