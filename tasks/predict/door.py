"""The doors of the predict room."""

from __future__ import annotations

from models.recipe import Recipe
from models.refs import AnalysisRef, DatasetRef, PackageRef, StudyVersionRef, VolumeRef
from tasks.door import door
from tasks.predict import run, synthesis
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


@door("synthesise", run_name="synthesise with {source} for {recipe.name}", minutes=120)
def synthesise(stores: Stores, recipe: Recipe, dataset: DatasetRef, source: PackageRef) -> DatasetRef:
    """The dataset with made images of the classes that the recipe names, in the training split alone."""
    return synthesis.add_synthetic(stores, recipe, dataset, source)
