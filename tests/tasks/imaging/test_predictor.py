"""The warm predictor: any grid in, a mask on that grid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import MemoryExhaustedError, PackageError, PixelError, SettingsError
from models.geometry import Geometry
from models.networks import build
from models.package import Environment, ModelPackage, TrainingRecord
from models.plan import NetworkPlan
from tasks.imaging.device import choose_device
from tasks.imaging.predictor import Predictor
from tests.tasks.train.samples import World, balls, pictures

SHAPE = (18, 24, 20)

pytestmark = pytest.mark.usefixtures("one_thread")


def described(world: World, **changes: object) -> ModelPackage:
    record = TrainingRecord(
        steps=1, epochs=1, seconds=1.0, stopped_by="epochs", device="cpu", precision="fp32", batch_size=2,
        parameters=1, best_metric=0.5, best_step=1,
    )  # fmt: skip
    values: dict[str, object] = {
        "key": "k1",
        "recipe": world.recipe,
        "plan": world.plan,
        "dataset": "d",
        "weights_sha256": "0" * 64,
        "training": record,
        "environment": Environment(nocturne="0", code="c", python="3", torch="2", platform="p"),
    }
    return ModelPackage.model_validate(values | changes)


class Levels(nn.Module):
    """Class 1 where the image is about 1, class 2 where it is about 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(3.0).view(1, 3, *[1] * (x.ndim - 2))
        return -20 * (x - levels) ** 2


def segmenter(**changes: object) -> Predictor:
    """A predictor whose network reads the class off the value."""
    package = described(balls(), **changes)
    predictor = Predictor(package, build(package.plan.network).state_dict(), "cpu", precision="fp32")
    predictor.network = Levels()
    return predictor


def scene() -> np.ndarray:
    image = np.zeros(SHAPE, np.float32)
    image[4:12, 6:18, 4:14] = 1
    image[6:10, 9:15, 6:12] = 2
    image[15:17, 2:5, 15:18] = 1  # an island
    return image


def grid(spacing: tuple[float, float, float], shape: tuple[int, int, int] = SHAPE) -> Geometry:
    return Geometry.from_spacing(shape, spacing, (5.0, -7.0, 11.0))


def test_the_mask_lies_on_the_images_own_grid() -> None:
    found = segmenter().segment(scene(), grid((1.0, 1.0, 1.0)))
    assert found.labels.dtype == np.uint8
    assert np.array_equal(found.labels, scene().astype(np.uint8))
    assert all(c > 0.9 for c in found.confidence)


def test_another_spacing_is_resampled_there_and_back() -> None:
    found = segmenter().segment(scene(), grid((2.0, 1.5, 0.8)))
    assert found.labels.shape == SHAPE
    body, truth = found.labels > 0, scene() > 0
    assert 2 * (body & truth).sum() / (body.sum() + truth.sum()) > 0.93


def test_islands_go_only_where_the_package_says_so() -> None:
    kept = segmenter(keep_largest=("ball",)).segment(scene(), grid((1.0, 1.0, 1.0))).labels
    assert (kept[15:17] == 0).all()
    assert np.array_equal(kept[:14], scene()[:14].astype(np.uint8))


def test_a_class_that_is_not_found_has_no_confidence() -> None:
    found = segmenter().segment(np.minimum(scene(), 1), grid((1.0, 1.0, 1.0)))
    assert found.confidence[1] == 0.0


def test_a_flat_network_goes_slice_by_slice() -> None:
    package = described(balls(dimensions=2))
    predictor = Predictor(package, build(package.plan.network).state_dict(), "cpu", precision="fp32")
    predictor.network = Levels()
    found = predictor.segment(scene(), grid((5.0, 1.0, 1.0)))
    assert np.array_equal(found.labels, scene().astype(np.uint8))


def test_classification_gives_one_probability_per_class() -> None:
    package = described(pictures())
    predictor = Predictor(package, build(package.plan.network).state_dict(), "cpu")
    image = np.random.default_rng(0).normal(size=(1, 40, 30)).astype(np.float32)
    chances = predictor.classify(image, grid((1.0, 0.2, 0.2), (1, 40, 30)))
    assert chances.shape == (2,)
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(chances, predictor.classify(image, grid((1.0, 0.2, 0.2), (1, 40, 30))))


class TestRefusals:
    def test_weights_of_another_network(self) -> None:
        package = described(balls())
        other = NetworkPlan(name="unet", dimensions=3, in_channels=1, out_channels=3, features=(4, 4))
        with pytest.raises(PackageError, match="k1"):
            Predictor(package, build(other).state_dict(), "cpu")

    def test_an_image_with_other_channels(self) -> None:
        with pytest.raises(PixelError):
            segmenter().segment(np.stack([scene(), scene()]), grid((1.0, 1.0, 1.0)))

    def test_too_little_memory_may_be_tried_again_later(self) -> None:
        class Large(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

        predictor = segmenter()
        predictor.network = Large()
        with pytest.raises(MemoryExhaustedError, match="k1"):
            predictor.segment(scene(), grid((1.0, 1.0, 1.0)))

    def test_a_gpu_that_is_not_there(self) -> None:
        if torch.cuda.is_available():
            assert choose_device("cuda").type == "cuda"
        else:
            with pytest.raises(SettingsError):
                choose_device("cuda")
