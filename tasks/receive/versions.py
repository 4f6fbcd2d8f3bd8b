"""A study version on its way through a flow run: taken up, and brought to an end."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from models.errors import NotFoundError
from models.refs import BatchRef, StudyVersionRef
from tasks.stores.house import Stores
from tasks.stores.tables import StudyVersionRow, now

Outcome = Literal["delivered", "waiting", "predicted", "ingested", "nothing-fits", "quarantined", "refused", "failed"]


class Opened(BaseModel):
    """A study version as a flow finds it. `done_by` names the run that has brought it to an end already."""

    model_config = ConfigDict(frozen=True)
    study: str
    number: int
    instances: int
    batch: BatchRef | None = None
    flags: tuple[str, ...] = ()
    done_by: str | None = None


def open_version(stores: Stores, ref: StudyVersionRef, run: str) -> Opened:
    """Take a version up for flow run `run`. Raises NotFoundError.

    A version that was brought to an end is not opened again, unless it failed.
    """
    row = _row(stores, ref)
    opened = Opened(study=row.study, number=row.number, instances=len(row.instances), flags=tuple(map(str, row.flags)))
    if row.finished_at is not None and row.outcome != "failed":
        return opened.model_copy(update={"done_by": row.run})
    stores.catalog.change(
        StudyVersionRow, StudyVersionRow.version == ref.key, run=run, started_at=row.started_at or now()
    )
    paths = [Path(path) for path in stores.spool.paths(row.study, [str(digest) for digest in row.instances])]
    return opened.model_copy(update={"batch": stores.seal_batch(paths)})


def close_version(stores: Stores, ref: StudyVersionRef, outcome: Outcome, detail: str = "") -> None:
    """Say what became of it."""
    stores.catalog.change(
        StudyVersionRow,
        StudyVersionRow.version == ref.key,
        outcome=outcome,
        detail=detail[:500],
        finished_at=now(),
    )


def _row(stores: Stores, ref: StudyVersionRef) -> StudyVersionRow:
    row = stores.catalog.get(StudyVersionRow, ref.key)
    if row is None:
        raise NotFoundError("no such study version", where=ref.key, hint="see `nocturne status`")
    return row
