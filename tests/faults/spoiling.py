"""What goes wrong while a network learns, in one of several processes or in the only one.

`spoil(FAULT)` here; in processes that are started by a program, `SPOILED=FAULT` in their environment and `SITE` on
their PYTHONPATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

SITE = """
import os
if "RANK" in os.environ and os.environ.get("SPOILED"):
    import pytest
    from tests.faults.spoiling import spoil
    spoil(os.environ["SPOILED"], pytest.MonkeyPatch())
"""
"""A `sitecustomize.py`: every process reads it when it starts."""

SHORT_AT, BAD_AT, HOPELESS_FROM = 7, (2, 3), 9


def spoil(fault: str, patch: pytest.MonkeyPatch) -> None:
    """From now on, in this process: `nan` for everybody; or `forward`, `loss`, `gather`, `backward`, `update`.

    There the second process, or the only one, runs out of memory at step `SHORT_AT`, unless its batch is small.
    """
    if fault == "nan":
        _spoil_batches(patch)
    elif os.environ.get("RANK", "1") == "1":
        _run_short(fault, patch)


def _spoil_batches(patch: pytest.MonkeyPatch) -> None:
    from tasks.train.patches import Batch, PatchSampler

    draw = PatchSampler.batch

    def bad(self: PatchSampler, step: int, size: int) -> Batch:
        batch = draw(self, step, size)
        if step in BAD_AT or step >= HOPELESS_FROM:
            batch.images[-1] = float("nan")  # one element, which one process looks at
        return batch

    patch.setattr(PatchSampler, "batch", bad)


def _run_short(where: str, patch: pytest.MonkeyPatch) -> None:
    import torch

    from tasks.train.joint import Joint
    from tasks.train.learner import Learner

    now: list[Learner] = []

    def short(real: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **named: Any) -> Any:
            if now and now[0].position.step >= SHORT_AT and now[0].position.batch_size > 2:
                raise torch.OutOfMemoryError("simulated")
            return real(*arguments, **named)

        return failing

    step = Learner.step

    def watched(self: Learner, *arguments: Any) -> float | None:
        if not now and where == "loss":
            self.objective = short(self.objective)
        if not now and where == "update":
            self.optimiser.step = short(self.optimiser.step)  # type: ignore[method-assign]
        now[:] = [self]
        return step(self, *arguments)

    patch.setattr(Learner, "step", watched)
    if where == "forward":
        patch.setattr(Learner, "_augmented", short(Learner._augmented))
    if where == "gather":
        patch.setattr(Joint, "_room", short(Joint._room))
    if where == "backward":
        patch.setattr(torch.Tensor, "backward", short(torch.Tensor.backward))
