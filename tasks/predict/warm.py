"""Models that stay loaded between studies, a few in each process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from models.package import ModelPackage
from models.refs import PackageRef
from tasks.imaging.predictor import Predictor
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package

KEPT = 4
"""Models kept loaded: champions and a challenger."""

Loaded = tuple[ModelPackage, Predictor]

_devices: dict[str, threading.Lock] = {}


class Warm:
    """The `limit` predictors that were used last. Safe to share between threads.

    A package's bytes are proven against its digest when they are loaded; one that was written anew since, by its
    description or its weights' digest, is loaded anew.
    """

    def __init__(self, limit: int = KEPT, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
        self.limit, self.device = limit, device
        self._kept: OrderedDict[str, Loaded] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def predictor_for(self, stores: Stores, package: PackageRef) -> Loaded:
        """The package and its predictor. Raises NotFoundError, IntegrityError, PackageError."""
        folder = stores.packages.local(package.key)
        described = read_description(folder)
        if (known := self._known(described)) is not None:
            return known
        with self._loading:  # one at a time: whoever waits for the same package finds it loaded
            if (known := self._known(described)) is not None:
                return known
            proven, weights = read_package(folder)
            loaded = proven, Predictor(proven, weights, self.device)
            with self._lock:
                self._kept[package.key] = loaded
                self._kept.move_to_end(package.key)
                while len(self._kept) > self.limit:
                    self._kept.popitem(last=False)
            return loaded

    def forget(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept.clear()

    def _known(self, described: ModelPackage) -> Loaded | None:
        with self._lock:
            found = self._kept.get(described.key)
            if found is None or found[0] != described:
                return None
            self._kept.move_to_end(described.key)
            return found


WARM = Warm()
"""This process's."""


def predictor_for(stores: Stores, package: PackageRef) -> Loaded:
    """The package and its predictor, loaded if it is not yet. Raises NotFoundError, IntegrityError, PackageError."""
    return WARM.predictor_for(stores, package)


@contextmanager
def alone_on(device: torch.device) -> Iterator[None]:
    """One thread at a time computes on a device: two images at once would need twice the memory and gain nothing."""
    with _devices.setdefault(str(device), threading.Lock()):
        yield
