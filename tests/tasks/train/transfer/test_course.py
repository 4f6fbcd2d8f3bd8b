"""Going on from a champion or a file: what is carried over, at what cost, and that it is exact."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.errors import RecipeError
from models.package import TRANSFER_FILE, ModelPackage
from models.plan import Plan
from models.recipe import Start
from tasks.stores.packages import read_package
from tasks.train.loop import TrainEvent
from tasks.train.transfer.course import Origin, chart, part, replayed
from tests.tasks.train import samples
from tests.tasks.train.samples import NO_AUGMENT, World, balls, pictures, train_plan

LEARNING = {"validations": 4, "ema": 0.95, "augment": NO_AUGMENT, "flip_axes": ()}
CHAMPION = Start(source="champion", rate=0.3)


def starting(world: World, start: Start) -> World:
    plan = world.plan.model_copy(update={"train": world.plan.train.model_copy(update={"start": start})})
    return dataclasses.replace(world, plan=plan)


def trained(world: World, folder: Path, origin: Origin | None = None, **more: object) -> ModelPackage:
    return samples.trained(world, folder, origin=origin, **more)


def champion(folder: Path, world: World) -> Origin:
    """A package's weights, which have learnt from all training cases of `world`."""
    package, weights = read_package(folder / "package")
    known = frozenset((row.volume, row.label) for row in world.dataset.split("train"))
    return Origin(weights, package.key, "the champion", known)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Origin, ModelPackage]:
    """What served until now: learnt from six of the nine balls that there are tonight."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, world = tmp_path_factory.mktemp("champion"), balls(train=6, epochs=15, **LEARNING)
    package = trained(world, folder)
    torch.set_num_threads(threads)
    return champion(folder, world), package


def tonight(epochs: int, start: Start = CHAMPION) -> World:
    """Three further balls to learn from; judged on the same two."""
    world = balls(train=6, epochs=epochs, **LEARNING)
    more = balls(train=11, validation=0)
    rows = [r for r in more.dataset.rows if r.volume in ("ball8", "ball9", "ball10")]
    dataset = dataclasses.replace(world.dataset, rows=(*world.dataset.rows, *rows))
    return starting(dataclasses.replace(world, dataset=dataset, store=more.store), start)


def test_a_champion_goes_on_to_the_score_from_scratch_in_a_third_of_the_steps(
    before: tuple[Origin, ModelPackage], tmp_path: Path
) -> None:
    origin, served = before
    whole = served.training
    third = trained(tonight(15), tmp_path / "tuned", origin).training
    scratch = trained(tonight(5, Start()), tmp_path / "scratch").training
    assert third.steps == scratch.steps == whole.steps // 3
    assert third.best_metric > whole.best_metric - 0.05
    # At as many steps from scratch: were the weights not carried over, both would be equal.
    assert third.best_metric > scratch.best_metric + 0.15
    assert third.history[0][2] > scratch.history[0][2] + 0.3


def test_the_package_says_where_it_started_and_what_was_carried_over(
    before: tuple[Origin, ModelPackage], tmp_path: Path
) -> None:
    origin, _ = before
    world = tonight(3)
    package = trained(world, tmp_path, origin)
    assert package.started_from == origin.key
    assert package.plan == world.plan  # the budget is cut anew each night, not once more each night
    assert package.training.epochs == 1
    assert any(
        re.search(r"(\d+) of \1 tensors carried over \(100.0% of the numbers\)$", n) for n in package.training.notes
    )
    assert "the budget is 1 epochs in place of 3 epochs" in package.training.notes
    table = json.loads((tmp_path / "package" / TRANSFER_FILE).read_text())
    assert (table["source"], table["from"], table["carried"]) == ("champion", origin.key, 1)
    assert {layer["how"] for layer in table["layers"]} == {"loaded"}
    assert read_package(tmp_path / "package")[0] == package


@pytest.mark.parametrize("source", ["champion", "weights"])
def test_the_same_start_gives_the_same_bits_and_another_start_others(
    before: tuple[Origin, ModelPackage], tmp_path: Path, source: str
) -> None:
    origin, _ = before
    start = CHAMPION if source == "champion" else Start(source="weights", weights="net.pt", sha256="ab" * 32)
    world = tonight(2, start)
    first = trained(world, tmp_path / "a", origin)
    assert trained(world, tmp_path / "b", origin).weights_sha256 == first.weights_sha256
    other = dataclasses.replace(origin, weights={name: tensor * 0.9 for name, tensor in origin.weights.items()})
    assert trained(world, tmp_path / "c", other).weights_sha256 != first.weights_sha256


def test_an_interrupted_start_from_a_champion_ends_as_an_uninterrupted_one(
    before: tuple[Origin, ModelPackage], tmp_path: Path
) -> None:
    origin, _ = before
    world = tonight(6)
    whole = trained(world, tmp_path / "whole", origin)
    stop = threading.Event()

    def leave(event: TrainEvent) -> None:
        stop.set()

    with pytest.raises(SystemExit):
        trained(world, tmp_path / "cut", origin, on_event=leave, cancel=stop)
    resumed = trained(world, tmp_path / "cut", origin)
    assert any("resumed at step" in note for note in resumed.training.notes)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.training.notes[:2] == whole.training.notes[:2]


def test_fresh_layers_learn_at_the_full_rate(before: tuple[Origin, ModelPackage], tmp_path: Path) -> None:
    """A class more: the head is new, the rest is carried over and moves less."""
    origin, _ = before
    world = tonight(3, Start(source="weights", weights="net.pt", sha256="ab" * 32, rate=0.001))
    plan = world.plan.model_copy(
        update={
            "classes": ("ball", "core", "shell"),
            "network": world.plan.network.model_copy(update={"out_channels": 4}),
        }
    )
    package = trained(dataclasses.replace(world, plan=plan), tmp_path, origin)
    assert any("2 fresh (network.heads.0.weight, network.heads.0.bias)" in note for note in package.training.notes)
    _, weights = read_package(tmp_path / "package")
    moved = {n: float((weights[n] - t).abs().mean()) for n, t in origin.weights.items() if weights[n].shape == t.shape}
    assert max(moved.values()) < 1e-3


class TestCourse:
    def test_a_champion_of_which_little_fits_is_left_and_that_is_said(self) -> None:
        plan = tonight(6).plan
        wider = plan.model_copy(update={"network": plan.network.model_copy(update={"features": (7, 14, 14)})})
        origin = Origin({"elsewhere": torch.zeros(3, 3)}, "k", "the champion")
        course = chart(wider, origin)
        assert (course.plan, course.key, course.match) == (wider, "", None)
        assert "nothing fits: from scratch" in course.notes[0]

    def test_a_file_of_which_nothing_fits_is_an_error(self) -> None:
        plan = tonight(6, Start(source="weights", weights="x", sha256="ab" * 32)).plan
        with pytest.raises(RecipeError, match="fits"):
            chart(plan, Origin({"elsewhere": torch.zeros(3, 3)}, "k", "a file"))

    def test_without_a_champion_the_whole_budget_is_spent_from_scratch(self) -> None:
        plan = tonight(6).plan
        course = chart(plan, None)
        assert course.plan == plan
        assert course.notes == ("there is no champion yet: from scratch",)

    def test_a_part_of_a_budget_is_an_epoch_at_least(self) -> None:
        assert part(train_plan(epochs=30, minutes=9.0), 1 / 3).epochs == 10
        assert part(train_plan(epochs=30, minutes=9.0), 1 / 3).minutes == pytest.approx(3)
        assert part(train_plan(epochs=1), 0.1).epochs == 1

    def test_a_fold_goes_on_from_its_own(self) -> None:
        weights: dict[str, Tensor] = {"0.a.weight": torch.zeros(2, 2), "1.a.weight": torch.ones(2, 2)}
        origin = Origin(weights, "k", "the champion", members=("0", "1"))
        assert torch.equal(origin.of("1").weights["a.weight"], torch.ones(2, 2))
        assert torch.equal(origin.of("").weights["a.weight"], torch.zeros(2, 2))


class TestReplay:
    def test_old_and_new_share_the_draws_as_asked(self) -> None:
        rows = tonight(2).dataset.split("train")
        known = frozenset((row.volume, row.label) for row in rows if row.volume not in ("ball8", "ball9", "ball10"))
        shares = replayed(rows, known, 0.25)
        assert shares is not None
        old = [s for row, s in zip(rows, shares, strict=True) if (row.volume, row.label) in known]
        assert sum(shares) == pytest.approx(1)
        assert sum(old) == pytest.approx(0.25)
        assert len(old) == 6

    def test_with_only_old_or_only_new_cases_all_are_drawn_alike(self) -> None:
        rows = tonight(2).dataset.split("train")
        assert replayed(rows, frozenset(), 0.5) is None
        assert replayed(rows, frozenset((r.volume, r.label) for r in rows), 0.5) is None

    def test_without_replay_nothing_old_is_seen(self, before: tuple[Origin, ModelPackage], tmp_path: Path) -> None:
        """The old cases are gone from the store, and nobody misses them."""
        origin, _ = before
        world = tonight(3, Start(source="champion", replay=0))
        rest = {n: c for n, c in world.store.cases.items() if n in ("ball6", "ball7", "ball8", "ball9", "ball10")}
        poorer = dataclasses.replace(world, store=dataclasses.replace(world.store, cases=rest))
        assert trained(poorer, tmp_path, origin).training.steps == 5


def test_a_classification_goes_on_too(tmp_path: Path) -> None:
    world = pictures(epochs=12, ema=0.9)
    trained(world, tmp_path / "first")
    plan: Plan = starting(pictures(epochs=12, ema=0.9), Start(source="champion", budget=0.25)).plan
    again = dataclasses.replace(world, plan=plan)
    package = trained(again, tmp_path / "second", champion(tmp_path / "first", world))
    assert package.training.epochs == 3
    assert package.training.history[0][2] > 0.9
