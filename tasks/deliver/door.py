"""The door of the deliver room."""

from __future__ import annotations

from models.hospital import Destination
from models.refs import AnalysisRef
from tasks.deliver.run import Delivered, Dispatcher, enqueue
from tasks.door import door
from tasks.stores.house import Stores


@door("deliver", run_name="deliver {analysis}")
def deliver(
    stores: Stores, analysis: AnalysisRef, destinations: tuple[Destination, ...], ae_title: str
) -> tuple[Delivered, ...]:
    """Put an analysis's results on their way and try at once; what cannot be sent now waits for the relay."""
    dispatcher = Dispatcher(stores, destinations, ae_title=ae_title)
    return tuple(dispatcher.see_through(ref) for ref in enqueue(stores, analysis, destinations))
