"""`nocturne`, stopped at gates until somebody opens them: `python -m tests.faults.gates FOLDER GATES WORDS…`.

What is done to a server meanwhile meets the night at that very point, however long it takes: `FOLDER/GATE.reached`
tells that it stands there, `FOLDER/GATE.open` lets it go on. GATES are names joined by commas.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.05


class Gates:
    """Those of one process, each passed once it was opened."""

    def __init__(self, folder: Path, names: frozenset[str]) -> None:
        self._folder, self._names = folder, names

    def wait(self, name: str) -> None:
        """Here, where it is one of those asked for."""
        if name not in self._names:
            return
        (self._folder / f"{name}.reached").touch()
        looking = threading.Event()
        while not (self._folder / f"{name}.open").exists():
            looking.wait(_LOOK_SECONDS)

    def before(self, owner: type, method: str, name: str, meant: Callable[..., bool] = lambda *_: True) -> None:
        """Each call of `owner.method` that is `meant` waits at `name`."""
        self._held(owner, method, name, meant, first=True)

    def after(self, owner: type, method: str, name: str, meant: Callable[..., bool] = lambda *_: True) -> None:
        """As `before`, once it has returned."""
        self._held(owner, method, name, meant, first=False)

    def _held(self, owner: type, method: str, name: str, meant: Callable[..., bool], *, first: bool) -> None:
        real = getattr(owner, method)

        @wraps(real)
        def held(*arguments: Any, **named: Any) -> Any:
            wait = meant(*arguments)
            if wait and first:
                self.wait(name)
            result = real(*arguments, **named)
            if wait and not first:
                self.wait(name)
            return result

        setattr(owner, method, held)


def hold(gates: Gates) -> None:
    """In the middle of each stage: where something was begun that has to be there whole, or not at all."""
    from mlflow import MlflowClient

    from tasks.stores.catalog import Catalog
    from tasks.stores.remote import RemotePlace
    from tasks.stores.tables import PackageRow, PlanRow, VolumeRow
    from tasks.train.learner import Learner

    for name, kind in (("volume", VolumeRow), ("plan", PlanRow), ("package", PackageRow)):
        # Inserted, and not committed.
        gates.after(Catalog, "insert", name, lambda *given, k=kind: isinstance(given[2], k))
    gates.before(Learner, "step", "step", lambda learner, *_: learner.position.step == 7)
    gates.before(MlflowClient, "create_model_version", "version")
    # Its files are sent, and nothing says that they count.
    gates.before(RemotePlace, "_mark", "upload")


if __name__ == "__main__":
    from flows.environment import prepare_environment
    from models.settings import Settings

    prepare_environment(Settings.load())  # before MLflow is imported
    hold(Gates(Path(sys.argv[1]), frozenset(sys.argv[2].split(","))))
    from flows.cli import main

    sys.argv = ["nocturne", *sys.argv[3:]]
    main()
