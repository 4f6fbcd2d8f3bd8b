"""The whole main job on phantoms: DICOM in, a registered model out, and a study that it then looks at."""

from __future__ import annotations

from flows.environment import open_stores
from flows.heartbeats import flow
from flows.memory import demo_recipe, remember_demo
from flows.predict import predict
from flows.retrain import retrain
from models.registration import Shown
from tasks.cohort import door as cohort


@flow(name="demo", flow_run_name="demo of {patients} patients")
def demo(patients: int = 24) -> Shown:
    """Write the cohort, retrain on what arrived, and predict the study that arrives afterwards."""
    stores, recipe = open_stores(), demo_recipe()
    written = cohort.write(stores, patients=patients, broken=2)

    night = retrain(recipe, stores.seal_batch([written.incoming]))
    predictions = predict(stores.seal_batch([written.held_out]), recipe.name)

    shown = Shown(night=night, predictions=predictions)
    remember_demo(stores, patients, shown)
    return shown
