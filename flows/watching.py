"""What serves is looked at: is what it is shown, and what it says, still as it was?"""

from __future__ import annotations

from flows.artifacts import show_pairs, show_table
from flows.drifting import DRIFT_COLUMNS, drift
from flows.environment import open_stores
from flows.heartbeats import flow
from flows.parts import THREADS
from flows.views import account_told
from models.settings import Settings
from models.watching import Watched
from tasks.register import door as registering
from tasks.stores.account import account
from tasks.stores.house import Stores
from tasks.watch import door as watching


@flow(name="watch", flow_run_name="watch what serves", task_runner=THREADS)
def watch(models: tuple[str, ...] = ()) -> tuple[Watched, ...]:
    """The last predictions of each model that serves beside what it was made and judged on; what has moved is told."""
    stores = open_stores()
    show_pairs("studies", "Every study that was received", account_told(account(stores.catalog)))
    found = watched(stores, models or Settings.load().arrivals.models)
    columns = [column or "moved" for column in DRIFT_COLUMNS]
    show_table("drift", "What has moved", [dict(zip(columns, row, strict=True)) for row in drift(found)])
    return found


def watched(stores: Stores, models: tuple[str, ...]) -> tuple[Watched, ...]:
    """Those models (all that serve, where none is named), each on its own: one that cannot be looked at fails last."""
    looked = [watching.watch.submit(stores, model) for model in registering.serving(stores, models, False)]
    for one in looked:
        one.wait()
    return tuple(one.result() for one in looked)
