"""How steps are carried out: what is offered, and what is not to be trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.plan import TrainPlan
from tasks.train.execution import choose_execution
from tests.tasks.train.samples import train_plan


class SquaredError:
    """An objective over one output."""

    def __call__(self, logits: Tensor | list[Tensor], targets: Tensor) -> Tensor:
        assert isinstance(logits, Tensor)
        return (logits.float() - targets).square().mean()


def chosen(plan: TrainPlan, depth: int) -> tuple[str, str]:
    network = nn.Conv3d(1, 8, 3, padding=1)
    images = torch.zeros(2, 1, depth, 8, 8)
    objective: Any = SquaredError()
    execution, note = choose_execution(network, objective, images, torch.zeros(2, 8, depth, 8, 8), plan)
    return execution.precision, note


@pytest.mark.parametrize("budget", [{"epochs": 1, "minutes": None}, {"epochs": None, "minutes": 0.1}])
def test_bfloat16_on_a_cpu_only_where_kernels_fit_their_maps(budget: dict[str, Any]) -> None:
    # oneDNN's weight gradients are wrong, and often not finite, where a kernel is larger than its map.
    plan = train_plan(precision="bf16", **budget)
    assert chosen(plan, depth=4)[0] == "bf16"
    precision, note = chosen(plan, depth=2)
    assert precision == "fp32"
    assert "larger than its map" in note
