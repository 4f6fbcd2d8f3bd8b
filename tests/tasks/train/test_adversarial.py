"""Two networks that learn from each other: towards the real images, bit for bit the same, and on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.plan import Plan
from models.recipe import Synthesis
from tasks.imaging.likeness import fixed_features, frechet
from tasks.train.adversarial import AdversarialLearner
from tasks.train.checkpoint import Checkpoints
from tasks.train.loop import Termination, fit
from tasks.train.patches import Cases, ImageSampler
from tasks.train.teaching.synthesis import Likeness
from tests.tasks.train.samples import MemoryCase, MemoryStore, pictures

CPU = torch.device("cpu")
COUNT = 24


def bump(seed: int, target: int) -> MemoryCase:
    """A wide bump (class 0) or a narrow one somewhere near the middle."""
    across, down = np.random.default_rng(seed).uniform(5, 10, 2)
    y, x = np.mgrid[:16, :16]
    width = 2.0 if target else 5.0
    return MemoryCase(np.exp(-((y - down) ** 2 + (x - across) ** 2) / (2 * width**2))[None, None].astype(np.float16))


def planned(loss: str = "hinge", epochs: int = 4) -> Plan:
    plain = pictures(epochs=epochs).plan
    size = (1, 16, 16)
    return plain.model_copy(
        update={
            "kind": "synthesis",
            "synthesis": Synthesis(loss=loss, latent=8),  # type: ignore[arg-type]
            "network": plain.network.model_copy(
                update={"name": "gan", "features": (8, 16), "strides": (), "kernels": (), "size": size, "latent": 8}
            ),
            "train": plain.train.model_copy(
                update={"learning_rate": 1e-3, "batch_size": 8, "precision": "fp32", "ema": 0.9, "patch_size": size}
            ),
        }
    )


def cases() -> tuple[Cases, tuple[int, ...]]:
    targets = tuple(i % 2 for i in range(COUNT))
    store = MemoryStore({str(i): bump(i, target) for i, target in enumerate(targets)})
    return Cases(store, [str(i) for i in range(COUNT)]), targets


def learnt(plan: Plan, folder: Path, stop: Termination | None = None) -> AdversarialLearner:
    known, targets = cases()
    learner = AdversarialLearner(plan, CPU)
    fit(learner, ImageSampler(known, targets, True, 0), None, Checkpoints(folder, "k"), termination=stop)
    return learner


@pytest.mark.parametrize("loss", ["hinge", "wgan-gp"])
def test_made_images_come_nearer_to_the_real_ones(loss: str, tmp_path: Path) -> None:
    known, targets = cases()
    real = fixed_features(torch.from_numpy(np.stack([known[i].image for i in range(COUNT)]))[:, :, 0])
    before, after = AdversarialLearner(planned(loss), CPU), learnt(planned(loss, epochs=24), tmp_path)

    def gap(learner: AdversarialLearner) -> float:
        with torch.inference_mode():
            made = learner.average.draw(torch.tensor(targets), torch.Generator().manual_seed(0))
        return frechet(fixed_features(made), real)

    assert gap(after) < 0.5 * gap(before)


def test_two_runs_give_the_same_weights(tmp_path: Path) -> None:
    first, second = (learnt(planned(), tmp_path / name).average.state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    plan = planned()
    whole = learnt(plan, tmp_path / "whole").average.state_dict()

    class AfterSome(Termination):
        asked = 0

        def __call__(self) -> bool:
            self.asked += 1
            return self.asked > 7

    with pytest.raises(SystemExit):
        learnt(plan, tmp_path / "parts", AfterSome())
    parts = learnt(plan, tmp_path / "parts").average.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_validation_tells_good_images_from_noise() -> None:
    known, targets = cases()
    judge = Likeness(known, targets, planned(), CPU)

    class Drawn(torch.nn.Module):
        def __init__(self, real: bool) -> None:
            super().__init__()
            self.real = real

        def draw(self, classes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            if self.real:
                return torch.from_numpy(np.stack([bump(100 + i, int(c)).image[:, 0] for i, c in enumerate(classes)]))
            return torch.zeros(len(classes), 1, 16, 16)

    assert judge(Drawn(True), "fp32", lambda: False) > judge(Drawn(False), "fp32", lambda: False)
