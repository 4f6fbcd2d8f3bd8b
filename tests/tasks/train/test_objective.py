from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tasks.train.objective import cross_entropy, deeply_supervised, dice_ce, focal, objective_for, soft_dice
from tests.tasks.train.samples import balls, pictures


def perfect(targets: torch.Tensor, classes: int) -> torch.Tensor:
    return 30 * functional.one_hot(targets, classes).movedim(-1, 1).float()


TARGETS = torch.randint(0, 3, (2, 4, 6, 6), generator=torch.Generator().manual_seed(0))


def test_a_perfect_answer_costs_nothing_and_a_wrong_one_much() -> None:
    right = dice_ce(perfect(TARGETS, 3), TARGETS)
    wrong = dice_ce(perfect((TARGETS + 1) % 3, 3), TARGETS)
    assert float(right) == pytest.approx(0, abs=1e-4)
    assert float(wrong) > 10


def test_dice_pools_the_batch() -> None:
    # One sample without the class, one with it right: pooled, that is still perfect.
    targets = torch.zeros(2, 8, 8, dtype=torch.long)
    targets[0, 2:5, 2:5] = 1
    assert float(soft_dice(perfect(targets, 2), targets)) == pytest.approx(0, abs=1e-4)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([1.0, 2.0, 5.0])
    assert torch.allclose(focal(logits, TARGETS, gamma=0.0), cross_entropy(logits, TARGETS), atol=1e-6)
    weighted = focal(logits, TARGETS, weights=weights, gamma=0.0)
    assert torch.allclose(weighted, cross_entropy(logits, TARGETS, weights=weights), atol=1e-6)
    assert float(focal(logits, TARGETS)) < float(cross_entropy(logits, TARGETS))


def test_deep_supervision_weighs_coarser_heads_by_halves() -> None:
    fine, coarse = torch.tensor(0.0), torch.tensor(3.0)
    heads = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
    seen = []

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(targets.shape))
        return fine if logits.shape[-1] == 4 else coarse

    total = deeply_supervised(loss, heads, torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert float(total) == pytest.approx(1.0)
    assert seen == [(1, 4, 4), (1, 2, 2)]


@pytest.mark.parametrize("loss", ["dice_ce", "ce", "focal"])
def test_a_plan_names_its_loss(loss: str) -> None:
    objective = objective_for(balls(loss=loss, class_weights=(0.5, 1.0, 2.0)).plan, torch.device("cpu"))
    logits = torch.randn(2, 3, 4, 6, 6, requires_grad=True)
    objective(logits, TARGETS.to(torch.uint8)).backward()
    assert logits.grad is not None


def test_classes_weigh_in_classification() -> None:
    logits, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    plain = objective_for(pictures().plan, torch.device("cpu"))(logits, targets)
    heavy = objective_for(pictures(class_weights=(1.0, 9.0)).plan, torch.device("cpu"))(logits, targets)
    assert float(heavy) > float(plain)
