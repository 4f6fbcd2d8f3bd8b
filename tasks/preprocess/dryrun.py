"""How long a training step takes: a few steps of the planned network on noise, on the device that will train it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from models.networks import build
from models.plan import Plan
from tasks.imaging.device import Precision, autocast, has_bf16, is_out_of_memory

STEPS = 2
"""Timed, after one that warms up; the quicker counts."""
SHARE = 0.02
"""Of the minutes, after which no further step is begun."""
_log = logging.getLogger(__name__)


def step_seconds(plan: Plan, device: torch.device, clock: Callable[[], float] = time.monotonic) -> float | None:
    """Seconds of one step of a batch, in the quickest precision that training may choose; None where memory is short.

    Random generators are left as they were.
    """
    deadline = clock() + 60 * (plan.train.minutes or 0) * SHARE
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            network = build(plan.network).to(device).train()
            images = torch.randn(_input_shape(plan), device=device)
            return min(_timed(network, images, precision, deadline, clock) for precision in _precisions(plan, device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Training halves its batch then; how long that takes nobody knows yet.
            _log.warning("the dry run ran out of memory: the plan is not cut to the time")
            return None


def _precisions(plan: Plan, device: torch.device) -> Iterator[Precision]:
    wish = plan.train.precision
    if wish == "auto" and has_bf16(device.type):
        yield "bf16"
        if device.type == "cuda":
            return
    yield "fp32" if wish == "auto" else wish


def _input_shape(plan: Plan) -> tuple[int, ...]:
    """(b, c, …) as training's batches have it; what is told is one more channel."""
    channels = plan.network.in_channels + bool(plan.network.told)
    return plan.train.batch_size, channels, *plan.train.patch_size[3 - plan.network.dimensions :]


def _timed(
    network: nn.Module, images: Tensor, precision: Precision, deadline: float, clock: Callable[[], float]
) -> float:
    best = float("inf")
    for turn in range(STEPS + 1):
        begun = clock()
        with autocast(images.device, precision):
            said: Tensor | list[Tensor] = network(images)
        heads = [said] if isinstance(said, Tensor) else said
        torch.stack([head.float().square().mean() for head in heads]).sum().backward()
        network.zero_grad(set_to_none=True)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        ended = clock()
        if turn or ended > deadline:
            best = min(best, ended - begun)
        if ended > deadline:
            break
    return best
