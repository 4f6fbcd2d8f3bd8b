"""Many studies that come at the same moment: the server answers all, and none waits longer than it has to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS_POOL
from tests.deployments.conftest import Served
from tests.deployments.trivial import study_arrived

AT_ONCE, RUNS = 24, 120


def test_runs_that_begin_and_end_side_by_side_lock_nobody_out(served: Served) -> None:
    """Prefect's own server refuses some of them, "database is locked", and misses events."""
    flow = served.post("/flows/", {"name": "burst"})["id"]

    def lived(number: int) -> str:
        run = served.post("/flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
        served.emit(f"burst{number}")
        for kind in ("RUNNING", "COMPLETED"):
            served.post(f"/flow_runs/{run}/set_state", {"state": {"type": kind}})
        return str(served.run(run)["state_type"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(lived, range(RUNS))) == {"COMPLETED"}
    assert "database is locked" not in (served.folder / "server.log").read_text()


def test_what_waits_for_a_free_place_is_taken_when_there_is_one(served: Served) -> None:
    """By a worker that looks for work by itself once an hour."""
    bring_up(served.settings, [Blueprint(study_arrived, "arrivals", ARRIVALS_POOL, "a stand-in", ("arrival",))])
    runs = [served.start("study arrived/arrivals", version={"key": f"turn{number}"}) for number in range(3)]
    patient = replace(served, environment={**served.environment, "PREFECT_WORKER_QUERY_SECONDS": "3600"})
    with patient.worker("arrivals"):
        for run in runs:
            served.await_state(run, "Completed")
