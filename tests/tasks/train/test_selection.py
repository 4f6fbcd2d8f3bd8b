"""The best of several configurations, or the best two together, by cross-validation."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.errors import RecipeError, TrainingError
from models.package import ModelPackage, TrainingRecord
from models.plan import Candidate, Plan
from models.recipe import Recipe
from tasks.imaging.predictor import Predictor
from tasks.preprocess.plan import make_plan
from tasks.stores.packages import read_package
from tasks.train import run as running
from tasks.train.learning import Learnt
from tasks.train.loop import TERMINATED, TrainEvent
from tasks.train.patches import Cases
from tasks.train.school import Taught
from tasks.train.selection import compared, told
from tasks.train.transfer.course import Course
from tasks.train.validate import ImageValidation
from tests.tasks.preprocess.cases import fingerprint, recipe
from tests.tasks.train.cascades import LOW_SPACING, cascade, grid, trained
from tests.tasks.train.samples import NO_AUGMENT, MemoryCase, MemoryStore, World, ball, pictures

SHORT = {"train": 5, "validation": 1, "folds": 2, "epochs": 1, "validations": 1, "augment": NO_AUGMENT, "flip_axes": ()}


class Looks(nn.Module):
    """At one half of an image: logits of two classes."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        half = x[..., :8] if self.left else x[..., 8:]
        mean = half.flatten(1).mean(1)
        return torch.stack((-mean, mean), 1)


def looking(*halves: bool) -> dict[str, Taught]:
    """Configurations that look at the left or the right half, of which each image of class 1 has one bright."""
    world = pictures()
    images, targets = [], []
    for number in range(16):
        image = np.zeros((1, 1, 16, 16), np.float16)
        target = number % 2
        side = slice(0, 8) if number % 4 < 2 else slice(8, 16)
        image[..., side] = 4.0 if target else -0.5
        images.append(MemoryCase(image))
        targets.append(target)
    store = MemoryStore({str(n): image for n, image in enumerate(images)})
    judge = ImageValidation(Cases(store, list(store.cases)), tuple(targets), world.plan, torch.device("cpu"))
    record = TrainingRecord(
        steps=1, epochs=1, seconds=2.0, stopped_by="epochs", device="cpu", precision="fp32", batch_size=1,
        parameters=1, best_metric=0.0, best_step=1,
    )  # fmt: skip
    return {
        name: Taught(
            world.plan,
            [Learnt(fold, Looks(left).eval(), "fp32", judge, record, Course(world.plan)) for fold in "01"],
        )
        for name, left in zip("abc", halves, strict=False)
    }


def test_two_that_see_different_things_are_better_together() -> None:
    table = compared(looking(True, False), lambda: False)
    assert (table[0].names, table[0].chosen) == (("a", "b"), True)
    assert table[0].figure == 1 > table[1].figure
    assert table[0].metric == "auc"
    assert table[0].seconds == table[1].seconds + table[2].seconds
    assert told(table)[0] == "chosen: a with b: auc 1.0000 (1.000, 1.000)"
    assert told(table)[1].startswith("not chosen: a: auc 0.")


def test_of_equals_the_first_alone_is_enough() -> None:
    table = compared(looking(True, True, True), lambda: False)
    assert table[0].names == ("a",)
    assert len(table) == 6
    assert [one.chosen for one in table] == [True] + [False] * 5


def test_without_cases_to_judge_by_nothing_is_chosen() -> None:
    taught = {
        name: dataclasses.replace(one, learnt=[dataclasses.replace(fold, validation=None) for fold in one.learnt])
        for name, one in looking(True, False).items()
    }
    with pytest.raises(TrainingError, match="no case to judge"):
        compared(taught, lambda: False)


def choosing() -> World:
    """A cascade and its first stage alone, which has another grid."""
    world = cascade(**SHORT)
    assert world.plan.low
    alone = world.plan.low.model_copy(update={"seed": 9})
    plans = {"cascade": world.plan, "low": alone}
    candidates = tuple(Candidate(name=name, plan=plan) for name, plan in plans.items())
    return dataclasses.replace(world, plan=world.plan.model_copy(update={"candidates": candidates}))


def test_the_chosen_one_is_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = choosing()
    assert {way.spacing for way in world.plan.grids} == {(1, 1, 1), LOW_SPACING}
    package = trained(world, tmp_path / "whole")
    table = package.training.configurations
    assert {one.names for one in table} == {("cascade",), ("low",), ("cascade", "low")}
    assert [one.figure for one in table] == sorted((one.figure for one in table), reverse=True)
    assert all(len(one.folds) == 2 for one in table)
    assert package.training.notes[0].startswith("chosen: " + " with ".join(table[0].names))
    predicts(tmp_path / "whole" / "package", package)

    for names in (("low",), ("cascade", "low")):  # whichever was the best: every outcome makes a package that works

        def forced(taught, cancelled, names=names):  # type: ignore[no-untyped-def]
            return tuple(one.model_copy(update={"chosen": one.names == names}) for one in table)

        monkeypatch.setattr(running, "compared", forced)
        folder = tmp_path / "whole"  # what has learnt does not learn again
        other = trained(world, folder, staged=folder / "-".join(names))
        assert other.plan.candidates == ()
        assert other.plan.prepare.spacing == (LOW_SPACING if names == ("low",) else (1, 1, 1))
        assert len(other.answering) == 2 * len(names)
        predicts(folder / "-".join(names), other)


def predicts(folder: Path, package: ModelPackage) -> None:
    described, weights = read_package(folder)
    assert described == package
    unseen = ball(70)
    assert unseen.mask is not None
    found = Predictor(described, weights, "cpu").segment(unseen.image[0].astype(np.float32), grid(unseen.mask.shape))
    assert found.labels.shape == unseen.mask.shape


def test_a_kill_in_the_second_configuration_leaves_the_first_alone(tmp_path: Path) -> None:
    world = choosing()
    whole = trained(world, tmp_path / "whole")
    cancel, events = threading.Event(), list[TrainEvent]()

    def stop(event: TrainEvent) -> None:
        events.append(event)
        if len(events) == 5:  # four networks of the cascade, two of the other
            cancel.set()

    with pytest.raises(SystemExit) as left:
        trained(world, tmp_path / "killed", on_event=stop, cancel=cancel)
    assert left.value.code == TERMINATED
    before = len(events)
    resumed = trained(world, tmp_path / "killed", on_event=events.append)
    assert len(events) <= before + 2
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [one.figure for one in resumed.training.configurations] == [
        one.figure for one in whole.training.configurations
    ]


class TestPlanning:
    def planned(self, *select: str, **train: object) -> Plan:
        wish = recipe("segmentation", "MR", network={"select": select}, train={"folds": 2, **train})
        seen = fingerprint("MR", (40, 64, 64), (1, 1, 1), 20)
        return make_plan(wish, seen, ("organ",), memory_gb=4, device="cpu", cores=2)

    def test_each_configuration_has_a_plan_and_a_share_of_the_minutes(self) -> None:
        plan = self.planned("2d", "3d_fullres", "cascade", "unet/low", minutes=40, patch_size=[16, 16, 16])
        assert [one.name for one in plan.candidates] == ["2d", "3d_fullres", "cascade", "unet/low"]
        by_name = {one.name: one.plan for one in plan.candidates}
        assert by_name["2d"].network.dimensions == 2
        assert by_name["cascade"].low is not None
        assert by_name["3d_fullres"].low is None
        assert by_name["unet/low"].resolution == "low"
        assert by_name["2d"].train.minutes == 10
        assert by_name["cascade"].train.minutes == 5  # for each of its stages
        assert plan.prepare == by_name["2d"].prepare
        assert plan.notes[0].startswith("chosen from 2d, 3d_fullres, cascade, unet/low by cross-validation over 2")
        assert Plan.model_validate(plan.model_dump(mode="json")) == plan

    def test_what_cannot_be_planned_is_named(self) -> None:
        with pytest.raises(RecipeError, match=r"network\.select: nothing cannot be planned"):
            self.planned("full", "nothing", epochs=1)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ('network.select = ["full"]\ntrain.folds = 2', "at least two"),
            ('network.select = ["full", "full"]\ntrain.folds = 2', "at least two"),
            ('network.select = ["full", "unet/huge"]\ntrain.folds = 2', "no network/resolution"),
            ('network.select = ["full", "low"]', "train.folds = 5"),
            ('network.select = ["full", "low"]\ntrain.folds = 2\nstart.source = "champion"', "from scratch"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, text: str, why: str) -> None:
        with pytest.raises(RecipeError, match=why):
            Recipe.parse(f'name = "r"\nkind = "segmentation"\nimages.modality = "CT"\nlabels.source = "SEG"\n{text}')

    def test_a_network_and_a_resolution_go_together(self) -> None:
        wish = recipe(network={"select": ["unet/cascade", "vnet"], "dropout": 0.1}, train={"folds": 2})
        first, second = wish.network.candidates().values()
        assert (first.name, first.resolution, first.dropout) == ("unet", "cascade", 0.1)
        assert (second.name, second.resolution, second.select) == ("vnet", "auto", ())
