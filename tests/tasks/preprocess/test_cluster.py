"""On a Dask cluster by its address: several worker processes, TLS, workers that die and workers that do not belong."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cloudpickle
import numpy as np
import pytest
from distributed import Reschedule, Worker

from models.errors import (
    ServiceUnavailableError,
    SettingsError,
    TransientError,
    WorkerLostError,
)
from models.plan import Normalisation, PreparePlan
from tasks.preprocess import cluster, run
from tasks.preprocess.cluster import compute_client
from tasks.preprocess.run import Case, case_key, fingerprint_dataset, prepare_dataset
from tasks.preprocess.workers import OfThisHouse, of_this_house, registered
from tasks.stores.house import DaskTls
from tasks.stores.places import open_place
from tasks.stores.prepared import PreparedStore
from tests.components import until
from tests.dask_cluster import ROOT, DaskCluster, certificates, running_dask
from tests.tasks.preprocess.cases import READING, write_cohort

PLAN = PreparePlan(
    dimensions=3, spacing=(0.8, 0.6, 0.6), crop="nonzero", normalisation=(Normalisation(scheme="zscore"),)
)


@pytest.fixture(scope="module")
def behind_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler behind TLS, and two workers with their nannies."""
    folder = tmp_path_factory.mktemp("tls")
    with running_dask(folder, tls=certificates(folder / "pem"), workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler on loopback without TLS, and without workers."""
    with running_dask(tmp_path_factory.mktemp("bare")) as running:
        yield running


@pytest.fixture
def empty(bare: DaskCluster) -> Iterator[DaskCluster]:
    """As `bare`; workers that a test starts end with it."""
    yield bare
    for worker in list(bare.workers):
        bare.kill(worker)
    bare.await_workers(0)


def test_a_killed_worker_loses_nothing(behind_tls: DaskCluster, tmp_path: Path) -> None:
    cases = write_cohort(tmp_path / "volumes", 10, (16, 60, 60))
    there, here = tmp_path / "there", tmp_path / "here"
    keys = [case_key(case, READING, PLAN) for case in cases]
    store = PreparedStore(there)

    def kill_midway() -> None:
        until(lambda: any(map(store.exists, keys)) or any((there / ".staging").glob("*")), "work has begun")
        behind_tls.kill(behind_tls.workers[0])

    killer = threading.Thread(target=kill_midway)
    with (
        compute_client(behind_tls.address, 0, behind_tls.tls) as client,
        of_this_house(client, there, open_place(cases[0].url), [case.volume for case in cases]),
    ):
        killer.start()
        looked = fingerprint_dataset(client, cases, READING, there, dataset="d", modality="MR")
        done = prepare_dataset(client, cases, READING, PLAN, there)
        killer.join()
    assert looked == fingerprint_dataset(None, cases, READING, here, dataset="d", modality="MR")
    assert done == prepare_dataset(None, cases, READING, PLAN, here)
    assert sorted(done.done.values()) == sorted(keys) == sorted(store._place.keys())
    for key in keys:
        there_case, here_case = store.open(key), PreparedStore(here).open(key)
        np.testing.assert_array_equal(there_case.image, here_case.image)
        np.testing.assert_array_equal(there_case.mask, here_case.mask)
    assert list((there / ".shared").iterdir()) == []
    assert all(left.startswith(".staging/") for left in store.sweep(keys, older_than_seconds=-1))


def test_what_is_sent_are_references(tmp_path: Path) -> None:
    cases = write_cohort(tmp_path / "volumes", 2, (30, 90, 90))
    for work in (
        partial(run._look, reading=READING, root=tmp_path, seed=0),
        partial(run._prepare, reading=READING, plan=PLAN, root=tmp_path),
    ):
        assert len(cloudpickle.dumps((partial(run._guarded, work), cases))) < 5000


class TestAScheduler:
    def test_behind_tls_wants_the_right_certificates(
        self, behind_tls: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 3)
        with pytest.raises(ServiceUnavailableError, match="other certificates"):
            entered(behind_tls.address, 0, certificates(tmp_path))
        with pytest.raises(ServiceUnavailableError):
            entered(behind_tls.address.replace("tls", "tcp"), 0)
        with pytest.raises(SettingsError, match="no certificates"):
            entered(behind_tls.address, 0)

    @pytest.mark.parametrize("address", ["tcp://10.0.0.7:8786", "gpu-7:8786", "tcp://[2001:db8::7]:8786"])
    def test_on_another_machine_has_to_be_behind_tls(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SettingsError, match="without TLS"):
            cluster._security(address, None, False)
        assert cluster._security(address, None, True) is None

    @pytest.mark.parametrize(
        "address", ["tcp://127.0.0.1:8786", "127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786", "inproc://x"]
    )
    def test_on_this_machine_need_not(self, address: str) -> None:
        assert cluster._security(address, None, False) is None

    def test_certificates_that_do_not_work_are_told(self, tmp_path: Path) -> None:
        good = certificates(tmp_path)
        (tmp_path / "no.pem").write_text("no certificate")
        with pytest.raises(SettingsError, match="not tls://"):
            cluster._security("tcp://127.0.0.1:8786", good, False)
        with pytest.raises(SettingsError, match="tls_client_key cannot be read"):
            cluster._security("tls://h:8786", DaskTls(good.ca, good.cert, tmp_path / "absent"), False)
        with pytest.raises(SettingsError, match="cannot be used"):
            cluster._security("tls://h:8786", DaskTls(good.ca, good.cert, tmp_path / "no.pem"), False)

    def test_without_workers_may_get_some(self, empty: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2)
        with pytest.raises(ServiceUnavailableError, match="no workers"):
            entered(empty.address, 0)

    def test_whose_workers_all_die_is_not_waited_for(
        self, empty: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "LONELY_SECONDS", 2.0)
        worker = empty.start_worker()
        begun = tmp_path / "begun"

        def kill() -> None:
            until(begun.exists, "it has begun")
            empty.kill(worker)

        killer = threading.Thread(target=kill)
        with compute_client(empty.address, 0) as client:
            killer.start()
            with pytest.raises(WorkerLostError):
                run._each(client, partial(_never, begun=begun), [Case("", "a"), Case("", "b")], "test")
            killer.join()

    def test_that_dies_is_told_as_what_may_come_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "LONELY_SECONDS", 2.0)
        begun = tmp_path / "begun"
        with running_dask(tmp_path / "dask", workers=1) as own:
            assert own.scheduler

            def kill() -> None:
                until(begun.exists, "it has begun")
                own.scheduler.stop(at_once=True)  # type: ignore[union-attr]

            killer = threading.Thread(target=kill)
            with compute_client(own.address, 0) as client:
                client._timeout = 1.0  # for so long it looks for a scheduler that has gone
                killer.start()
                with pytest.raises(TransientError):
                    run._each(client, partial(_never, begun=begun), [Case("", "a"), Case("", "b")], "test")
                killer.join()


def _never(case: Case, begun: Path) -> str:
    begun.touch()
    threading.Event().wait()
    return case.volume


def entered(*given: Any) -> None:
    with compute_client(*given):
        pass


class TestAWorker:
    def test_and_the_scheduler_are_left_as_they_were(self, empty: DaskCluster) -> None:
        empty.start_worker()
        entered(empty.address, 0)
        with empty.client() as client:
            left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
        assert not [name for name in left if name.startswith("nocturne")]

    def test_with_other_code_is_told(self, empty: DaskCluster, tmp_path: Path) -> None:
        for name in ("models", "tasks"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        with (tmp_path / "tasks" / "imaging" / "prepare.py").open("a") as file:
            file.write("\n# of another night\n")
        empty.start_worker(environment={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
        cases = write_cohort(tmp_path / "volumes", 1)
        with (
            compute_client(empty.address, 0) as client,
            pytest.raises(SettingsError, match="another version") as caught,
            of_this_house(client, tmp_path / "prepared", open_place(cases[0].url), [cases[0].volume]),
        ):
            pass
        assert "127.0.0.1" in str(caught.value)
        assert "install the same version" in str(caught.value)

    def test_without_nocturne_is_told(self, empty: DaskCluster, tmp_path: Path) -> None:
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "__init__.py").write_text("raise ImportError('no such package')")
        empty.start_worker(environment={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
        empty.await_workers(1)
        with pytest.raises(SettingsError, match="has no Nocturne"):
            entered(empty.address, 0)

    def test_that_does_not_see_our_folders_is_told(self, behind_tls: DaskCluster, tmp_path: Path) -> None:
        (case,) = write_cohort(tmp_path / "volumes", 1)
        (tmp_path / "prepared" / ".shared").mkdir(parents=True)
        (tmp_path / "prepared" / ".shared" / "t").touch()
        told = {
            "folder of prepared arrays": OfThisHouse(tmp_path / "absent", "t", case.url, case.volume),
            "see the volumes": OfThisHouse(tmp_path / "prepared", "t", str(tmp_path / "gone"), case.volume),
            "see the volumes ": OfThisHouse(tmp_path / "prepared", "t", case.url, "never"),
        }
        with compute_client(behind_tls.address, 0, behind_tls.tls) as client:
            for what, plugin in told.items():
                with pytest.raises(SettingsError, match=what.strip()) as caught, registered(client, plugin):
                    pass
                assert "tls://127.0.0.1" in str(caught.value)
        assert not (tmp_path / "gone").exists()

    def test_that_does_not_belong_has_its_work_done_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stranger = OfThisHouse(Path("absent"), "t", "", "")
        worker = SimpleNamespace(plugins={"p": stranger}, memory_manager=SimpleNamespace(memory_limit=None))
        monkeypatch.setattr("tasks.preprocess.workers.get_worker", lambda: worker)
        assert run._on_worker(lambda case: case.volume, Case("", "v")) == "v"
        stranger.unfit = SettingsError("does not belong")
        with pytest.raises(Reschedule):
            run._on_worker(lambda case: case.volume, Case("", "v"))

    def test_that_may_not_write_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".shared").mkdir()
        (tmp_path / ".shared" / "t").touch()
        monkeypatch.setattr(os, "access", lambda *_: False)
        beating = SimpleNamespace(is_running=lambda: True)
        worker = cast("Worker", SimpleNamespace(address="tcp://w", periodic_callbacks={"heartbeat": beating}))
        with pytest.raises(SettingsError, match="may not write"):
            OfThisHouse(tmp_path, "t", str(tmp_path), "").setup(worker)

    def test_that_joins_later_has_to_belong_too(self, empty: DaskCluster, tmp_path: Path) -> None:
        cases = write_cohort(tmp_path / "volumes", 3)
        first = empty.start_worker()
        with (
            compute_client(empty.address, 0) as client,
            of_this_house(client, tmp_path / "prepared", open_place(cases[0].url), [case.volume for case in cases]),
        ):
            second = empty.start_worker("--no-nanny")
            empty.await_workers(2)
            empty.kill(second)
            for token in (tmp_path / "prepared" / ".shared").iterdir():
                token.unlink()
            stranger = empty.start_worker("--no-nanny")
            until(lambda: stranger.poll() is not None, "the stranger is turned away")
            assert "does not see the folder" in empty.log()
            assert first.poll() is None
            done = prepare_dataset(client, cases, READING, PLAN, tmp_path / "prepared")
        assert len(done.done) == 3
