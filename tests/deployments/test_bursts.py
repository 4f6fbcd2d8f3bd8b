"""Many studies that come at the same moment: the server answers all, and none waits longer than it has to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from deployments.blueprint import Blueprint, bring_up
from deployments.names import ARRIVALS_POOL
from tests.components import until
from tests.deployments.conftest import Served
from tests.deployments.trivial import study_arrived

AT_ONCE, RUNS = 24, 60


@pytest.fixture(scope="module")
def deployed(served: Served) -> Served:
    bring_up(served.settings, [Blueprint(study_arrived, "arrivals", ARRIVALS_POOL, "a stand-in", ("arrival",))])
    return served


def test_runs_that_begin_and_end_side_by_side_lock_nobody_out(deployed: Served) -> None:
    """Prefect's own server refuses some of what is written, "database is locked", and misses events."""
    served, flow = deployed, deployed.post("/flows/", {"name": "burst"})["id"]

    def lived(number: int) -> str:
        run = served.post("/flow_runs/", {"flow_id": flow, "state": {"type": "PENDING"}})["id"]
        served.emit(f"burst{number}")
        for kind in ("RUNNING", "COMPLETED"):
            served.post(f"/flow_runs/{run}/set_state", {"state": {"type": kind}})
        return str(served.run(run)["state_type"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(lived, range(RUNS))) == {"COMPLETED"}
    for number in range(RUNS):
        until(lambda: served.runs_of(f"burst{number}"), f"a run for event {number}")  # noqa: B023 - now
    assert "database is locked" not in (served.folder / "server.log").read_text()


def test_what_waits_for_a_free_place_is_taken_when_there_is_one(deployed: Served) -> None:
    """By a worker that looks for work by itself once an hour."""
    served = deployed
    runs = [served.start("study arrived/arrivals", version={"key": f"turn{number}"}) for number in range(3)]
    patient = replace(served, environment={**served.environment, "PREFECT_WORKER_QUERY_SECONDS": "3600"})
    with patient.worker("arrivals"):
        for run in runs:
            served.await_state(run, "Completed")
