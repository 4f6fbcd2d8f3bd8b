"""A study that arrives while its servers are away is not failed: the run says that it waits."""

from __future__ import annotations

import httpx
import pytest
from prefect.client.schemas.objects import StateType

from flows import arrival
from flows.states import AWAY, caused_by_absence
from models.errors import GeometryError, MemoryExhaustedError, ServiceUnavailableError, StoreBusyError, WorkerLostError
from models.refs import StudyVersionRef

_ASKED = httpx.Request("POST", "http://127.0.0.1:4200/api/flow_runs/")


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (ServiceUnavailableError("the catalog does not answer"), True),
        (StoreBusyError("locked"), True),
        (ConnectionRefusedError(), True),
        (httpx.ConnectError("refused"), True),
        (httpx.HTTPStatusError("", request=_ASKED, response=httpx.Response(503)), True),
        (httpx.HTTPStatusError("", request=_ASKED, response=httpx.Response(404)), False),
        (GeometryError("no grid"), False),
        (MemoryExhaustedError("too large"), False),  # the study's own doing
        (WorkerLostError("the process died"), False),
        (KeyError("PatientName"), False),
    ],
    ids=repr,
)
def test_what_is_waited_for(error: Exception, waits: bool) -> None:
    assert caused_by_absence(error) is waits


@pytest.mark.fault("stores/postgres")
def test_a_study_whose_catalog_is_away_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "the catalog does not answer"

    def open_stores() -> None:
        raise ServiceUnavailableError(told)

    monkeypatch.setattr(arrival, "open_stores", open_stores)
    state = arrival.study_arrived(StudyVersionRef(key="a"), return_state=True)
    assert (state.type, state.name, state.message) == (StateType.CRASHED, AWAY, told)
