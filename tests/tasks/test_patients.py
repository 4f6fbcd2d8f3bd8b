"""Patients as cases, from the catalog to a prediction: one of a patient's series decides, the others show nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.dataset import Dataset
from models.evaluation import Evaluation
from models.hashing import content_key
from models.package import ModelPackage
from models.plan import Plan
from models.recipe import Recipe
from models.refs import DatasetRef, PackageRef, VolumeRef
from tasks.evaluate.run import compare, evaluate_package
from tasks.ingest.build import build_dataset
from tasks.predict.run import choose_volumes, findings, predict_volumes
from tasks.preprocess import stored
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import LabelRow, PlanRow, PredictionRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume, stores_at

SIDE = 16
PATIENTS = 45
RECIPE = """
name = "sets"
kind = "classification"
images.modality = "MR"
labels = {source = "CSV", of = "patient"}
split = {train = 0.6, validation = 0.2, test = 0.2}
network.features = [8, 12]
train = {epochs = 8, steps_per_epoch = 6, batch_size = 12, validations = 4, learning_rate = 8e-3, precision = "fp32"}
augment = {rotation = 0, scaling = 0, noise = 0, blur = 0, brightness = 0, contrast = 0, low_resolution = 0, gamma = 0}
evaluate.bootstrap = 100
"""


def picture(rng: np.random.Generator, *, bright: bool) -> NDArray[np.float32]:
    """Noise, with a square in it or not."""
    image = rng.normal(0, 0.5, (1, SIDE, SIDE)).astype(np.float32)
    if bright:
        y, x = rng.integers(0, SIDE - 6, 2)
        image[0, y : y + 6, x : x + 6] += 4
    return image


def a_patient(stores: Stores, number: int, *, positive: bool, series: int) -> list[VolumeRef]:
    """One to three series in as many studies; of a positive patient one shows it. Returns the volumes."""
    rng, patient = np.random.default_rng(number), f"P-{number:03}"
    shown = int(rng.integers(series)) if positive else -1
    return [
        a_volume(
            stores,
            picture(rng, bright=n == shown),
            study=f"2.25.{number}{n}",
            series=f"{number}-{n}",
            patient=patient,
        )
        for n in range(series)
    ]


def told(stores: Stores, patient: str, value: str, **subject: str) -> None:
    key = content_key("label", patient, *subject.values())
    stores.catalog.add(LabelRow(label=key, patient=patient, source="CSV", name="truth", value=value, **subject))


@dataclass(frozen=True)
class Night:
    """What one night made."""

    stores: Stores
    dataset: Dataset
    ref: DatasetRef
    plan: Plan
    package: PackageRef

    @property
    def described(self) -> ModelPackage:
        return read_description(self.stores.packages.local(self.package.key))

    def evaluation(self) -> Evaluation:
        return self.stores.evaluations.read(evaluate_package(self.stores, self.package, self.ref).key)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A cohort is built, planned, prepared and learnt from; in this process, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stores = stores_at(tmp_path_factory.mktemp("patients"))
    for number in range(PATIENTS):
        a_patient(stores, number, positive=bool(number % 2), series=1 + number % 3)
        told(stores, f"P-{number:03}", "lesion" if number % 2 else "clear")
    recipe = Recipe.parse(RECIPE)
    built = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stored, "compute_client", lambda *_: nullcontext())
        plan = plan_training(stores, recipe, built.ref)
        prepare_planned(stores, recipe, plan)
    row = stores.catalog.get(PlanRow, plan.key)
    assert row is not None
    package = train_package(stores, recipe, plan)
    yield Night(stores, built.dataset, built.ref, Plan.model_validate(row.document), package)
    stores.catalog.close()
    torch.set_num_threads(threads)


def test_the_plan_takes_a_network_of_sets_and_says_what_a_case_is(night: Night) -> None:
    assert (night.plan.of, night.plan.network.name) == ("patient", "patient_attention")
    assert "27 patients are cases, of 1 to 3 series" in night.plan.notes


def test_one_series_decides_over_its_patient(night: Night) -> None:
    evaluation = night.evaluation()
    assert night.described.training.best_metric >= 0.9
    assert evaluation.of("auc").value >= 0.9
    patients = {row.patient for row in night.dataset.split("test")}
    assert evaluation.n_patients == evaluation.n_cases == len(patients) < len(night.dataset.split("test"))


def test_it_is_compared_with_itself_patient_by_patient(night: Night) -> None:
    ref = evaluate_package(night.stores, night.package, night.ref)
    comparison = compare(night.stores, ref, ref)
    assert comparison.n_cases == night.evaluation().n_patients
    assert comparison.primary_difference.value == 0


def test_a_study_is_seen_with_the_patients_others(night: Night) -> None:
    """The lesion shows in the first study alone, and is still known when the second one comes."""
    stores = night.stores
    rng = np.random.default_rng(999)

    def called(volume: VolumeRef) -> tuple[str, float]:
        (key,) = predict_volumes(stores, night.package, choose_volumes(stores, night.package, [volume]))
        row = stores.catalog.get(PredictionRow, key)
        assert row is not None
        assert row.volume == volume.key
        said = findings(stores, key)
        return next(f.class_name for f in said if f.called), next(
            f.confidence for f in said if f.class_name == "lesion"
        )

    def arrived(number: int, *, bright: bool) -> VolumeRef:
        image = picture(rng, bright=bright)
        return a_volume(stores, image, study=f"2.25.999{number}", series=f"999-{number}", patient="P-999")

    assert called(arrived(0, bright=False))[0] == "clear"
    bright = arrived(1, bright=True)
    assert called(bright)[0] == "lesion"
    late = arrived(2, bright=False)
    first = called(late)
    assert first[0] == "lesion"
    assert called(late) == first
    assert stores.catalog.count(PredictionRow) >= 3


def test_the_same_again_to_the_bit(night: Night, tmp_path: Path) -> None:
    from tasks.stores.prepared import prepared_keys
    from tasks.train.run import train

    recipe = Recipe.parse(RECIPE)
    keys = prepared_keys(night.dataset, recipe, night.plan.prepare)
    again = train(
        night.plan,
        recipe,
        night.dataset,
        night.stores.prepared,
        keys,
        tmp_path,
        staged=tmp_path / "package",
        key=night.package.key,
    )
    assert again.weights_sha256 == night.described.weights_sha256
