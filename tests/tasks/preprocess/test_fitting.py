"""Plans that are cut to what steps of a measured length can train in the minutes; no step is really timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch

from models.plan import Plan
from tasks.preprocess import dryrun
from tasks.preprocess.dryrun import step_seconds
from tasks.preprocess.fitting import LEAST_LEVELS, LEAST_PER_CASE, LEAST_STEPS
from tasks.preprocess.plan import make_plan
from tests.tasks.preprocess.cases import fingerprint, recipe

CASES = 60
ORGANS = fingerprint("MR", (96, 160, 160), (1, 1, 1), CASES)
PICTURES = fingerprint("CR", (1, 64, 64), (1, 1, 1), 400)
Shaped = tuple[tuple[int, ...], int, int, int]


def machine(nanoseconds: float, seen: list[Plan] | None = None) -> Callable[[Plan], float]:
    """Takes so long for each voxel of a patch and channel of the first level."""

    def measure(plan: Plan) -> float:
        if seen is not None:
            seen.append(plan)
        voxels = plan.train.batch_size * math.prod(plan.train.patch_size)
        return 1e-9 * nanoseconds * voxels * sum(plan.network.features[:2])

    return measure


def planned(
    measure: Callable[[Plan], float | None] | None, minutes: float = 60, device: str = "cpu", **parts: object
) -> Plan:
    wish = recipe("segmentation", "MR", **{"train": {"minutes": minutes}, **parts})
    return make_plan(wish, ORGANS, ("organ",), memory_gb=8, device=device, cores=4, measure=measure)


def size(plan: Plan) -> Shaped:
    network, train = plan.network, plan.train
    return network.features, math.prod(train.patch_size), train.batch_size, len(network.features)


def patches(plan: Plan, minutes: float) -> float:
    assert plan.train.step_seconds
    return minutes * 60 * 0.8 / plan.train.step_seconds * plan.train.batch_size


def test_a_quick_machine_changes_nothing_but_what_is_told() -> None:
    quick, untimed = planned(machine(0.01)), planned(None)
    assert size(quick) == size(untimed)
    assert untimed.train.step_seconds is None
    assert quick.train.step_seconds is not None
    assert any(note.startswith("dry run: a step takes") for note in quick.notes)
    assert not any(note.startswith("cut to the time") for note in quick.notes)


def test_the_slower_the_machine_the_smaller_the_plan() -> None:
    every = [planned(machine(n)) for n in (0.01, 10, 100, 1000)]
    costs = [machine(1)(plan) / plan.train.batch_size for plan in every]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 4
    for plan in every[1:]:
        told = " ".join(plan.notes)
        cut = "cut to the time (features, patch, batch, depth, in this order) from features 16-" in told
        assert cut == (size(plan) != size(every[0]))
        assert patches(plan, 60) >= LEAST_PER_CASE * CASES or "more minutes would help most" in told


def test_features_go_first_then_the_patch_then_the_batch_and_the_depth_last() -> None:
    untimed = planned(None, 1e4, device="cuda")
    steps = [planned(machine(10.0**n), 1e4, device="cuda") for n in range(7)]
    shapes = [size(plan) for plan in steps if size(plan) != size(untimed)]
    assert shapes[0][0][0] < untimed.network.features[0]
    assert shapes[0][1] == max(shape[1] for shape in shapes)  # the patch is smaller in later ones alone
    hopeless = planned(machine(1e7))
    assert hopeless.network.features[0] == 8
    assert hopeless.train.batch_size == 1
    assert LEAST_LEVELS <= len(hopeless.network.features) <= 4
    assert any("more minutes would help most" in note for note in hopeless.notes)


def test_what_the_recipe_gives_is_never_cut() -> None:
    given = {"minutes": 10, "patch_size": [32, 32, 32], "batch_size": 2}
    plan = planned(machine(1e6), train=given, network={"features": [16, 32, 64, 128]})
    assert size(plan) == ((16, 32, 64, 128), 32**3, 2, 4)
    assert any("more minutes would help most" in note for note in plan.notes)


@pytest.mark.parametrize("train", [{"epochs": 5}, {"epochs": 5, "minutes": 60}, {"minutes": 1}])
def test_epochs_and_moments_are_not_timed(train: dict[str, object]) -> None:
    seen: list[Plan] = []
    plan = planned(machine(1e5, seen), train=train)
    assert not seen
    assert plan == planned(None, train=train)


def test_a_machine_that_cannot_tell_changes_nothing() -> None:
    assert planned(lambda plan: None) == planned(None)


def test_each_stage_of_a_cascade_is_timed_and_cut() -> None:
    seen: list[Plan] = []
    plan = planned(machine(300, seen), network={"resolution": "cascade"})
    assert plan.low is not None
    assert plan.train.step_seconds
    assert plan.low.train.step_seconds
    assert {one.network.told for one in seen} == {0, 1}
    assert any(note.startswith("dry run") for note in plan.notes)


def test_steps_are_enough_or_the_batch_is_one() -> None:
    for nanoseconds in (100.0, 3000.0, 30000.0):
        plan = planned(machine(nanoseconds), 5)
        assert plan.train.step_seconds
        assert 5 * 60 * 0.8 / plan.train.step_seconds >= LEAST_STEPS or plan.train.batch_size == 1


def test_classifiers_become_narrower() -> None:
    def width(nanoseconds: float) -> int:
        wish = recipe("classification", "CR", train={"minutes": 10})
        measure = machine(nanoseconds)
        plan = make_plan(wish, PICTURES, ("no", "yes"), memory_gb=8, device="cpu", cores=4, measure=measure)
        return plan.network.features[0]

    assert width(0.001) > width(1e6) == 8


class TestDryRun:
    def clock(self, steps: Iterator[float]) -> Callable[[], float]:
        return lambda: next(steps)

    def small(self, **network: object) -> Plan:
        train = {"minutes": 10, "patch_size": [16, 16, 16], "batch_size": 2, "precision": "fp32", "device": "cpu"}
        return planned(None, train=train, network={"features": [4, 8], **network})

    @pytest.mark.parametrize("resolution", ["full", "cascade"])
    def test_the_quicker_of_its_steps_counts_and_not_the_first(self, resolution: str) -> None:
        ticks = iter([0.0, 0.0, 4.0, 4.0, 5.0, 5.0, 5.5])  # the deadline's, and each step's beginning and end
        before = torch.random.get_rng_state()
        took = step_seconds(self.small(resolution=resolution), torch.device("cpu"), self.clock(ticks))
        assert took == 0.5
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_one_step_is_enough_where_it_takes_too_long(self) -> None:
        ticks = iter([0.0, 0.0, 100.0])
        assert step_seconds(self.small(), torch.device("cpu"), self.clock(ticks)) == 100.0

    def test_no_memory_tells_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def short(plan: object) -> None:
            raise MemoryError

        monkeypatch.setattr(dryrun, "build", short)
        assert step_seconds(self.small(), torch.device("cpu")) is None
