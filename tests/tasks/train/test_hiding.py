"""Channels that are missing stay empty; others are hidden now and then, the same ones in a resumed training."""

from __future__ import annotations

import torch

from models.plan import Normalisation
from tasks.train.hiding import empty_channels, hide_channels
from tasks.train.learner import Learner
from tasks.train.patches import Batch
from tests.tasks.train.samples import balls


def images() -> torch.Tensor:
    torch.manual_seed(0)
    made = torch.randn(40, 3, 4, 5, 6)
    made[::4, 2] = 0
    return made


def test_hides_by_chance_but_never_the_reference() -> None:
    made = images()
    empty = empty_channels(made, 3)
    assert empty.sum(0).tolist() == [0, 0, 10]
    noisy = made + 1
    seen = [hide_channels(noisy, empty, 0.3, seed=1, step=step) for step in range(30)]
    gone = torch.stack([empty_channels(one, 3) for one in seen]).float().mean((0, 1))
    assert gone[0] == 0
    assert abs(float(gone[1]) - 0.3) < 0.06
    assert abs(float(gone[2]) - (0.25 + 0.75 * 0.3)) < 0.06
    assert torch.equal(seen[3], hide_channels(noisy, empty, 0.3, seed=1, step=3))
    assert not torch.equal(seen[3], seen[4])
    kept = hide_channels(noisy, empty, 0.0, seed=1, step=0)
    assert torch.equal(kept[:, :2], noisy[:, :2])
    assert (kept[::4, 2] == 0).all()


def test_the_learner_shows_the_network_what_is_left() -> None:
    world = balls(train=2, validation=0, channel_dropout=0.5)
    plan = world.plan.model_copy(
        update={
            "channels": ("a", "b"),
            "network": world.plan.network.model_copy(update={"in_channels": 2}),
            "prepare": world.plan.prepare.model_copy(
                update={"channels": 2, "normalisation": (Normalisation(scheme="none"),) * 2}
            ),
        }
    )
    learner = Learner(plan, torch.device("cpu"))
    batch = Batch(images()[:8, :2, :, :4, :4].repeat(1, 1, 2, 4, 4), torch.zeros(8, 8, 16, 16, dtype=torch.uint8))
    shown: list[torch.Tensor] = []
    learner.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].detach().clone()))
    learner.settle(batch)
    shown.clear()
    for step in range(6):
        assert learner.step(batch, step / 6) is not None
    hidden = torch.stack([empty_channels(one, 3) for one in shown])
    assert not hidden[..., 0].any()
    assert 0.2 < hidden[..., 1].float().mean() < 0.8
