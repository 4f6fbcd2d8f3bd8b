"""From prepared cases to a package that the predictor can use."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.errors import NothingToDoError
from models.geometry import Geometry
from models.package import PACKAGE_FILE, WEIGHTS_FILE, ModelPackage
from models.plan import Fingerprint, Plan
from models.recipe import Recipe
from tasks.imaging.predictor import Predictor
from tasks.stores.packages import read_package
from tasks.stores.prepared import About, PreparedStore
from tasks.train.run import discard_checkpoints, train
from tests.tasks.train import samples
from tests.tasks.train.samples import NO_AUGMENT, World, ball, balls, picture, pictures

LEARNING = {"epochs": 16, "validations": 4, "ema": 0.95, "augment": NO_AUGMENT, "flip_axes": ()}


def trained(world: World, folder: Path) -> ModelPackage:
    seen = Fingerprint(dataset="d", modality="MR", cases=(), intensities=(), crop_ratio=1.0)
    return samples.trained(world, folder, code="abc", fingerprint=seen)


def grid(shape: tuple[int, int, int]) -> Geometry:
    return Geometry.from_spacing(shape, (1.0, 1.0, 1.0))


def test_a_segmentation_learns_and_its_package_segments(tmp_path: Path) -> None:
    package = trained(balls(**LEARNING), tmp_path)
    assert package.training.best_metric > 0.75
    assert package.training.stopped_by == "epochs"
    assert (package.training.steps, package.training.epochs) == (80, 16)
    assert [s for s, _, _ in package.training.history] == [20, 40, 60, 80]
    described, weights = read_package(tmp_path / "package")
    assert described == package
    unseen = ball(99)
    assert unseen.mask is not None
    found = Predictor(described, weights, "cpu").segment(unseen.image[0].astype(np.float32), grid(unseen.mask.shape))
    overlap = ((found.labels > 0) & (unseen.mask > 0)).sum()
    assert 2 * overlap / ((found.labels > 0).sum() + (unseen.mask > 0).sum()) > 0.8
    assert all(0.3 < c <= 1 for c in found.confidence)


def test_a_classification_learns_and_its_package_classifies(tmp_path: Path) -> None:
    package = trained(pictures(epochs=16, ema=0.9), tmp_path)
    assert package.training.best_metric > 0.9
    assert package.threshold is not None
    assert 0 < package.threshold < 1
    predictor = Predictor(*read_package(tmp_path / "package"), "cpu")
    chances = [
        float(predictor.classify(picture(500 + i, i % 2).image[0].astype(np.float32), grid((1, 16, 16)))[1])
        for i in range(12)
    ]
    assert np.mean(chances[1::2]) > np.mean(chances[::2]) + 0.3


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    first = trained(balls(), tmp_path)
    again = trained(balls(), tmp_path)
    assert again.weights_sha256 == first.weights_sha256
    assert again.training.steps == first.training.steps
    discard_checkpoints(tmp_path)
    assert not list(tmp_path.rglob("step-*"))


def test_a_changed_plan_starts_anew(tmp_path: Path) -> None:
    trained(balls(), tmp_path)
    package = trained(balls(learning_rate=5e-3), tmp_path)
    assert not any("resumed" in note for note in package.training.notes)


def test_without_validation_cases_the_last_weights_are_taken_and_that_is_said(tmp_path: Path) -> None:
    package = trained(balls(validation=0), tmp_path)
    assert package.training.best_step == 10
    assert package.training.history == ()
    assert package.keep_largest == ()
    assert any("no validation case" in note for note in package.training.notes)
    described, _ = read_package(tmp_path / "package")
    assert described == package


@pytest.mark.parametrize(("keep", "expected"), [(True, ("ball", "core")), (False, ())])
def test_the_plan_may_settle_which_components_stay(tmp_path: Path, keep: bool, expected: tuple[str, ...]) -> None:
    world = balls(epochs=1)
    plan = world.plan.model_copy(update={"infer": world.plan.infer.model_copy(update={"keep_largest": keep})})
    assert trained(dataclasses.replace(world, plan=plan), tmp_path).keep_largest == expected


def test_a_given_threshold_is_taken(tmp_path: Path) -> None:
    world = pictures(epochs=1)
    recipe = Recipe.model_validate(world.recipe.model_dump() | {"evaluate": {"threshold": 0.25}})
    assert trained(dataclasses.replace(world, recipe=recipe), tmp_path).threshold == 0.25


def test_the_packages_json_is_plain(tmp_path: Path) -> None:
    trained(balls(epochs=1), tmp_path)
    described = json.loads((tmp_path / "package" / PACKAGE_FILE).read_text())
    assert Plan.model_validate(described["plan"]) == balls(epochs=1).plan
    assert described["environment"]["code"] == "abc"
    assert sorted(p.name for p in (tmp_path / "package").iterdir()) == sorted((PACKAGE_FILE, WEIGHTS_FILE))


class TestRefusals:
    def test_no_training_case(self, tmp_path: Path) -> None:
        with pytest.raises(NothingToDoError):
            trained(balls(train=0), tmp_path)

    def test_no_prepared_training_case(self, tmp_path: Path) -> None:
        world = balls()
        with pytest.raises(NothingToDoError):
            train(world.plan, world.recipe, world.dataset, world.store, {}, tmp_path, staged=tmp_path / "p", key="k")


def test_cases_that_could_not_be_prepared_are_left_out(tmp_path: Path) -> None:
    world, folder = balls(epochs=1), tmp_path / "without"
    keys = {pair: key for pair, key in world.keys.items() if key != "ball0"}
    train(world.plan, world.recipe, world.dataset, world.store, keys, folder, staged=folder / "package", key="k")
    fewer = World(
        world.plan,
        world.recipe,
        dataclasses.replace(world.dataset, rows=tuple(r for r in world.dataset.rows if r.volume != "ball0")),
        world.store,
    )
    package = trained(fewer, tmp_path / "fewer")
    assert package.weights_sha256 == read_package(folder / "package")[0].weights_sha256


def test_the_real_prepared_store_gives_the_same_weights(tmp_path: Path) -> None:
    world, store = balls(epochs=1), PreparedStore(tmp_path / "prepared")
    for name, case in world.store.cases.items():
        assert case.mask is not None
        place = grid(case.mask.shape)
        whole = tuple((0, n) for n in case.mask.shape)
        store.write(name, case.image, case.mask, About(name, place, place, whole))  # type: ignore[arg-type]
    mapped = train(
        world.plan, world.recipe, world.dataset, store, world.keys, tmp_path / "w", staged=tmp_path / "p", key="k"
    )
    assert mapped.weights_sha256 == trained(world, tmp_path / "memory").weights_sha256


def test_training_and_predicting_need_no_prefect_zarr_pydicom_or_monai() -> None:
    unwanted = ("prefect", "zarr", "pydicom", "monai", "mlflow", "pandas", "sqlalchemy", "nibabel", "skimage")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({unwanted!r}))\n"
        "import tasks.train.run, tasks.imaging.predictor, tasks.stores.packages, tasks.stores.prepared"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise() -> None:
    code = "import sys, tasks, os; assert 'torch' not in sys.modules\nprint(os.environ['OMP_WAIT_POLICY'])"
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        told = subprocess.run(
            [sys.executable, "-c", code], env=unset | given, check=True, capture_output=True, text=True
        )
        assert told.stdout.strip() == expected
