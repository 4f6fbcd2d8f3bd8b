"""Folds by patient, and a package that holds a network of each."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dataset import DatasetRow
from models.errors import RecipeError
from models.geometry import Geometry
from models.package import ModelPackage
from models.recipe import Recipe
from tasks.imaging.predictor import Predictor
from tasks.stores.packages import read_package
from tasks.train import learning, school
from tasks.train import run as running
from tasks.train.folds import draw_folds, shared_out
from tasks.train.learning import learn_abreast
from tasks.train.loop import TERMINATED, Termination, TrainEvent
from tasks.train.run import discard_checkpoints, train
from tests.tasks.train.samples import NO_AUGMENT, World, balls, picture, pictures

PATIENTS = st.sets(st.text("abcdef0123456789", min_size=4, max_size=8), min_size=2, max_size=60)


def rows(world: World) -> tuple[tuple[DatasetRow, ...], tuple[DatasetRow, ...]]:
    return world.dataset.split("train"), world.dataset.split("validation")


def trained(world: World, folder: Path, **options: object) -> ModelPackage:
    return train(
        world.plan, world.recipe, world.dataset, world.store, world.keys, folder,
        staged=folder / "package", key="package1", **options,
    )  # type: ignore[arg-type]  # fmt: skip


class TestDrawing:
    @given(PATIENTS, st.integers(2, 10))
    def test_each_patient_has_one_fold_and_no_fold_is_empty(self, patients: set[str], folds: int) -> None:
        if len(patients) < folds:
            with pytest.raises(RecipeError, match=r"train\.folds"):
                draw_folds(patients, folds)
            return
        drawn = draw_folds(patients, folds)
        assert drawn.keys() == patients
        assert set(drawn.values()) == set(range(folds))

    @given(PATIENTS, PATIENTS)
    def test_nobody_moves_when_others_come(self, before: set[str], new: set[str]) -> None:
        crowd = {f"p{i}" for i in range(40)}  # with so many no fold is ever empty
        first, second = draw_folds(before | crowd, 5), draw_folds(before | new | crowd, 5)
        assert all(second[patient] == fold for patient, fold in first.items())

    def test_folds_are_of_about_the_same_size(self) -> None:
        sizes = Counter(draw_folds([f"P-{i}" for i in range(1000)], 5).values())
        assert all(150 < size < 250 for size in sizes.values())

    def test_patients_are_never_split_and_judged_exactly_once(self) -> None:
        world = balls(train=8, validation=4, folds=3)
        several = tuple(
            dataclasses.replace(row, patient=f"p{i // 2}", study=f"s{i}")
            for i, row in enumerate((*rows(world)[0], *rows(world)[1]))
        )
        shares = shared_out(world.plan, several[:8], several[8:])
        assert [share.name for share in shares] == ["0", "1", "2"]
        for share in shares:
            assert not {r.patient for r in share.learnt} & {r.patient for r in share.judged}
            assert sorted([*share.learnt, *share.judged], key=lambda r: r.volume) == sorted(
                several, key=lambda r: r.volume
            )
        judged = [row.volume for share in shares for row in share.judged]
        assert sorted(judged) == sorted(row.volume for row in several)
        assert len({share.plan.seed for share in shares}) == 3

    def test_synthetic_images_are_learnt_from_and_judge_nothing(self) -> None:
        world = balls(train=6, validation=2, folds=2)
        learnt, judged = rows(world)
        made = dataclasses.replace(learnt[0], patient="made", volume="made", synthetic=True)
        shares = shared_out(world.plan, (*learnt, made), judged)
        assert all(made in share.learnt and made not in share.judged for share in shares)

    def test_the_minutes_are_shared_out(self) -> None:
        world = balls(train=8, folds=4, minutes=60.0, epochs=7)
        assert [share.plan.train.minutes for share in shared_out(world.plan, *rows(world))] == [15.0] * 4
        assert shared_out(world.plan, *rows(world), abreast=3)[0].plan.train.minutes == 30.0
        assert shared_out(world.plan, *rows(world), abreast=8)[0].plan.train.minutes == 60.0
        assert shared_out(world.plan, *rows(world))[0].plan.train.epochs == 7

    def test_one_fold_is_the_splits_as_they_are(self) -> None:
        world = balls()
        (share,) = shared_out(world.plan, *rows(world))
        assert (share.name, share.plan, share.learnt, share.judged) == ("", world.plan, *rows(world))


def test_the_folds_of_a_segmentation_are_one_package(tmp_path: Path) -> None:
    world = balls(train=5, validation=2, epochs=8, validations=2, folds=2, augment=NO_AUGMENT, flip_axes=(), ema=0.95)
    package = trained(world, tmp_path)
    described, weights = read_package(tmp_path / "package")
    assert described == package
    assert [member.name for member in package.members] == ["0", "1"]
    record = package.training
    assert record.steps == 80
    assert record.best_metric == pytest.approx(np.mean([fold.best_metric for fold in record.folds]))
    assert [step for step, _, _ in record.history] == [20, 40]
    assert any("2 folds by patient: dice" in note and "±" in note for note in record.notes)
    predictor = Predictor(described, weights, "cpu")
    assert len(predictor.parts) == 1
    unseen = world.store.cases["ball0"]
    assert unseen.mask is not None
    found = predictor.segment(unseen.image[0].astype(np.float32), grid(unseen.mask.shape))
    overlap = ((found.labels > 0) & (unseen.mask > 0)).sum()
    assert 2 * overlap / ((found.labels > 0).sum() + (unseen.mask > 0).sum()) > 0.6


def test_the_folds_of_a_classification_choose_on_everybody(tmp_path: Path) -> None:
    world = pictures(train=20, validation=8, epochs=8, ema=0.9, folds=2)
    package = trained(world, tmp_path)
    assert package.threshold is not None
    assert package.temperature != 1  # 28 cases judged, by networks that had not seen them
    assert any("on 28 cases" in note for note in package.training.notes)
    predictor = Predictor(*read_package(tmp_path / "package"), "cpu")
    chances = [
        float(predictor.classify(picture(500 + i, i % 2).image[0].astype(np.float32), grid((1, 16, 16)))[1])
        for i in range(12)
    ]
    assert np.mean(chances[1::2]) > np.mean(chances[::2]) + 0.2


def test_too_few_cases_calibrate_nothing_and_that_is_said(tmp_path: Path) -> None:
    package = trained(pictures(train=20, validation=6, epochs=1), tmp_path)
    assert package.temperature == 1
    assert any("not calibrated: 6 cases" in note for note in package.training.notes)


def test_a_recipe_may_do_without_calibration(tmp_path: Path) -> None:
    world = pictures(epochs=1)
    recipe = Recipe.model_validate(world.recipe.model_dump() | {"infer": {"calibrate": False}})
    package = trained(dataclasses.replace(world, recipe=recipe), tmp_path)
    assert package.temperature == 1
    assert not any("calibrat" in note for note in package.training.notes)


def test_a_kill_in_the_second_fold_leaves_the_first_alone_and_the_end_is_the_same(tmp_path: Path) -> None:
    world = balls(train=5, validation=2, folds=3, epochs=2)
    whole = trained(world, tmp_path / "whole")
    cancel = threading.Event()
    events: list[TrainEvent] = []

    def stop_in_the_second(event: TrainEvent) -> None:
        events.append(event)
        if len(events) == 3:
            cancel.set()

    with pytest.raises(SystemExit) as left:
        trained(world, tmp_path / "killed", on_event=stop_in_the_second, cancel=cancel)
    assert left.value.code == TERMINATED
    assert not (tmp_path / "killed" / "package").exists()
    first = newest(tmp_path / "killed" / "checkpoints" / "0")
    again: list[TrainEvent] = []
    package = trained(world, tmp_path / "killed", on_event=again.append)
    assert package.weights_sha256 == whole.weights_sha256
    assert [event.step for event in (*events, *again)] == [5, 10] * 3  # nothing was judged twice
    assert newest(tmp_path / "killed" / "checkpoints" / "0") == first
    assert package.temperature == whole.temperature
    assert package.keep_largest == whole.keep_largest
    assert [fold.best_metric for fold in package.training.folds] == [f.best_metric for f in whole.training.folds]
    discard_checkpoints(tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_another_process_ends_with_the_same_network(tmp_path: Path) -> None:
    world = balls(train=5, validation=2, folds=2, epochs=1)
    shares = shared_out(world.plan, *rows(world))
    apart, here = (
        learning.Job(shares[1], world.store, world.keys, tmp_path / place, "k") for place in ("apart", "here")
    )
    learn_abreast([apart], 1, Termination())
    events: list[TrainEvent] = []
    other = learning.learn(apart, Termination(), events.append).network.state_dict()
    assert not events  # the process did it all: here it was only read
    own = learning.learn(here, Termination()).network.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in other.items())


def test_what_a_process_cannot_do_is_tried_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = balls(train=5, validation=2, folds=2, epochs=1)
    lacking = dataclasses.replace(world, store=dataclasses.replace(world.store, cases={}))
    monkeypatch.setattr(running, "places", lambda wanted: 2)
    monkeypatch.setattr(school, "learn_abreast", lambda jobs, abreast, termination: None)  # both have failed
    with pytest.raises(KeyError):
        trained(lacking, tmp_path)


def test_processes_stop_with_the_one_that_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = balls(train=5, validation=2, folds=3, epochs=100_000)
    nothing = dataclasses.replace(world.store, cases={})  # it never comes to open one
    jobs = [
        learning.Job(share, nothing, world.keys, tmp_path / share.name, "k")
        for share in shared_out(world.plan, *rows(world))
    ]
    cancel = threading.Event()
    monkeypatch.setattr(learning, "wait", lambda sentinels, seconds: cancel.set())  # asked once they have begun
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        learn_abreast(jobs, 2, Termination(cancel))
    assert left.value.code == TERMINATED
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGTERM) == before


def newest(folder: Path) -> tuple[str, bytes]:
    path = max(folder.rglob("*.safetensors"))
    return path.name, path.read_bytes()


def grid(shape: tuple[int, int, int]) -> Geometry:
    return Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
