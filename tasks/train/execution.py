"""How steps are carried out on this machine: precision, memory layout, compilation."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.plan import TrainPlan
from tasks.imaging.device import autocast, has_bf16, is_out_of_memory
from tasks.train.objective import Objective

_LONG_MINUTES = 20.0  # compiling costs up to a minute: below this it does not pay
_TIMED_STEPS = 3
_DRY_SHARE = 0.03  # of the budget
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Execution:
    """One way to carry out a step."""

    precision: Literal["fp32", "bf16"]
    channels_last: bool = False
    compiled: bool = False

    def lay_out(self, network: nn.Module) -> nn.Module:
        """The network with its weights in the memory layout; the same module."""
        if self.channels_last:
            volumetric = any(p.ndim == 5 for p in network.parameters())
            layout = torch.channels_last_3d if volumetric else torch.channels_last
            network.to(memory_format=layout)  # type: ignore[call-overload]
        return network

    def lay_out_images(self, images: Tensor) -> Tensor:
        """Images (b, c, …) in the memory layout; sets are left as they are."""
        if not self.channels_last or images.ndim > 5:
            return images
        return images.contiguous(memory_format=torch.channels_last if images.ndim == 4 else torch.channels_last_3d)


def choose_execution(
    network: nn.Module, objective: Objective, images: Tensor, targets: Tensor, plan: TrainPlan
) -> tuple[Execution, str]:
    """The quickest way for this network on this machine, and a note that says why.

    With a budget in epochs alone nothing is timed, so that the same seed gives the same weights: bfloat16 where the
    device has it. With minutes a few steps of each kind are timed on a copy of the network.
    """
    device = images.device
    precisions = ["bf16", "fp32"] if plan.precision == "auto" else [plan.precision]
    if plan.precision == "auto" and not has_bf16(device.type):
        precisions = ["fp32"]
    why = ""
    if "bf16" in precisions and device.type == "cpu" and _reaches_past_the_map(network, images):
        precisions, why = ["fp32"], " (a kernel is larger than its map: no bfloat16 on a CPU)"
    gpu = device.type == "cuda"
    compiled = plan.compile is True
    if plan.minutes is None:
        chosen = Execution(precisions[0], gpu, compiled)  # type: ignore[arg-type]
        return chosen, f"{chosen.precision} on {device.type}{why}, not timed since the budget is in epochs"
    deadline = time.monotonic() + plan.minutes * 60 * _DRY_SHARE
    layouts = [True] if gpu else [False, True]
    timed: dict[Execution, float] = {}
    for precision, layout in itertools.product(precisions, layouts):
        if timed and time.monotonic() > deadline:
            break
        candidate = Execution(precision, layout)  # type: ignore[arg-type]
        timed[candidate] = _seconds_a_step(network, objective, images, targets, candidate, deadline)
    best = min(timed, key=lambda e: timed[e])
    if compiled or (plan.compile == "auto" and plan.minutes > _LONG_MINUTES):
        candidate = replace(best, compiled=True)
        try:
            timed[candidate] = _seconds_a_step(network, objective, images, targets, candidate, math.inf)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            _log.warning("compiling the network failed, so it runs uncompiled: %s", type(error).__name__)
        best = candidate if compiled and candidate in timed else min(timed, key=lambda e: timed[e])
    told = ", ".join(f"{_name(e)} {1000 * s:.0f} ms" for e, s in timed.items())
    return best, f"{_name(best)} on {device.type}{why}; a step took: {told}"


@torch.no_grad()
def _reaches_past_the_map(network: nn.Module, images: Tensor) -> bool:
    """Whether a convolution's kernel is larger than what it is laid over.

    There oneDNN (as in PyTorch 2.13 on x86) reads memory that was never written when it computes a bfloat16 weight
    gradient: not finite at times, wrong at others.
    """
    found: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            extents = inputs[0].shape[2:]
            reach = (d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True))
            found.append(any(r > n for r, n in zip(reach, extents, strict=True)))

    trial = copy.deepcopy(network).eval()
    for module in trial.modules():
        module.register_forward_pre_hook(look)
    trial(images[:1])
    return any(found)


def _name(execution: Execution) -> str:
    parts = [execution.precision, *(["channels last"] if execution.channels_last else [])]
    return " ".join([*parts, *(["compiled"] if execution.compiled else [])])


def _seconds_a_step(
    network: nn.Module,
    objective: Objective,
    images: Tensor,
    targets: Tensor,
    execution: Execution,
    deadline: float,
) -> float:
    """The least of a few steps after a first one, on a copy; random generators are left as they were."""
    trial = execution.lay_out(copy.deepcopy(network)).train()
    runner: Callable[[Tensor], Tensor | list[Tensor]] = torch.compile(trial) if execution.compiled else trial
    inputs = execution.lay_out_images(images)
    best = float("inf")
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        for turn in range(_TIMED_STEPS + 1):
            begun = time.monotonic()
            with autocast(images.device, execution.precision):
                logits = runner(inputs)
            objective(logits, targets).backward()
            trial.zero_grad(set_to_none=True)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                best = min(best, time.monotonic() - begun)
                if time.monotonic() > deadline:
                    break
    return best


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic kernels on a CPU; on a GPU the quickest ones. Settings are put back afterwards."""
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False
        else:
            torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        memory.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
