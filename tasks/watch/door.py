"""The door of the watch room."""

from __future__ import annotations

from models.registration import Serving
from models.watching import Watched
from tasks.door import door
from tasks.stores.house import Stores
from tasks.watch import run


@door("watch", run_name="watch {model.name} {model.version}", minutes=None)  # one beside another, in threads
def watch(stores: Stores, model: Serving) -> Watched:
    """A serving model's last predictions beside what it was made and judged on; what has moved is told, once."""
    return run.watch(stores, model)
