"""Teaching boxes: what is numbered, matched and lost; and that a training of a detection is repeatable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.geometry import Geometry
from models.networks import build
from models.networks.retinanet import anchors, pyramid_strides
from models.package import WEIGHTS_FILE, ModelPackage
from tasks.imaging.boxes import image_boxes
from tasks.imaging.detector import detect
from tasks.imaging.predictor import Predictor
from tasks.imaging.sliding import Whole
from tasks.stores.packages import read_package
from tasks.train.boxes import (
    BoxObjective,
    boxes_in,
    focal_loss,
    generalised_iou,
    match_anchors,
    numbered_lesions,
)
from tasks.train.loop import TrainEvent
from tests.tasks.train.lesions import lesions
from tests.tasks.train.samples import World, trained


def run(world: World, folder: Path, **more: object) -> ModelPackage:
    return trained(world, folder, staged=folder / "staged", key="a" * 32, **more)


def test_lesions_are_numbered_by_class_and_small_ones_left_out_unless_cut() -> None:
    mask = np.zeros((1, 12, 12), np.uint8)
    mask[0, 2:5, 2:5] = 1
    mask[0, 7, 7] = 1  # small
    mask[0, 11, 3] = 1  # small, but cut by the border: it may be large
    mask[0, 8:11, 8:11] = 2
    boxes, classes = boxes_in(torch.from_numpy(numbered_lesions(mask, 4))[0])
    assert classes.tolist() == [0, 0, 1]
    assert boxes.tolist() == [[2, 2, 5, 5], [11, 3, 12, 4], [8, 8, 11, 11]]


def test_a_patch_without_a_lesion_has_no_boxes_and_still_a_loss() -> None:
    world = lesions("retinanet")
    network = build(world.plan.network)
    outputs = network(torch.randn(2, 1, 16, 32, 32))
    loss = BoxObjective(world.plan)(outputs, torch.zeros(2, 16, 32, 32, dtype=torch.int32))
    assert loss > 0
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("side", [1.0, 3.0, 9.0, 40.0])
def test_no_lesion_is_too_small_or_too_large_to_be_learnt(side: float) -> None:
    plan = lesions("retinanet").plan.network
    places = anchors([torch.zeros(1, 7, 16, 16, 16), torch.zeros(1, 7, 8, 8, 8)], pyramid_strides(plan))
    boxes = torch.tensor([[4.0, 6, 5, 4 + side, 6 + side, 5 + side], [25.0, 25, 25, 28, 28, 28]])
    chosen, lesion = match_anchors(places, boxes)
    assert set(lesion.tolist()) == {0, 1}
    assert len(set(chosen.tolist())) == len(chosen), "an anchor learns one lesion"


def test_generalised_overlap_agrees_with_monai() -> None:
    from monai.data.box_utils import box_pair_giou

    rng = torch.Generator().manual_seed(0)
    low, size = torch.rand(2, 20, 3, generator=rng) * 10, torch.rand(2, 20, 3, generator=rng) * 8 + 0.5
    first, second = torch.cat((low, low + size), dim=-1)
    theirs = box_pair_giou(first, second)
    torch.testing.assert_close(generalised_iou(first, second), theirs, atol=1e-5, rtol=1e-5)


def test_focal_loss_is_the_papers() -> None:
    logits, targets = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    expected = -0.25 * (1 - p[0]) ** 2 * p[0].log() - 0.75 * p[1] ** 2 * (1 - p[1]).log()
    assert focal_loss(logits, targets) == pytest.approx(float(expected))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_tiles_see_is_what_the_whole_image_shows(dimensions: int) -> None:
    """A lesion in several tiles is told once, where it is; mirrored copies agree."""

    class Bright(torch.nn.Module):
        """Sure of an anchor-sized box wherever the middle of a place is bright."""

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            levels = []
            for stride in (2, 4):
                pool = torch.nn.functional.max_pool2d if x.ndim == 4 else torch.nn.functional.max_pool3d
                bright = pool(x, stride, ceil_mode=True)
                levels.append(
                    torch.cat(
                        (bright * 12 - 6 - stride, bright.repeat(1, 2 * (x.ndim - 2), *[1] * (x.ndim - 2)) * 0), 1
                    )
                )
            return levels

    world = lesions("retinanet", dimensions=dimensions)
    plan = world.plan
    shape = (1, 70, 50) if dimensions == 2 else (24, 70, 50)
    image = torch.zeros(1, *shape)
    points = [(0 if dimensions == 2 else 12, 31, 17), (0 if dimensions == 2 else 5, 60, 40)]
    for z, y, x in points:
        image[0, z, y, x] = 1
    for mirror in ((), ("y", "x")):
        found = image_boxes(
            Bright(),
            Whole(image),
            plan.model_copy(update={"infer": plan.infer.model_copy(update={"mirror_axes": mirror})}),
        )
        assert len(found) == 2
        for point in points:
            away = np.abs(found.centres - (np.array(point) + 0.5)).max(axis=1)
            assert away.min() < 2


@pytest.mark.parametrize("method", ["components", "retinanet"])
def test_the_same_recipe_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    world = lesions(method, epochs=2, steps_per_epoch=3, train=4, validation=2)
    first, second = (run(world, tmp_path / name) for name in ("a", "b"))
    assert first.weights_sha256 == second.weights_sha256
    assert first.threshold == second.threshold
    assert 0 < (first.threshold or 0) < 1


def test_interrupted_and_resumed_it_is_as_if_it_never_was(tmp_path: Path) -> None:
    import threading

    world = lesions("retinanet", epochs=2, steps_per_epoch=4, train=4, validation=2)
    whole = run(world, tmp_path / "whole")
    cancel = threading.Event()

    def stop(event: TrainEvent) -> None:
        cancel.set()

    with pytest.raises(SystemExit):
        run(world, tmp_path / "parts", on_event=stop, cancel=cancel)
    resumed = run(world, tmp_path / "parts")
    assert any("resumed" in note for note in resumed.training.notes)
    ours, theirs = (load_file(tmp_path / name / "staged" / WEIGHTS_FILE) for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.threshold == resumed.threshold


@pytest.mark.parametrize(("method", "fallback"), [("components", 0.5), ("retinanet", 0.3)])
def test_without_validation_lesions_a_threshold_is_there(tmp_path: Path, method: str, fallback: float) -> None:
    world = lesions(method, epochs=1, steps_per_epoch=2, train=3, validation=0)
    assert run(world, tmp_path).threshold == fallback


def test_a_given_threshold_is_taken(tmp_path: Path) -> None:
    world = lesions("retinanet", epochs=1, steps_per_epoch=2, train=3, validation=1)
    recipe = world.recipe.model_copy(update={"evaluate": world.recipe.evaluate.model_copy(update={"threshold": 0.7})})
    assert run(dataclasses.replace(world, recipe=recipe), tmp_path).threshold == 0.7


@pytest.mark.parametrize(("method", "parts"), [("components", 1), ("retinanet", 2)])
def test_folds_find_lesions_together(tmp_path: Path, method: str, parts: int) -> None:
    """Masks are averaged voxel by voxel, boxes meet when they are found."""
    world = lesions(method, epochs=1, steps_per_epoch=2, train=4, validation=2, folds=2)
    run(world, tmp_path)
    predictor = Predictor(*read_package(tmp_path / "staged"), "cpu")
    assert len(predictor.parts) == parts
    image = np.asarray(world.store.open("spots1").image[0], np.float32)
    found = detect(predictor, image, Geometry.from_spacing(image.shape, (1, 1, 1)))
    assert (np.diff(found.confidence) <= 0).all()
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()
