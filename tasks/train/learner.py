"""The network while it learns: weights, their running average, the optimiser, and where the training stands."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.networks import build
from models.plan import Plan, TrainPlan
from tasks.imaging.device import autocast
from tasks.train.augment import augmented
from tasks.train.checkpoint import (
    Checkpoint,
    flatten_optimiser,
    random_states,
    restore_optimiser,
    restore_random_states,
)
from tasks.train.crew import ALONE, Crew
from tasks.train.execution import Execution, choose_execution
from tasks.train.hiding import empty_channels, hide_channels
from tasks.train.mixing import Mixing, class_shares, draw_mixing
from tasks.train.objective import Objective, at, objective_for
from tasks.train.patches import Batch, is_masks


@dataclass
class Position:
    """Where the training stands: plain values, all of them in the checkpoint."""

    batch_size: int
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # of these seconds: for batches
    processes: int = 1  # that learn together
    validated: int = 0  # turns of validation that are over
    validated_at: float = 0.0  # seconds
    best_metric: float | None = None
    best_step: int = 0
    without_progress: int = 0
    not_finite: int = 0  # steps in a row
    loss_sum: float = 0.0
    loss_count: int = 0
    stopped_by: str | None = None
    history: list[list[float]] = field(default_factory=list)  # [step, loss, metric, seconds that judging took]
    notes: list[str] = field(default_factory=list)


class Learner:
    """One training's moving parts. `average` holds the averaged weights, which are validated and packaged.

    Of the several processes of a `crew` each has its own.
    """

    crew: Crew = ALONE

    def __init__(self, plan: Plan, device: torch.device, objective: Objective | None = None) -> None:
        self.plan, self.device = plan, device
        torch.manual_seed(plan.seed)
        self.network = self.make().to(device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best: dict[str, Tensor] = {}
        self.optimiser = make_optimiser(self.network, plan.train)
        self.objective = objective or objective_for(plan, device)
        self.position = Position(plan.train.batch_size)
        self.execution: Execution | None = None
        self._runner: nn.Module = self.network
        self._meet_within = False
        self._learnt: list[Tensor] = []
        self._averaged: list[Tensor] = []
        self._held: list[tuple[Tensor, Tensor]] = []

    def make(self) -> nn.Module:
        """The network, with fresh weights."""
        return build(self.plan.network)

    def begin_from(self, weights: Mapping[str, Tensor], share: float) -> None:
        """Take over `weights`, some or all of the network's; they go on at `share` of the learning rate."""
        for network in (self.network, self.average):
            network.load_state_dict({**network.state_dict(), **weights})
        self.optimiser = make_optimiser(self.network, self.plan.train, slowed=weights.keys(), share=share)

    @property
    def parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """In which steps are computed; fp32 before the first one."""
        return self.execution.precision if self.execution else "fp32"

    def settle(self, batch: Batch) -> None:
        """Decide how steps are carried out, by trying `batch`. A resumed training keeps what was decided."""
        if self.execution is None:
            chosen, note = self.crew.together(lambda: self._choose(batch))
            chosen, note = self.crew.told([asdict(chosen), note])
            self.position.notes.append(note)
            self._carry_out(Execution(**chosen))

    def _choose(self, batch: Batch) -> tuple[Execution, str]:
        images, targets = (self.crew.own(each) for each in self._on_device(batch))
        return choose_execution(self.network, self.objective, images, targets, self.plan.train)

    def _carry_out(self, execution: Execution) -> None:
        self.execution = execution
        execution.lay_out(self.network)
        execution.lay_out(self.average)
        runner = self.crew.wrapped(self.network)
        self._meet_within = self.crew.meet_within(self.network)
        self._runner = torch.compile(runner) if execution.compiled else runner  # type: ignore[assignment]
        # Walking through the modules anew in each step would take as long as some of the layers.
        self._learnt, self._averaged = list(self.network.parameters()), list(self.average.parameters())
        self._held = list(zip(self.average.buffers(), self.network.buffers(), strict=True))

    def step(self, batch: Batch, progress: float) -> float | None:
        """One update at `progress` (0–1) of the budget. Returns the loss, or None where it was not finite."""
        train, position = self.plan.train, self.position
        for group in self.optimiser.param_groups:
            group["lr"] = train.learning_rate * rate(progress, train) * group["share"]
        self.optimiser.zero_grad(set_to_none=True)
        self.crew.drawing(self.plan.seed, position.step)
        logits, targets = self.crew.together(lambda: self._answered(batch))
        whole = self.crew.whole(logits, len(targets))
        loss = self.crew.together(lambda: at(self.objective, progress)(whole, targets))
        self.crew.backward(loss, len(targets))
        norm = nn.utils.clip_grad_norm_(self._learnt, train.clip)
        # Both at once: a GPU is waited for a single time.
        value, length = torch.stack((loss.detach().double(), norm.double())).tolist()
        position.step += 1
        if not math.isfinite(value) or not math.isfinite(length):
            return None
        self.crew.for_good(self.optimiser.step, len(targets))
        self._follow()
        return float(value)

    def _answered(self, batch: Batch) -> tuple[Tensor | list[Tensor], Tensor]:
        """What the network says of this process's part of a batch, and the targets of all of it."""
        assert self.execution is not None  # noqa: S101 - settled before the first step
        images, targets = self._on_device(batch)
        clinical = None if batch.clinical is None else batch.clinical.to(self.device, non_blocking=True)
        images, targets = self._augmented(images, targets)
        mixing = self._mixing(images)
        if mixing is not None:
            images = mixing.images(images)
            targets = mixing.rows(class_shares(targets, self.plan.network.out_channels))
            clinical = None if clinical is None else mixing.rows(clinical)
        own = self.crew.own
        with autocast(self.device, self.execution.precision):
            asked = (self.execution.lay_out_images(own(images)), *(() if clinical is None else (own(clinical),)))
            if self._meet_within:
                return self.crew.for_good(lambda: self._runner(*asked), len(images)), targets
            return self._runner(*asked), targets

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = batch.images.to(self.device, non_blocking=True).float()
        targets = batch.targets.to(self.device, non_blocking=True)
        if self.plan.network.dimensions == 2:
            # A 2-D network sees the one slice that a patch or an image has.
            images = images[..., 0, :, :]
            targets = targets[:, 0] if is_masks(targets, batch.images) else targets
        return images, targets

    def _augmented(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        plan = self.plan
        if not plan.channels:
            return self._changed(images, targets)
        empty = empty_channels(images, plan.network.dimensions)
        images, targets = self._changed(images, targets)
        share, step = plan.train.channel_dropout, self.position.step
        return hide_channels(images, empty, share, seed=plan.seed, step=step), targets

    def _changed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        plan = self.plan
        if images.ndim == plan.network.dimensions + 3:
            # A set: each of its series is changed by itself.
            flat, targets = self._changed(images.flatten(0, 1), targets)
            return flat.view(images.shape), targets
        changed, masks = augmented(
            images,
            targets if is_masks(targets, images) else None,
            plan.train.augment,
            plan.train.flip_axes,
            # The step's own seed: augmentation needs no generator to be carried over to a resumed run.
            seed=(plan.seed * 1_000_003 + self.position.step) % 2**63,
            spacing=plan.prepare.spacing or (1.0, 1.0, 1.0),
            in_plane=plan.prepare.anisotropic,
        )
        return changed, targets if masks is None else masks

    def _mixing(self, images: Tensor) -> Mixing | None:
        train = self.plan.train
        seed, step = self.plan.seed, self.position.step
        return draw_mixing(len(images), images.shape[2:], train.mixup, train.cutmix, seed=seed, step=step)

    @torch.no_grad()
    def _follow(self) -> None:
        """Let the average follow; slower from step to step up to the plan's decay."""
        decay = min(self.plan.train.ema, (1 + self.position.step) / (10 + self.position.step))
        torch._foreach_lerp_(self._averaged, self._learnt, 1 - decay)
        for held, current in self._held:
            held.copy_(current)

    def halve(self) -> bool:
        """Go on with half the batch; False where it is 1 already, or 1 in each process."""
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.position.batch_size <= self.crew.size:
            return False
        self.position.batch_size = max(self.position.batch_size // 2, self.crew.size)
        self.position.notes.append(
            f"out of memory at step {self.position.step}: batch halved to {self.position.batch_size}"
        )
        return True

    def keep_as_best(self, metric: float) -> None:
        """Remember the averaged weights as the best so far."""
        self.position.best_metric, self.position.best_step = metric, self.position.step
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.average.state_dict().items()}

    def final(self) -> nn.Module:
        """The averaged network with the best weights (the last ones where nothing was validated), to evaluate."""
        if self.best:
            self.average.load_state_dict(self.best)
        return self.average

    def checkpoint(self) -> Checkpoint:
        """All that `restore` needs."""
        generators, values = random_states()
        groups: dict[str, Mapping[str, Tensor]] = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimiser": flatten_optimiser(self.optimiser),
            "random": generators,
        }
        tensors = {f"{group}:{name}": t for group, members in groups.items() for name, t in members.items()}
        execution = asdict(self.execution) if self.execution else None
        return Checkpoint(
            self.position.step, tensors, {"position": asdict(self.position), "execution": execution, "random": values}
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up where `checkpoint` stood."""
        groups: dict[str, dict[str, Tensor]] = {"best": {}, "optimiser": {}}
        for path, tensor in checkpoint.tensors.items():
            group, name = path.split(":", 1)
            groups.setdefault(group, {})[name] = tensor
        values: Mapping[str, Any] = checkpoint.values
        self.position = Position(**values["position"])
        if values["execution"] is not None:
            self._carry_out(Execution(**values["execution"]))
        self.network.load_state_dict(groups["network"])
        self.average.load_state_dict(groups["average"])
        self.best = groups["best"]
        restore_optimiser(self.optimiser, groups["optimiser"])
        restore_random_states(groups["random"], values["random"])


def make_optimiser(
    network: nn.Module, train: TrainPlan, *, slowed: Collection[str] = (), share: float = 1.0
) -> torch.optim.Optimizer:
    """SGD as nnU-Net's (Nesterov, momentum 0.99), or AdamW; norms and biases do not decay.

    The parameters named in `slowed` learn at `share` of the rate; the rest at all of it.
    """
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        kinds.setdefault((name in slowed, parameter.ndim > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": kinds[slow, decays], "weight_decay": train.weight_decay * decays, "share": share if slow else 1.0}
        for slow, decays in sorted(kinds, key=lambda kind: (kind[0], not kind[1]))
    ]
    if train.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=train.learning_rate, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=train.learning_rate)


def rate(progress: float, train: TrainPlan) -> float:
    """Share of the learning rate at `progress` (0–1): a linear warm-up, then the schedule over what is left."""
    if progress < train.warmup:
        return max(progress / train.warmup, 0.01)
    left = 1 - min(1.0, (progress - train.warmup) / (1 - train.warmup))
    if train.schedule == "poly":
        return float(left**0.9)
    return 1.0 if train.schedule == "constant" else 0.5 * (1 - math.cos(math.pi * left))
