"""Maps of what a network looked at light up where a planted square decides, and change with its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.networks import build
from tasks.imaging.explainer import WITHOUT_PLACE
from tasks.imaging.saliency import PLACES, alike, gradient_maps, occlusion, peaked, shuffled, spatial_layer
from tests.models.networks.variants import SIZES, Variant, planar, variants

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFIERS = [v for v in variants() if not v.segments]


class Bright(nn.Module):
    """Class 1 where there is a bright place: a threshold, the mean over the map, and its sign."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
        self.edge, self.activation = convolution(1, 2, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.edge.weight.fill_(1 / 3**dimensions)
            self.edge.bias.fill_(-0.8)
            self.head.weight.copy_(torch.tensor([[-9.0, -9.0], [9.0, 9.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.activation(self.edge(x)).flatten(2).mean(dim=2))
        return logits


def square(dimensions: int) -> tuple[Tensor, np.ndarray]:
    """An image (1, 1, …) with a bright box in faint noise, and where it is."""
    size = (24, 20) if dimensions == 2 else (10, 16, 12)
    inside = np.zeros(size, bool)
    inside[tuple(slice(n // 2, n // 2 + max(3, n // 4)) for n in size)] = True
    noise = np.random.default_rng(0).normal(0, 0.05, size)
    return torch.from_numpy((inside * 2 + noise).astype(np.float32))[None, None], inside


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_map_lights_up_where_the_square_decides(dimensions: int) -> None:
    image, inside = square(dimensions)
    network = Bright(dimensions)
    cam, sharp = gradient_maps(network, image, 1)
    for values in (cam, sharp, occlusion(network, image, 1)):
        assert values.shape == inside.shape
        assert values.min() >= 0
        assert inside[np.unravel_index(values.argmax(), values.shape)], "the peak lies in the square"
        assert values[inside].mean() > 2.5 * values[~inside].mean()
    cam, sharp = gradient_maps(network, image, 0)
    assert cam.max() == sharp.max() == 0, "nothing there speaks for the other class"


def test_the_network_stays_as_it_was() -> None:
    image, _ = square(2)
    network = Bright(2).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradient_maps(network, image, 1)
    assert network.activation.inplace
    assert not image.requires_grad
    assert not network.edge._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("size", [1, 5, 16, 33])
def test_occlusion_covers_everything_in_a_bounded_number_of_passes(dimensions: int, size: int) -> None:
    passes = 0

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += len(x)
            total = x.flatten(1).mean(dim=1, keepdim=True)
            return torch.cat((-total, total), dim=1)

    shape = (size,) * (dimensions - 1) + (12,)
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    values = occlusion(Counting(), image, 1)
    assert values.shape == shape
    assert np.isfinite(values).all(), "each place is covered at least once"
    assert passes <= 1 + PLACES[dimensions] ** dimensions


def test_independent_classes_are_asked_one_by_one() -> None:
    image, inside = square(2)
    values = occlusion(Bright(2), image, 1, "sigmoid")
    assert values[inside].mean() > 5 * values[~inside].mean()


@pytest.mark.parametrize("variant", planar(CLASSIFIERS), ids=lambda v: f"{v.name}-{v.dimensions}")
def test_each_network_has_a_map_or_says_why_not(variant: Variant) -> None:
    torch.manual_seed(0)
    network, image = build(variant.plan()).eval(), variant.images(SIZES, 1)
    if variant.name in WITHOUT_PLACE:
        assert len(WITHOUT_PLACE[variant.name]) > 10
        return
    cam, sharp = gradient_maps(network, image, 1)
    assert cam.shape == sharp.shape == SIZES[variant.dimensions]
    assert np.isfinite(cam).all()
    assert np.isfinite(sharp).all()
    other, _ = gradient_maps(network, image, 2)
    assert not np.array_equal(cam, other), "the classes differ in what speaks for them"


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit"])
def test_volumes_have_maps_too(name: str) -> None:
    torch.manual_seed(0)
    variant = Variant(name, 3)
    cams = [gradient_maps(build(variant.plan()).eval(), variant.images(SIZES, 1), target)[0] for target in range(3)]
    assert all(cam.shape == SIZES[3] for cam in cams)
    assert max(cam.max() for cam in cams) > 0


def test_the_layer_is_the_last_with_places_and_used_once() -> None:
    image, _ = square(2)
    assert spatial_layer(Bright(2), image) == "activation"
    variant = Variant("resnet50", 2)
    layer = spatial_layer(build(variant.plan()).eval(), variant.images(SIZES, 1))
    assert not layer.endswith("relu"), "an activation that a unit uses again and again"
    with pytest.raises(ValueError, match="places"):
        spatial_layer(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), image)


def test_shuffled_weights_are_the_same_numbers_elsewhere() -> None:
    network = Variant("cnn", 2)
    torch.manual_seed(0)
    built = build(network.plan())
    one, same, other = shuffled(built, 1), shuffled(built, 1), shuffled(built, 2)
    for a, b, c in zip(*(n.parameters() for n in (built, one, same)), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
        assert torch.equal(b, c)
    assert any(not torch.equal(b, d) for b, d in zip(one.parameters(), other.parameters(), strict=True))


def test_likeness_goes_by_rank_and_a_flat_map_is_like_nothing() -> None:
    ramp = np.arange(60, dtype=np.float32).reshape(6, 10)
    assert alike(ramp, ramp**3) == pytest.approx(1)
    assert alike(ramp, -ramp) == pytest.approx(-1)
    assert alike(ramp, np.zeros_like(ramp)) == 0
    assert peaked(ramp).max() == 1
    assert peaked(np.zeros((2, 2), np.float32)).max() == 0
