from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_info

from models.errors import (
    LabelError,
    NotFoundError,
    NothingToDoError,
    PixelError,
    ServiceUnavailableError,
    StoreBusyError,
    WorkerLostError,
)
from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.recipe import LabelClass
from models.volume import Mask, Segment, Volume
from tasks.preprocess import run
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.run import Case, Reading, case_key, fingerprint_dataset, prepare_dataset
from tasks.progress import shown_on
from tasks.stores.prepared import PreparedStore
from tasks.stores.volumes import VolumeStore
from tests.components import until
from tests.tasks.preprocess.cases import READING, write_cohort

PLAN = PreparePlan(
    dimensions=3, spacing=(1.5, 1.0, 1.0), crop="nonzero", normalisation=(Normalisation(scheme="zscore"),)
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with compute_client("", 2) as running:
        yield running


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return tmp_path / "volumes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def bad_cases(volumes: Path, good: list[Case]) -> dict[Case, type[Exception]]:
    """One of each kind that must not stop the others."""
    store = VolumeStore(str(volumes))
    broken = np.full((4, 20, 20), np.nan, np.float32)
    store.write("nan", Volume(broken, Geometry.from_spacing(broken.shape, (1, 1, 1)), "MR"))
    geometry = store.open(good[0].volume).geometry
    other = Mask(np.zeros((1, *geometry.shape), np.uint8), (Segment(1, "Heart"),), geometry, "SEG")
    store.write_mask("heart", other)
    url = str(volumes)
    return {
        Case(url, "nan", target=0): PixelError,
        Case(url, good[0].volume, "heart"): LabelError,
        Case(url, "absent", target=1): NotFoundError,
    }


def test_a_cohort_is_looked_at_and_prepared_once(client: Client, volumes: Path, root: Path) -> None:
    cases = write_cohort(volumes, 6)
    looked = fingerprint_dataset(client, cases, READING, root, dataset="d", modality="MR")
    assert looked.computed == 6
    assert looked.failures == ()
    assert looked.fingerprint.class_counts == (6, 6)
    assert looked.fingerprint.intensities[0].mean == pytest.approx(300, abs=60)
    done = prepare_dataset(client, cases, READING, PLAN, root)
    assert done.computed == 6
    store = PreparedStore(root)
    for case in cases:
        opened = store.open(done.done[case])
        assert opened.mask is not None
        assert opened.image.shape[1:] == opened.mask.shape == opened.about.geometry.shape
        assert opened.about.geometry.spacing == pytest.approx((1.5, 1.0, 1.0), rel=0.06)
        assert opened.about.original == VolumeStore(case.url).open(case.volume).geometry
        # Organ and lesion are where the image is bright.
        image = np.asarray(opened.image[0], np.float32)
        assert image[opened.mask == 2].mean() > image[opened.mask == 1].mean() > image[opened.mask == 0].mean()
        assert sorted(opened.locations) == [1, 2]

    again = fingerprint_dataset(None, cases, READING, root, dataset="d", modality="MR")
    assert again.computed == 0
    assert again.fingerprint == looked.fingerprint
    twice = prepare_dataset(None, cases, READING, PLAN, root)
    assert twice.computed == 0
    assert twice.done == done.done


def test_a_night_computes_the_new_cases_alone(volumes: Path, root: Path) -> None:
    first = write_cohort(volumes, 3)
    fingerprint_dataset(None, first, READING, root, dataset="d", modality="MR")
    prepare_dataset(None, first, READING, PLAN, root)
    grown = write_cohort(volumes, 5)
    assert fingerprint_dataset(None, grown, READING, root, dataset="d", modality="MR").computed == 2
    assert prepare_dataset(None, grown, READING, PLAN, root).computed == 2
    coarser = PLAN.model_copy(update={"spacing": (3.0, 2.0, 2.0)})
    assert prepare_dataset(None, grown, READING, coarser, root).computed == 5
    assert (
        fingerprint_dataset(None, grown, replace(READING, fraction=0.9), root, dataset="d", modality="MR").computed == 5
    )


def test_here_and_on_workers_is_the_same(client: Client, volumes: Path, root: Path, tmp_path: Path) -> None:
    cases = write_cohort(volumes, 3)
    here, there = tmp_path / "here", tmp_path / "there"
    looked = [
        fingerprint_dataset(c, cases, READING, folder, dataset="d", modality="MR").fingerprint
        for c, folder in ((client, here), (None, there))
    ]
    assert looked[0] == looked[1]
    a, b = (prepare_dataset(c, cases, READING, PLAN, f).done for c, f in ((client, here), (None, there)))
    assert a == b
    for key in a.values():
        np.testing.assert_array_equal(PreparedStore(here).open(key).image, PreparedStore(there).open(key).image)


@pytest.mark.parametrize("on_workers", [True, False])
def test_bad_cases_are_set_aside_and_the_rest_goes_on(
    client: Client, volumes: Path, root: Path, on_workers: bool
) -> None:
    good = write_cohort(volumes, 3)
    bad = bad_cases(volumes, good)
    runner = client if on_workers else None
    looked = fingerprint_dataset(runner, [*bad, *good], READING, root, dataset="d", modality="MR")
    done = prepare_dataset(runner, [*bad, *good], READING, PLAN, root)
    assert len(looked.fingerprint.cases) == 3
    assert set(done.done) == set(good)
    for failures in (looked.failures, done.failures):
        assert {case: type(error) for case, error in failures} == bad
        assert all(error.where == case.volume for case, error in failures)
    with pytest.raises(NothingToDoError):
        fingerprint_dataset(runner, list(bad), READING, root, dataset="d", modality="MR")


def test_classified_images_have_targets_and_no_masks(volumes: Path, root: Path) -> None:
    cases = [replace(c, label=f"label{i}", target=i % 2) for i, c in enumerate(write_cohort(volumes, 4))]
    reading = Reading((LabelClass(name="a"), LabelClass(name="b")))
    looked = fingerprint_dataset(None, cases, reading, root, dataset="d", modality="MR")
    assert looked.fingerprint.class_counts == (2, 2)
    plan = PLAN.model_copy(update={"size": (8, 24, 24), "spacing": None})
    done = prepare_dataset(None, cases, reading, plan, root)
    opened = [PreparedStore(root).open(done.done[c]) for c in cases]
    assert [o.about.target for o in opened] == [0, 1, 0, 1]
    assert {o.image.shape for o in opened} == {(1, 8, 24, 24)}
    assert all(o.mask is None for o in opened)


def test_a_structure_that_vanishes_is_told(volumes: Path, root: Path) -> None:
    case = write_cohort(volumes, 1)[0]
    huge = PLAN.model_copy(update={"spacing": (90.0, 90.0, 90.0), "crop": "none"})
    (failure,) = prepare_dataset(None, [case], Reading((LabelClass(name="lesion*"),)), huge, root).failures
    assert failure[1].reason == "label-vanished"


def test_damaged_facts_are_made_again(volumes: Path, root: Path) -> None:
    cases = write_cohort(volumes, 2)
    before = fingerprint_dataset(None, cases, READING, root, dataset="d", modality="MR").fingerprint
    file = next((root / run.FACTS).rglob("*.npz"))
    file.write_bytes(b"PK no longer")
    again = fingerprint_dataset(None, cases, READING, root, dataset="d", modality="MR")
    assert again.computed == 1
    assert again.fingerprint == before
    assert list(PreparedStore(root)._place.keys()) == []  # facts are no cases, and no sweep takes them


def _busy_at_first(case: Case, marks: Path) -> str:
    """Fails transiently the first two times."""
    tries = len(list(marks.iterdir()))
    (marks / str(tries)).touch()
    if tries < 2:
        raise StoreBusyError("locked")
    return case.volume


def _always_busy(case: Case) -> str:
    if case.volume == "busy":
        raise StoreBusyError("locked")
    return case.volume


def _deadly(case: Case) -> str:
    if case.volume == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return case.volume


def test_transient_errors_are_tried_again(client: Client, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    outcome = run._each(client, partial(_busy_at_first, marks=marks), [Case("", "v")], "test")
    assert outcome.done == {Case("", "v"): "v"}
    assert len(list(marks.iterdir())) == 3


def test_what_does_not_heal_is_raised_once_all_others_are_done(client: Client) -> None:
    seen: list[float] = []

    class Sink:
        def begin(self, name: str, total: float | None, unit: str) -> int:
            return 0

        def advance(self, handle: int, amount: float, note: str | None) -> None:
            seen.append(amount)

        def end(self, handle: int, note: str | None) -> None:
            return

    with shown_on(Sink()), pytest.raises(StoreBusyError):
        run._each(client, _always_busy, [Case("", "busy"), Case("", "a"), Case("", "b")], "test")
    assert sum(seen) == 3


@pytest.mark.fault("compute/worker")
def test_a_case_that_kills_its_worker_each_time_is_named() -> None:
    with compute_client("", 1) as own, pytest.raises(WorkerLostError) as caught:
        run._each(own, _deadly, [Case("", "deadly")], "test")
    assert caught.value.where == "deadly"


@pytest.mark.fault("compute/worker")
def test_a_killed_worker_costs_no_case(volumes: Path, root: Path) -> None:
    cases = write_cohort(volumes, 24, (20, 90, 90))
    finer = PLAN.model_copy(update={"spacing": (0.8, 0.5, 0.5)})
    keys = [case_key(c, READING, finer) for c in cases]
    store = PreparedStore(root)
    with compute_client("", 2) as own:
        pid = min(before := set(own.run(os.getpid).values()))
        assert len(before) == 2

        def kill_midway() -> None:
            deadline = time.monotonic() + 180
            while sum(map(store.exists, keys)) < 3 and time.monotonic() < deadline:
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_midway)
        killer.start()
        done = prepare_dataset(own, cases, READING, finer, root)
        killer.join()
        until(lambda: another_than(pid, own), "another worker")
    assert sorted(done.done.values()) == sorted(keys)
    for key in keys:
        assert np.asarray(store.open(key).image, np.float32).std() > 0


def test_a_worker_that_a_case_left_almost_full_takes_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.preprocess.cluster.MEMORY_LIMIT", 2 << 30)
    monkeypatch.setattr("tasks.preprocess.cluster.LONELY_SECONDS", 5.0)
    with compute_client("", 1) as own:
        done = run._each(own, _filling, [Case("", str(n)) for n in range(3)], "test")
    assert len(done.done) == 3


_KEPT: list[np.ndarray] = []


def _filling(case: Case) -> str:
    """Most of what Dask lets a worker have, which is then free, but for the last block: all others lie below it."""
    blocks = list[np.ndarray]()
    while psutil.Process().memory_info().rss < 0.88 * (2 << 30):
        blocks.append(np.ones(1 << 20))
    _KEPT.extend(blocks[-1:])
    return case.volume


def test_what_dask_sets_for_its_workers_is_not_left_to_our_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "PYTHONHASHSEED")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    with compute_client("", 1) as own:
        (inside,) = own.run(lambda: dict(os.environ)).values()
    assert set(names) <= inside.keys()
    assert not set(names) & os.environ.keys()


def another_than(pid: int, client: Client) -> bool:
    """Whether two are there, none of them that process; the scheduler may not yet know that it has gone."""
    try:
        there = set(client.run(os.getpid).values())
        return len(there) == 2 and pid not in there
    except (OSError, KeyError):
        return False


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which one of our own processes listens; other tests' archives and PACS may run beside it."""
    try:
        if not process.name().startswith("python"):
            return set()
        found = process.net_connections("tcp")
    except psutil.Error:  # it has ended meanwhile
        return set()
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


@pytest.mark.fault("access/loopback")
def test_workers_have_one_blas_thread_and_no_open_port_but_loopback(client: Client) -> None:
    found = client.run(threadpool_info).values()
    assert len(found) == 2
    for pools in found:
        assert pools
        assert {p["num_threads"] for p in pools if p["user_api"] == "blas"} == {1}
    assert client.scheduler.address.startswith("tls://127.0.0.1:")
    me = psutil.Process()
    addresses = set[str]().union(*map(listening, (me, *me.children(recursive=True))))
    assert addresses == {"127.0.0.1"}


def test_a_scheduler_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.preprocess.cluster.CONNECT_SECONDS", 0.5)
    with pytest.raises(ServiceUnavailableError), compute_client("tcp://127.0.0.1:1", 0):
        pass


def test_a_scheduler_that_is_there_is_used() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        compute_client(cluster.scheduler_address, 0) as client,
    ):
        assert client.submit(sum, [1, 2]).result() == 3


@pytest.mark.fault("access/loopback")
def test_strangers_cannot_use_the_local_cluster(client: Client) -> None:
    with pytest.raises(ServiceUnavailableError), compute_client(client.scheduler.address.replace("tls", "tcp"), 0):
        pass


class TestWhatDoesNotExcludeEachOther:
    REGIONS = Reading((LabelClass(name="whole", match=("organ", "les*")), LabelClass(name="lesion", match=("les*",))))

    def test_regions_are_counted_and_prepared_as_bits(self, volumes: Path, root: Path) -> None:
        cases = write_cohort(volumes, 2)
        reading = replace(self.REGIONS, regions=True)
        seen = fingerprint_dataset(None, cases, reading, root, dataset="d", modality="MR")
        assert [case.class_voxels for case in seen.fingerprint.cases] == [(6 * 22 * 20, 2 * 6 * 6)] * 2
        plan = PLAN.model_copy(update={"spacing": (2.0, 0.9, 0.9), "crop": "none"})
        done = prepare_dataset(None, cases, reading, plan, root).done
        flat = prepare_dataset(None, cases, self.REGIONS, plan, root).done
        assert set(done.values()).isdisjoint(flat.values())
        case = PreparedStore(root).open(done[cases[0]])
        assert case.about.regions
        assert case.mask is not None
        assert sorted(np.unique(case.mask)) == [0, 1, 3]
        assert {number: len(v) for number, v in case.locations.items()} == {1: 6 * 22 * 20, 2: 2 * 6 * 6}

    def test_images_of_several_classes_are_counted_class_by_class(self, volumes: Path, root: Path) -> None:
        shows = ((1, 1), (0, 1), (0, 0))
        cases = [replace(case, classes=s) for case, s in zip(write_cohort(volumes, 3), shows, strict=True)]
        reading = Reading((LabelClass(name="a"), LabelClass(name="b")))
        for _ in range(2):  # looked at, and then known
            seen = fingerprint_dataset(None, cases, reading, root, dataset="d", modality="MR")
            assert seen.fingerprint.class_counts == (1, 2)
            assert seen.fingerprint.cases[0].class_voxels == ()
        plan = PLAN.model_copy(update={"size": (8, 32, 32), "spacing": None, "crop": "none"})
        done = prepare_dataset(None, cases, reading, plan, root).done
        assert PreparedStore(root).open(done[cases[0]]).mask is None
