"""A model that does harm is taken out of service: the champion before it serves the next study."""

from __future__ import annotations

from typing import Annotated

from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows.artifacts import show_pairs
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.night import for_this_night
from tasks.register import door as registering

Said = Annotated[str, Field(min_length=1, pattern=r"\S")]


class RolledBack(BaseModel):
    """Which version served, which serves now, and who wanted it so."""

    model_config = ConfigDict(frozen=True)
    model: str
    before: str
    serving: str
    who: str
    reason: str


@flow(name="rollback", flow_run_name="rollback {model}")
def rollback(model: Said, reason: Said, name: Said = "prefect") -> RolledBack:
    """Let the champion before this one serve again; once more goes one further back.

    Args:
        model: The model: its recipe's name, as on its page in MLflow.
        reason: Why. Kept in the audit trail.
        name: Your name. Kept in the audit trail.
    """
    stores = open_stores()
    # Whatever happens to this run, it goes back by one from the version that served when it began.
    before = for_this_night(registering.serving_version)(stores, model)
    told = reason if name != "prefect" else f"{reason} (run {flow_run.id})"
    serving = registering.rollback(stores, model, before, name, told)
    done = RolledBack(model=model, before=before, serving=serving, who=name, reason=reason)
    show_pairs("rollback", f"{model}: version {serving} serves again", done.model_dump().items())
    return done
