from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from torch.nn import functional

from tasks.train.boundary import boundary, signed_distance
from tasks.train.objective import (
    Objective,
    at,
    binary,
    cross_entropy,
    deeply_supervised,
    dice_bce,
    dice_ce,
    dice_focal,
    focal,
    objective_for,
    soft_dice,
    tversky,
    unpacked,
)
from tests.tasks.train.overlapping import regions_world
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


# -- against MONAI ------------------------------------------------------------------------------------------------

LOGITS = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
BITS = torch.randint(0, 8, (2, 4, 6, 6), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def column(targets: torch.Tensor) -> torch.Tensor:
    return targets[:, None].long()


def test_dice_and_cross_entropy_are_monais() -> None:
    monai = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    assert float(dice_ce(LOGITS, TARGETS)) == pytest.approx(float(monai(LOGITS, column(TARGETS))), abs=1e-5)


@pytest.mark.parametrize("errors", [(0.3, 0.7), (0.5, 0.5), (1.0, 0.2)])
def test_tversky_is_monais(errors: tuple[float, float]) -> None:
    alpha, beta = errors
    monai = TverskyLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, alpha=alpha, beta=beta)
    assert float(tversky(LOGITS, TARGETS, errors=errors)) == pytest.approx(
        float(monai(LOGITS, column(TARGETS))), abs=1e-5
    )
    regions = TverskyLoss(sigmoid=True, batch=True, alpha=alpha, beta=beta)(LOGITS, unpacked(BITS, LOGITS))
    assert float(tversky(LOGITS, BITS, errors=errors, activation="sigmoid")) == pytest.approx(float(regions), abs=1e-5)


def test_focal_is_monais() -> None:
    # MONAI takes the mean over the classes as well, of which all but one are 0.
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)
    assert float(focal(LOGITS, TARGETS)) == pytest.approx(3 * float(monai(LOGITS, column(TARGETS))), abs=1e-5)
    both = soft_dice(LOGITS, TARGETS) + focal(LOGITS, TARGETS)
    assert torch.allclose(dice_focal(LOGITS, TARGETS), both)


def test_regions_are_monais_dice_and_binary_cross_entropy() -> None:
    truth = unpacked(BITS, LOGITS)
    assert torch.equal((truth * torch.tensor([1, 2, 4]).view(1, 3, 1, 1, 1)).sum(1).to(torch.uint8), BITS)
    overlap = DiceLoss(sigmoid=True, batch=True)(LOGITS, truth)
    plain = functional.binary_cross_entropy_with_logits(LOGITS, truth)
    assert float(dice_bce(LOGITS, BITS)) == pytest.approx(float(overlap + plain), abs=1e-5)


def test_positives_weigh_by_class() -> None:
    logits, truth = torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])
    assert float(binary(logits, truth, weights=torch.tensor([1.0, 5.0]))) == pytest.approx(3 * math.log(2))
    assert float(binary(logits, 1 - truth, weights=torch.tensor([1.0, 5.0]))) == pytest.approx(math.log(2))
    sure = torch.tensor([[30.0, 30.0]])
    assert float(binary(sure, truth, smoothing=0.2)) == pytest.approx(3.0, abs=1e-4), "certainty costs"


# -- shares ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 5.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_of_one_class_are_that_class(weights: torch.Tensor | None, smoothing: float) -> None:
    logits, classes = LOGITS[:, :, 0, 0].movedim(1, 2).reshape(-1, 3), TARGETS[:, 0, 0].reshape(-1)
    shares = functional.one_hot(classes, 3).float()
    hard = cross_entropy(logits, classes, weights=weights, smoothing=smoothing)
    assert torch.allclose(cross_entropy(logits, shares, weights=weights, smoothing=smoothing), hard, atol=1e-6)
    assert torch.allclose(focal(logits, shares, weights=weights), focal(logits, classes, weights=weights), atol=1e-6)
    half = 0.5 * functional.cross_entropy(logits, classes) + 0.5 * functional.cross_entropy(logits, (classes + 1) % 3)
    blended = 0.5 * shares + 0.5 * functional.one_hot((classes + 1) % 3, 3)
    assert torch.allclose(cross_entropy(logits, blended), half, atol=1e-6)


# -- boundary -------------------------------------------------------------------------------------------------------


def test_distances_are_signed_and_in_millimetres() -> None:
    inside = np.zeros((1, 1, 8), bool)
    inside[..., 2:6] = True
    map_ = signed_distance(inside, (5.0, 1.0, 1.0))[0, 0] * np.linalg.norm((5, 1, 8))
    assert map_ == pytest.approx([1.5, 0.5, -0.5, -1.5, -1.5, -0.5, 0.5, 1.5])
    along = signed_distance(inside.transpose(0, 2, 1), (5.0, 3.0, 1.0))
    assert np.abs(along).max() > np.abs(signed_distance(inside.transpose(0, 2, 1), (5.0, 1.0, 1.0))).max()
    assert not signed_distance(np.ones((2, 2, 2), bool), (1, 1, 1)).any()
    assert not signed_distance(np.zeros((2, 2, 2), bool), (1, 1, 1)).any()


def test_what_is_far_from_the_border_costs_more() -> None:
    targets = torch.zeros(1, 16, 16, dtype=torch.uint8)
    targets[:, 4:12, 4:8] = 1

    def said(*columns: int) -> torch.Tensor:
        found = torch.zeros(1, 16, 16, dtype=torch.long)
        found[:, 4:12, list(columns)] = 1
        return boundary(perfect(found, 2), targets)

    right, near, far = said(4, 5, 6, 7), said(4, 5, 6, 7, 8), said(4, 5, 6, 7, 14)
    assert float(right) < float(near) < float(far)
    assert float(said()) == pytest.approx(0, abs=1e-6)
    logits = torch.zeros(1, 2, 16, 16, requires_grad=True)
    boundary(logits, targets).backward()
    assert logits.grad is not None
    towards = -logits.grad[0, 1]
    assert bool((towards[4:12, 4:8] > 0).all()), "a step raises what is inside"
    assert bool((towards[:, 12:] < 0).all()), "and lowers what is far outside"


def test_the_boundary_rises_over_the_budget() -> None:
    objective = objective_for(balls(loss="dice_ce_boundary").plan, torch.device("cpu"))
    steady = dice_ce(LOGITS, TARGETS)
    heads = [LOGITS, LOGITS[..., ::2, ::2, ::2]]
    assert torch.allclose(at(objective, 0.0)(LOGITS, TARGETS), steady)
    rising = boundary(LOGITS, TARGETS, (1.0, 1.0, 1.0))
    assert torch.allclose(at(objective, 0.25)(LOGITS, TARGETS), steady + 0.25 * rising)
    gained = at(objective, 1.0)(heads, TARGETS) - at(objective, 0.0)(heads, TARGETS)
    assert torch.allclose(gained, rising), "the finest resolution alone"
    assert torch.allclose(objective(LOGITS, TARGETS), at(objective, 1.0)(LOGITS, TARGETS))
    plain = objective_for(balls().plan, torch.device("cpu"))
    assert at(plain, 0.5) is plain


# -- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dice_ce", "ce", "focal", "dice_focal", "tversky", "dice_ce_boundary"])
def test_steps_along_the_gradient_find_the_mask(loss: str) -> None:
    targets = torch.zeros(1, 4, 12, 12, dtype=torch.uint8)
    targets[:, 1:3, 3:9, 3:9] = 1
    targets[:, 1:3, 5:7, 5:7] = 2
    descend(objective_for(balls(loss=loss).plan, torch.device("cpu")), targets, lambda x: x.argmax(1) == targets)


@pytest.mark.parametrize("loss", ["dice_bce", "bce", "tversky"])
def test_steps_along_the_gradient_find_regions(loss: str) -> None:
    targets = torch.zeros(1, 4, 12, 12, dtype=torch.uint8)
    targets[:, 1:3, 3:9, 3:9] |= 1
    targets[:, 1:3, 5:11, 5:11] |= 6
    objective = objective_for(regions_world(loss=loss).plan, torch.device("cpu"))
    descend(objective, targets, lambda x: (x > 0) == (unpacked(targets, x) > 0))


def descend(
    objective: Objective, targets: torch.Tensor, right: Callable[[torch.Tensor], torch.Tensor], steps: int = 40
) -> None:
    logits = torch.zeros(1, 3, *targets.shape[1:], requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = objective(logits, targets)
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]
    assert float(right(logits.detach()).float().mean()) > 0.99


@pytest.mark.parametrize("loss", ["bce", "dice_bce"])
def test_gradients_are_finite_far_from_the_truth(loss: str) -> None:
    logits = torch.full((1, 3, 2, 4, 4), 80.0, requires_grad=True)
    objective_for(regions_world(loss=loss).plan, torch.device("cpu"))(logits, torch.zeros(1, 2, 4, 4)).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
