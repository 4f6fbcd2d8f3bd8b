"""Learning without labels: any network restores what was hidden or tells places apart, exactly and for good."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.networks import NETWORKS
from models.package import ModelPackage
from models.plan import NetworkPlan
from models.recipe import Start
from tasks.train.loop import Termination
from tasks.train.patches import Cases
from tasks.train.transfer.pretraining import HidingSampler, ViewSampler, contrast, hide, pretrain, pretraining_plan
from tasks.train.transfer.pupil import Pupil
from tests.tasks.train import samples
from tests.tasks.train.samples import NO_AUGMENT, MemoryStore, World, ball, balls, pictures

CPU = torch.device("cpu")
WAYS = ("masked", "contrastive")


class _KilledError(Exception):
    """Stands for the end of the process."""


def world(kind: str, way: str, *, epochs: int = 4, share: float = 0.5) -> World:
    start = Start(source="pretraining", pretraining=way, pretraining_share=share)  # type: ignore[arg-type]
    made = balls(train=3, epochs=epochs, augment=NO_AUGMENT) if kind == "balls" else pictures(train=6, epochs=epochs)
    plan = made.plan.model_copy(update={"train": made.plan.train.model_copy(update={"start": start})})
    return dataclasses.replace(made, plan=plan)


def with_unlabelled(made: World, count: int = 4) -> tuple[World, list[str]]:
    """Cases without masks, as the store holds them for pretraining."""
    more = {f"free{i}": dataclasses.replace(ball(50 + i), mask=None, locations={}) for i in range(count)}
    return dataclasses.replace(made, store=MemoryStore({**made.store.cases, **more})), list(more)


def trained(made: World, folder: Path, unlabelled: list[str], **more: object) -> ModelPackage:
    return samples.trained(made, folder, unlabelled=unlabelled, **more)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["balls", "pictures"])
def test_a_model_is_pretrained_and_says_so(tmp_path: Path, kind: str, way: str) -> None:
    made = world(kind, way)
    made, free = with_unlabelled(made) if kind == "balls" else (made, [])
    package = trained(made, tmp_path, free)
    cases = len(made.dataset.split("train")) + len(free)
    notes = " ".join(package.training.notes)
    assert f"10 steps of {way} pretraining on {cases} images, loss" in notes
    assert "the budget is 2 epochs in place of 4 epochs" in notes
    assert package.training.epochs == 2
    assert package.started_from


def test_pretraining_learns_to_restore(tmp_path: Path) -> None:
    made, free = with_unlabelled(world("balls", "masked", epochs=40), 6)
    cases = Cases(made.store, [*(r.volume for r in made.dataset.split("train")), *free])
    origin = pretrain(made.plan, cases, CPU, tmp_path, "k", Termination())
    losses = [float(x) for x in origin.told.rpartition("loss ")[2].split(" → ")]
    assert losses[1] < 0.8 * losses[0]
    assert not any("heads" in name for name in origin.weights)
    assert any("down.2" in name for name in origin.weights)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_pretraining_ends_as_an_uninterrupted_one(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, free = with_unlabelled(world("balls", way, epochs=2), 2)
    whole = trained(made, tmp_path / "whole", free)
    assert trained(made, tmp_path / "again", free).weights_sha256 == whole.weights_sha256
    sampler = HidingSampler if way == "masked" else ViewSampler
    batch = sampler.batch

    def killed(self: HidingSampler, step: int, size: int) -> object:
        if step == 3:
            raise _KilledError
        return batch(self, step, size)  # type: ignore[arg-type]

    # A checkpoint after each step, and none for the kill itself.
    eager = made.plan.train.model_copy(update={"checkpoint_minutes": 1e-9})
    made = dataclasses.replace(made, plan=made.plan.model_copy(update={"train": eager}))
    monkeypatch.setattr(sampler, "batch", killed)
    with pytest.raises(_KilledError):
        trained(made, tmp_path / "cut", free)
    monkeypatch.undo()
    assert list((tmp_path / "cut").rglob("step-*.json"))
    resumed = trained(made, tmp_path / "cut", free)
    assert resumed.weights_sha256 == whole.weights_sha256


class TestPupils:
    """Every kind of network of the table learns something that it keeps."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        "name", ["unet", "resenc", "resnet", "cnn", "resnet18", "mil", "cnn_gru", "graph", "vit", "unetr"]
    )
    def test_a_network_is_a_pupil(self, name: str, way: str) -> None:
        entry = NETWORKS[name]
        dimensions = min(entry.dimensions)
        patch = (1, 32, 32) if dimensions == 2 else (8, 32, 32)
        plan = NetworkPlan.model_validate(
            {
                "name": name,
                "dimensions": dimensions,
                "in_channels": 2,
                "out_channels": 3,
                "features": tuple(12 * min(2**i, 4) for i in range(len(entry.own_widths) or 3)),
                "size": patch if entry.positions else None,
            }
        )
        torch.manual_seed(0)
        segments = "segmentation" in entry.kinds
        pupil = Pupil(plan, patch, restores=way == "masked", segments=segments)
        images = torch.rand(4, 2, *patch[3 - dimensions :])
        given = pupil(images)
        assert given.shape == (images.shape if way == "masked" else (4, 128))
        assert given.float().var() > 0
        kept = pupil.kept(pupil.state_dict())
        own = dict(pupil.network.state_dict())
        assert kept.keys() <= own.keys()
        assert sum(t.numel() for t in kept.values()) > 0.25 * sum(t.numel() for t in own.values())


class TestBatches:
    def test_hidden_cubes_are_empty_and_told(self) -> None:
        made = balls()
        cases = Cases(made.store, list(made.store.cases))
        batch = HidingSampler(cases, (8, 16, 16), 3).batch(5, 4)
        hidden = batch.targets[:, -1:] > 0
        assert batch.targets.shape == (4, 2, 8, 16, 16)
        assert (batch.images[hidden] == 0).all()
        assert torch.equal(batch.images[~hidden], batch.targets[:, :-1][~hidden])
        assert 0.4 < float(hidden.float().mean()) < 0.8
        again = HidingSampler(cases, (8, 16, 16), 3).batch(5, 4)
        assert torch.equal(batch.images, again.images)

    def test_cubes_fit_any_patch(self) -> None:
        for patch in ((1, 28, 28), (3, 17, 50), (64, 64, 64), (2, 2, 2)):
            hidden = hide(np.random.default_rng(0), patch)
            assert hidden.shape == patch
            assert 0 < hidden.mean() <= 1

    def test_two_views_show_about_the_same_place(self) -> None:
        made = balls()
        cases = Cases(made.store, list(made.store.cases))
        batch = ViewSampler(cases, (8, 16, 16), 4, 3).batch(0, 4)
        assert batch.images.shape == (8, 1, 8, 16, 16)
        assert ViewSampler(cases, (8, 16, 16), 4, 3).batch(0, 2).images.shape[0] == 4
        assert batch.targets.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]

    def test_contrast_is_least_where_the_two_views_of_a_place_agree(self) -> None:
        places = torch.eye(4, 16)
        agree, mixed = torch.cat((places, places)), torch.cat((places, places.roll(1, 0)))
        numbers = torch.arange(4).repeat(2)
        assert contrast(agree, numbers) < 0.1 < contrast(mixed, numbers)

    def test_nothing_of_the_labels_objective_is_left(self) -> None:
        plan = pretraining_plan(world("pictures", "contrastive", share=0.25).plan)
        assert plan.train.epochs == 1
        assert (plan.train.mixup, plan.train.patience, plan.train.optimiser) == (0, None, "adamw")
