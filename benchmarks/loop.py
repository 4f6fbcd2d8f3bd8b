"""A step of the training loop beside a bare PyTorch loop over tensors that lie in memory.

    python benchmarks/loop.py [--repeat N] [--threads N] [--device cpu|cuda] [--quick]

One network, loss, optimiser and precision for all. Ours is the loop as training uses it: prepared cases on disk, the
sampler, the prefetching thread, mirrored and augmented or not, gradients clipped, the averaged weights, progress. The
bare loop does forward, loss, backward, step over one batch. A turn is some steps of each; what comes before the first
and after the last step is left out, and told below: a checkpoint, and what training does without a batch to compute.
On a GPU networks and patches are of the usual size, and the share of time with a kernel at work is told.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _device import busy, device_argument, kernels_told, moment, named
from _turns import Contestant, Goal, Taken, Turn, arguments, table, turns

from models.geometry import Geometry
from models.plan import NetworkPlan, Plan
from models.recipe import Augment
from tasks.imaging.device import autocast, has_bf16
from tasks.stores.prepared import About, PreparedStore
from tasks.train import loop
from tasks.train.checkpoint import Checkpoints
from tasks.train.execution import Execution
from tasks.train.learner import Learner, make_optimiser
from tasks.train.objective import objective_for
from tasks.train.patches import Batch, Cases, PatchSampler, Prefetcher
from tests.tasks.train.samples import NO_AUGMENT, balls

OURS, AUGMENTED = "Nocturne's loop", "Nocturne's loop, with its augmentation"
BARE, FULLER = "bare loop", "bare loop that clips and averages, too"
GOAL = Goal(BARE, 0.97)
CASES, EPOCH = 4, 250


@dataclasses.dataclass(frozen=True)
class Size:
    """What is trained, and how many steps a turn has."""

    name: str
    plan: Plan
    case: tuple[int, int, int]
    steps: int

    def plan_for(self, augment: Augment, steps: int) -> Plan:
        """With a budget of `steps`."""
        flips = self.plan.train.flip_axes if augment != NO_AUGMENT else ()
        train = self.plan.train.model_copy(
            update={"augment": augment, "flip_axes": flips, "steps_per_epoch": steps, "epochs": 1}
        )
        return self.plan.model_copy(update={"train": train})


def sizes(quick: bool, device: torch.device) -> list[Size]:
    """A U-Net in three dimensions, and one over slices: small ones, or of the usual size for a GPU."""
    if device.type == "cuda":
        deep, flat = (
            _plan((128, 128, 128), 2, (32, 64, 128, 256, 320)),
            _plan((1, 512, 512), 12, (32, 64, 128, 256, 512)),
        )
        return [
            Size("3-D U-Net, two patches of 128³", deep, (160, 192, 192), 20 if quick else 60),
            Size("2-D U-Net, twelve slices of 512²", flat, (48, 576, 576), 20 if quick else 60),
        ]
    deep, flat = _plan((64, 64, 64), 2, (8, 16, 32, 64)), _plan((1, 256, 256), 8, (8, 16, 32, 64, 128))
    return [
        Size("3-D U-Net, two patches of 64³", deep, (96, 128, 128), 3 if quick else 6),
        Size("2-D U-Net, eight slices of 256²", flat, (48, 320, 320), 3 if quick else 6),
    ]


def _plan(patch: tuple[int, int, int], batch: int, features: tuple[int, ...]) -> Plan:
    dimensions: Literal[2, 3] = 2 if patch[0] == 1 else 3
    given = balls(
        dimensions=dimensions, patch_size=patch, batch_size=batch, precision="auto", validations=1, optimiser="sgd"
    )
    network = NetworkPlan(
        name="unet", dimensions=dimensions, in_channels=1, out_channels=3, features=features, deep_supervision=True
    )
    return given.plan.model_copy(update={"network": network})


def stored(folder: Path, shape: tuple[int, int, int]) -> Cases:
    """Prepared cases: balls in noise."""
    store, rng = PreparedStore(folder), np.random.default_rng(0)
    place = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
    grid = np.indices(shape, sparse=True)
    for number in range(CASES):
        centre = [rng.uniform(0.3 * n, 0.7 * n) for n in shape]
        apart = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        mask = (apart < 20**2).astype(np.uint8) + (apart < 10**2)
        image = (rng.normal(0, 0.3, shape) + mask).astype(np.float16)
        whole = tuple((0, n) for n in shape)
        store.write(f"case{number}", image[None], mask.astype(np.uint8), About(str(number), place, place, whole))
    return Cases(store, [f"case{number}" for number in range(CASES)])


# -- the contestants --------------------------------------------------------------------------------------------


class Timed(Learner):
    """A learner that knows when its steps ended."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        super().__init__(plan, device)
        self.ended: list[tuple[float, float]] = []

    def step(self, batch: Batch, progress: float) -> float | None:
        """As its base."""
        loss = super().step(batch, progress)
        if self.position.step in (1, self.plan.train.steps_per_epoch):
            self.ended.append(moment(self.device))
        return loss


class Ours:
    """`fit`, from the second step to the last; also which share of the time it waited for patches."""

    def __init__(self, size: Size, cases: Cases, augment: Augment, folder: Path, device: torch.device) -> None:
        self.size, self.cases, self.augment, self.folder, self.device = size, cases, augment, folder, device
        self.waited: list[float] = []
        self.busy: list[float] = []
        self.saving: list[float] = []

    def __call__(self) -> Turn:
        plan = self.size.plan_for(self.augment, self.size.steps + 1)
        learner = Timed(plan, self.device)
        sampler = PatchSampler(self.cases, plan.train.patch_size, plan.train.oversample_foreground, plan.seed)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, waiting() as waited:
            checkpoints = Checkpoints(Path(folder), "bench")
            with busy(self.device) as shares:
                loop.fit(learner, sampler, None, checkpoints)
            self.busy += shares
            begun = time.perf_counter()
            checkpoints.save(learner.checkpoint())
            self.saving.append(time.perf_counter() - begun)
        (begun, worked), (ended, done) = learner.ended
        self.waited.append(sum(waited[1:]) / (ended - begun))
        return Turn(ended - begun, done - worked)


@contextmanager
def waiting() -> Iterator[list[float]]:
    """Seconds for which the loop waited for each batch meanwhile."""
    waited: list[float] = []
    before = Prefetcher.next

    def timed(self: Prefetcher) -> Batch:
        begun = time.perf_counter()
        batch = before(self)
        waited.append(time.perf_counter() - begun)
        return batch

    Prefetcher.next = timed  # type: ignore[method-assign]
    try:
        yield waited
    finally:
        Prefetcher.next = before  # type: ignore[method-assign]


class Bare:
    """Forward, loss, backward, step; `fuller` clips and averages as ours does."""

    def __init__(self, size: Size, cases: Cases, device: torch.device, *, fuller: bool) -> None:
        self.plan, self.steps, self.fuller = size.plan_for(NO_AUGMENT, size.steps + 1), size.steps, fuller
        self.device = device
        train = self.plan.train
        sampler = PatchSampler(cases, train.patch_size, train.oversample_foreground, self.plan.seed)
        batch = sampler.batch(0, train.batch_size)
        self.images, self.targets = batch.images.float(), batch.targets
        if self.plan.network.dimensions == 2:
            self.images, self.targets = self.images[:, :, 0].contiguous(), self.targets[:, 0].contiguous()

    def __call__(self) -> Turn:
        device, how = self.device, as_ours(self.device)
        with loop.reproducible(device):
            torch.manual_seed(self.plan.seed)
            learner = Learner(self.plan, device)  # for its network and its averaged weights
            network, optimiser = learner.network, make_optimiser(learner.network, self.plan.train)
            objective = objective_for(self.plan, device)
            learner._carry_out(how)
            images, targets = how.lay_out_images(self.images.to(device)), self.targets.to(device)
            ended = []
            for step in range(self.steps + 1):
                optimiser.zero_grad()
                with autocast(device, how.precision):
                    logits = network(images)
                objective(logits, targets).backward()
                if self.fuller:
                    torch.nn.utils.clip_grad_norm_(network.parameters(), self.plan.train.clip)
                optimiser.step()
                if self.fuller:
                    learner._follow()
                if step in (0, self.steps):
                    ended.append(moment(device))
        (begun, worked), (last, done) = ended
        return Turn(last - begun, done - worked)


def as_ours(device: torch.device) -> Execution:
    """The precision and layout that training takes there where nothing is timed."""
    return Execution("bf16" if has_bf16(device.type) else "fp32", channels_last=device.type == "cuda")


# -- what is told -----------------------------------------------------------------------------------------------


def report(size: Size, found: dict[str, Taken], ours: Ours, augmented: Ours) -> str:
    """One network's table and its remarks."""
    step = {name: Taken(tuple(each(turn, size.steps) for turn in taken.turns)) for name, taken in found.items()}
    remarks = {
        OURS: f"{statistics.median(ours.waited):.2%}{kernels_told(ours.busy)}",
        AUGMENTED: f"{statistics.median(augmented.waited):.2%}{kernels_told(augmented.busy)}",
    }
    device, saving = ours.device, statistics.median(ours.saving)
    apart = agreement(size, ours.cases, device)
    return "\n".join(
        [
            f"**{size.name}, {as_ours(device).precision}{named(device)}**",
            "",
            table(step, [GOAL], unit="ms a step", scale=1000, remarks=remarks, remark="of it, waiting for patches"),
            "",
            table(step, [dataclasses.replace(GOAL, what="cpu_seconds")], what="cpu_seconds", unit="CPU ms", scale=1000),
            "",
            f"A checkpoint takes {saving * 1000:.0f} ms; one a minute is {saving / 60:.2%} of the time. After three "
            f"steps with clipping the losses of ours and of the bare loop differ by {apart:.1g}.",
        ]
    )


def each(turn: Turn, steps: int) -> Turn:
    """Of one step."""
    return Turn(turn.seconds / steps, turn.cpu_seconds / steps)


def agreement(size: Size, cases: Cases, device: torch.device) -> float:
    """How far the losses of ours and of a bare loop lie apart after the same three steps."""
    plan = size.plan_for(NO_AUGMENT, EPOCH)
    train = plan.train
    sampler = PatchSampler(cases, train.patch_size, train.oversample_foreground, plan.seed)
    batches = [sampler.batch(step, train.batch_size) for step in range(3)]
    learner = Learner(plan, device)
    bare = Learner(plan, device)
    losses: list[list[float | None]] = [[], []]
    with loop.reproducible(device):
        learner.settle(batches[0])
        assert learner.execution
        bare._carry_out(learner.execution)
        losses[0] = [learner.step(batch, 0.5) for batch in batches]
        objective, optimiser = objective_for(plan, device), bare.optimiser
        for group in optimiser.param_groups:
            group["lr"] = learner.optimiser.param_groups[0]["lr"]
        for batch in batches:
            images, targets = bare._on_device(batch)
            optimiser.zero_grad()
            with autocast(device, learner.execution.precision):
                logits = bare.network(learner.execution.lay_out_images(images))
            loss = objective(logits, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(bare.network.parameters(), train.clip)
            optimiser.step()
            losses[1].append(float(loss.detach()))
    return max(abs((a or 0.0) - (b or 0.0)) for a, b in zip(*losses, strict=True))


def main(given: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = arguments(__doc__)
    device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="fewer steps a turn")
    wanted = parser.parse_args(given)
    torch.set_num_threads(wanted.threads)
    parts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, size in enumerate(sizes(wanted.quick, wanted.device)):
            cases = stored(folder / str(number), size.case)
            ours = Ours(size, cases, NO_AUGMENT, folder, wanted.device)
            augmented = Ours(size, cases, Augment(), folder, wanted.device)
            contestants: dict[str, Contestant] = {
                OURS: ours,
                BARE: Bare(size, cases, wanted.device, fuller=False),
                FULLER: Bare(size, cases, wanted.device, fuller=True),
                AUGMENTED: augmented,
            }
            parts.append(report(size, turns(contestants, wanted.repeat), ours, augmented))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
