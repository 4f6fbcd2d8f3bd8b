"""A sender that is killed after everything has arrived, and before it could write that down."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from models.hospital import Destination
from models.refs import DeliveryRef
from tasks.deliver.run import Dispatcher
from tests.tasks.deliver.installation import stores_at


class Killed(Dispatcher):
    """Ends like a machine that loses its power."""

    def _settle(self, *sent: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    home, destination, delivery = sys.argv[1:]
    target = Destination.model_validate_json(destination)
    Killed(stores_at(Path(home)), [target], ae_title="NOCTURNE", lease_seconds=3600.0).attempt(DeliveryRef.to(delivery))
