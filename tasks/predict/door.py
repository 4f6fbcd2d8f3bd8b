"""The doors of the predict room."""

from __future__ import annotations

from models.refs import AnalysisRef, PackageRef, StudyVersionRef, VolumeRef
from tasks.door import door
from tasks.predict import run
from tasks.stores.house import Stores


@door("predict", run_name="predict with {package}")
def predict(stores: Stores, package: PackageRef, candidates: tuple[VolumeRef, ...]) -> tuple[str, ...]:
    """The package on those volumes that its recipe means; returns the predictions' keys."""
    return run.predict_volumes(stores, package, run.choose_volumes(stores, package, candidates))


@door("predict study", run_name="predict {version} with {name} {model_version}")
def analyse(
    stores: Stores,
    version: StudyVersionRef,
    package: PackageRef,
    candidates: tuple[VolumeRef, ...],
    name: str,
    model_version: str,
    role: str,
) -> AnalysisRef:
    """What the package says of a study version; a shadow's is only recorded."""
    return run.analyse(stores, version, package, candidates, name=name, model_version=model_version, role=role)
