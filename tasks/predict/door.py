"""The door of the predict room."""

from __future__ import annotations

from models.refs import PackageRef, VolumeRef
from tasks.door import door
from tasks.predict.run import choose_volumes, predict_volumes
from tasks.stores.house import Stores


@door("predict", run_name="predict with {package}", tags=["predict"])
def predict(stores: Stores, package: PackageRef, candidates: tuple[VolumeRef, ...]) -> tuple[str, ...]:
    """The package on those volumes that its recipe means; returns the predictions' keys."""
    return predict_volumes(stores, package, choose_volumes(stores, package, candidates))
