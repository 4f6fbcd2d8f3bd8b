"""Runs that were lost with their worker, handed back by it, or never made: all are found and go on."""

from __future__ import annotations

import signal
import subprocess
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS_POOL, SILENT, WORK_POOL
from deployments.watchdog import Patience, Watchdog
from flows.environment import open_stores
from flows.states import AWAY
from models.errors import ServiceUnavailableError
from models.hospital import Services
from tasks.stores.outbox import Outbox
from tasks.stores.tables import OutboxRow, StudyVersionRow, now
from tests.components import DEADLINE_SECONDS, free_port, until
from tests.deployments.conftest import Served, kill_tree
from tests.deployments.trivial import long_work, study_arrived

QUICK = Patience(silent_seconds=2.0, pending_seconds=2.0, unstarted_seconds=0.1, restart_seconds=(0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def deployed(served: Served) -> Served:
    arrivals = Blueprint(study_arrived, "arrivals", ARRIVALS_POOL, "a stand-in", ("arrival",))
    long = Blueprint(long_work, "by-hand", WORK_POOL, "a stand-in", ("training",), limit=1)
    bring_up(served.settings, [arrivals, long])
    return served


def test_a_run_that_was_lost_with_its_worker_is_found_and_one_of_a_stopped_worker_handed_back(deployed: Served) -> None:
    wait: Path = deployed.folder / "lost.wait"
    wait.touch()
    with deployed.worker("worker") as process:
        run = deployed.start("long work/by-hand", key="lost")
        until(lambda: deployed.seen("lost"), "the run's process")
        kill_tree(process)
    assert deployed.run(run)["state_name"] == "Running"  # nobody has noticed
    watchdog = Watchdog(deployed.settings, QUICK)
    until(watchdog.look, "the watchdog's notice")
    assert deployed.states(run)[-2:] == ["Crashed", "AwaitingRetry"]
    wait.unlink()
    with deployed.worker("worker", grace=0.5) as process:
        deployed.await_state(run, "Completed")
        assert len(deployed.seen("lost")) == 2
        stopped_worker_hands_its_run_back(deployed, process)


def stopped_worker_hands_its_run_back(served: Served, process: subprocess.Popen[bytes]) -> None:
    (served.folder / "handed back.wait").touch()
    run = served.start("long work/by-hand", key="handed back")
    until(lambda: served.seen("handed back"), "the run's process")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_SECONDS) == 0
    ((pid, _),) = served.seen("handed back")
    until(lambda: not alive(pid), "the end of the run's process")
    assert served.states(run)[-1] == "AwaitingRetry"
    assert "Crashed" not in served.states(run)


def test_a_study_without_a_run_is_given_one_once(deployed: Served) -> None:
    stores = open_stores(deployed.settings)
    old = now() - timedelta(seconds=5)
    for key in ("forgotten", "untold", "just told"):
        stores.catalog.add(
            StudyVersionRow(version=key, study="study", number=1, instances=[], why="quiet", completed_at=old)
        )
    with stores.catalog.transaction() as session:
        for key in ("untold", "just told"):
            Outbox(stores.catalog).put(session, "event", f"event-{key}", {"version": key})
    stores.catalog.change(OutboxRow, OutboxRow.message == "event-just told", done_at=now() + timedelta(minutes=1))
    assert Watchdog(deployed.settings, QUICK).look() == 1
    assert Watchdog(deployed.settings, QUICK).look() == 0
    (run,) = deployed.runs_of("forgotten")
    assert run["parameters"] == {"version": {"key": "forgotten"}}
    assert deployed.runs_of("untold") == []  # its event is still on its way
    assert deployed.runs_of("just told") == []  # its run is
    stores.catalog.change(StudyVersionRow, finished_at=now())


def test_what_crashes_again_and_again_is_left(deployed: Served) -> None:
    run = deployed.start("long work/by-hand", key="hopeless")
    watchdog = Watchdog(deployed.settings, Patience(restart_seconds=(0.0, 0.0)))
    for restarted in (1, 1, 0, 0):
        deployed.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CRASHED"}, "force": True})
        assert watchdog.look() == restarted
    assert deployed.states(run).count("AwaitingRetry") == 2


@pytest.mark.fault("stores/postgres")
def test_a_study_whose_servers_are_away_is_started_again_for_as_long_as_its_day_lasts(deployed: Served) -> None:
    stores = open_stores(deployed.settings)
    stores.catalog.add(StudyVersionRow(version="waits", study="s", number=1, instances=[], why="quiet"))
    run = deployed.start("study arrived/arrivals", version={"key": "waits"})
    away = {"type": "CRASHED", "name": AWAY, "message": "the catalog does not answer"}
    patient = Watchdog(deployed.settings, Patience(restart_seconds=(), away_seconds=(0.0,), unstarted_seconds=1e9))
    for _ in range(5):
        deployed.post(f"/flow_runs/{run}/set_state", {"state": away, "force": True})
        assert patient.look() == 1
    assert deployed.states(run).count("AwaitingRetry") == 5

    day = timedelta(seconds=3)
    over = Watchdog(deployed.settings, Patience(oldest=day, away_seconds=(0.0,), unstarted_seconds=1e9))
    created = datetime.fromisoformat(deployed.run(run)["created"])
    until(lambda: now() - created > day, "the end of its day")
    deployed.post(f"/flow_runs/{run}/set_state", {"state": away, "force": True})
    assert over.look() == 0
    assert deployed.states(run)[-1] == "Failed"  # of which people are told
    version = stores.catalog.get(StudyVersionRow, "waits")
    assert version is not None
    assert (version.outcome, version.detail) == ("failed", "the catalog does not answer")


@pytest.mark.fault("stores/prefect")
def test_a_server_that_is_away_is_told_and_its_runs_are_not_judged_when_it_returns(
    deployed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = deployed.settings.model_copy(update={"services": Services(prefect_port=free_port())})
    with pytest.raises(ServiceUnavailableError):
        Watchdog(elsewhere, QUICK).look()
    run = deployed.start("long work/by-hand", key="silent")
    deployed.post(f"/flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    until(lambda: _age(deployed, run) > 1.0, "a silent run")
    watchdog = Watchdog(deployed.settings, Patience(silent_seconds=1.0, restart_seconds=(), unstarted_seconds=1e9))
    with monkeypatch.context() as patch:
        patch.setattr("deployments.watchdog.time", SimpleNamespace(monotonic=lambda: 0.0))  # it looks in no time
        assert watchdog.look() == 0
    assert deployed.run(run)["state_name"] == "Running"
    until(lambda: watchdog.look() or deployed.run(run)["state_name"] == "Crashed", "the watchdog's notice")


@pytest.mark.fault("stores/prefect")
def test_a_run_that_went_on_while_the_server_was_away_is_not_started_a_second_time(deployed: Served) -> None:
    run = deployed.start("long work/by-hand", key="going on")
    crashed = {"type": "CRASHED", "message": SILENT}
    deployed.post(f"/flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    deployed.post(f"/flow_runs/{run}/set_state", {"state": crashed, "force": True})
    watchdog = Watchdog(deployed.settings, Patience(revival_seconds=1e9, unstarted_seconds=1e9))
    assert watchdog.look() == 0
    assert deployed.run(run)["state_name"] == "Crashed"  # it may yet give a sign

    heartbeat = {
        "id": str(uuid.uuid4()),
        "occurred": now().isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
    }
    deployed.post("/events", [heartbeat])
    until(lambda: watchdog.look() or deployed.run(run)["state_name"] == "Running", "the run's return")

    deployed.post(f"/flow_runs/{run}/set_state", {"state": crashed, "force": True})
    silent = Patience(revival_seconds=0.5, unstarted_seconds=1e9)
    until(lambda: Watchdog(deployed.settings, silent).look() == 1, "a restart")
    assert deployed.states(run)[-1] == "AwaitingRetry"
    deployed.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def _age(served: Served, run: str) -> float:
    return (now() - datetime.fromisoformat(served.run(run)["state"]["timestamp"])).total_seconds()


def alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
