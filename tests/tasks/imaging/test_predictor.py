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
from models.plan import NetworkPlan, Normalisation, PreparePlan
from tasks.imaging import sliding
from tasks.imaging.components import keep_largest
from tasks.imaging.device import choose_device
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.imaging.resample import resample_to_grid
from tasks.imaging.restore import SLAB_BYTES, Restorer
from tasks.imaging.sliding import sliding_window
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


def turned(geometry: Geometry) -> Geometry:
    """The same voxels as sagittal slices from the right, the rows upside down."""
    matrix = geometry.matrix[:, [2, 0, 1, 3]] @ np.diag([1.0, -1.0, 1.0, 1.0])
    return Geometry(geometry.shape, tuple(map(tuple, matrix)))


class TestInBands:
    """Prepared, predicted and restored slice by slice, an image gets the labels that the whole at once would get."""

    @pytest.mark.parametrize("whole_bytes", [0, 1 << 30])
    @pytest.mark.parametrize(
        ("shape", "spacing", "prepare", "tile"),
        [
            ((37, 24, 20), (1.0, 1.0, 1.0), {}, (8, 16, 16)),
            ((37, 24, 20), (2.0, 0.8, 0.9), {}, (8, 16, 16)),
            ((61, 19, 23), (0.6, 1.3, 1.3), {"crop": "nonzero"}, (12, 8, 16)),
            ((41, 33, 17), (0.5, 0.7, 0.7), {"crop": "nonzero"}, (7, 9, 11)),
            ((9, 30, 30), (5.0, 0.8, 0.8), {"anisotropic": True}, (8, 16, 16)),
            ((5, 7, 6), (1.0, 1.5, 1.0), {}, (16, 16, 16)),
            ((1, 40, 40), (1.0, 0.7, 0.7), {}, (4, 16, 16)),
            ((70, 21, 26), (1.0, 0.8, 0.8), {"dimensions": 2}, (1, 16, 16)),
            ((33, 20, 20), (3.0, 1.0, 1.0), {"dimensions": 2, "spacing": None}, (1, 16, 16)),
        ],
    )
    def test_labels_are_those_of_the_whole(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        prepare: dict,
        tile: tuple[int, int, int],
        whole_bytes: int,
    ) -> None:
        package = described(balls(dimensions=prepare.get("dimensions", 3)), keep_largest=("core",))
        how = PreparePlan(
            **{
                "dimensions": 3,
                "spacing": (1.0, 1.0, 1.0),
                "normalisation": (Normalisation(scheme="zscore"),),
                **prepare,
            }
        )
        infer = package.plan.infer.model_copy(update={"tile": tile, "mirror_axes": ("x",)})
        plan = package.plan.model_copy(update={"prepare": how, "infer": infer})
        package = package.model_copy(update={"plan": plan})
        torch.manual_seed(1)
        weights = build(plan.network).state_dict()
        predictor = Predictor(package, weights, "cpu", precision="fp32", whole_bytes=whole_bytes)
        image = np.random.default_rng(0).normal(300, 50, shape).astype(np.float32)
        image[:, :3], image[:, :, -2:] = 0, 0
        for geometry in (grid(spacing, shape), turned(grid(spacing, shape))):
            found = predictor.segment(image, geometry)
            prepared = prepare_image(image, geometry, how)
            array = torch.from_numpy(prepared.array)
            whole = sliding_window(predictor.network, array, tile, 0.5, mirror_axes=("x",), precision="fp32").numpy()
            seen = np.stack([resample_to_grid(p, prepared.geometry, geometry, order=1) for p in whole])
            ranked, labels = np.sort(seen, axis=0), seen.argmax(0).astype(np.uint8)
            # Where two classes are as good as equal, the last digits may decide otherwise.
            clear = ranked[-1] - ranked[-2] > 1e-4
            expected = keep_largest(labels, [2])
            if clear.all():
                np.testing.assert_array_equal(found.labels, expected)
            assert (found.labels == expected)[clear].mean() > 0.999
            sure = [float(seen[v][labels == v].mean()) if (labels == v).any() else 0.0 for v in (1, 2)]
            assert found.confidence == pytest.approx(sure, abs=1e-3)
            assert len(np.unique(labels)) > 1

    def test_a_long_scan_takes_a_band_of_probabilities_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        added: list[int] = []
        held: list[int] = []
        room, take = sliding._room, Restorer.take

        def counted_room(classes: int, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
            made = room(classes, size, device)
            added.append(made.nbytes)
            return made

        def counted_take(restorer: Restorer, first: int, probabilities: np.ndarray) -> None:
            take(restorer, first, probabilities)
            held.append(sum(part.nbytes for _, part in restorer._way.held.parts))

        monkeypatch.setattr(sliding, "_room", counted_room)
        monkeypatch.setattr(Restorer, "take", counted_take)
        package = described(balls())
        infer = package.plan.infer.model_copy(update={"tile": (16, 64, 64), "overlap": 0.25})
        package = package.model_copy(update={"plan": package.plan.model_copy(update={"infer": infer})})
        weights = build(package.plan.network).state_dict()
        predictor = Predictor(package, weights, "cpu", precision="fp32", whole_bytes=1 << 20)
        predictor.network = Levels()
        image = np.zeros((1000, 128, 128), np.int16)
        image[20:80, 30:90, 30:90] = 1
        image[940:960, 40:70, 40:70] = 2
        found = predictor.segment(image, grid((1.0, 0.8, 0.8), image.shape))
        assert (found.labels == image).mean() > 0.999
        depth, in_plane = 16, 102 * 102  # a tile's slices, at 1 mm
        assert added == [3 * 4 * depth * in_plane]
        assert max(held) < SLAB_BYTES
        assert max(added) + max(held) < 0.15 * 3 * 4 * image.size  # of all probabilities in float32


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
