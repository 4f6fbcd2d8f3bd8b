"""A generator makes images of the planned size, each of its class, the same from the same numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from models.errors import RecipeError
from models.networks import build
from models.networks.adversarial import Adversaries
from models.plan import NetworkPlan

SIZES = [(2, (1, 13, 10)), (2, (1, 16, 16)), (3, (5, 9, 8))]


def gan(dimensions: int, size: tuple[int, int, int] | None) -> NetworkPlan:
    return NetworkPlan(
        name="gan",
        dimensions=dimensions,  # type: ignore[arg-type]
        in_channels=2,
        out_channels=3,
        features=(4, 8, 8),
        size=size,
        latent=8,
    )


def built(dimensions: int, size: tuple[int, int, int]) -> Adversaries:
    torch.manual_seed(0)
    network = build(gan(dimensions, size))
    assert isinstance(network, Adversaries)
    return network


@pytest.mark.parametrize(("dimensions", "size"), SIZES)
def test_made_images_have_the_planned_size(dimensions: int, size: tuple[int, int, int]) -> None:
    network = built(dimensions, size)
    classes = torch.tensor([0, 2, 1])
    made = network.draw(classes, torch.Generator().manual_seed(1))
    assert made.shape == (3, 2, *size[3 - dimensions :])
    assert torch.equal(made, network.draw(classes, torch.Generator().manual_seed(1)))
    scores = network(made)
    assert scores.shape == (3, 3)
    scores.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters() if p.requires_grad)


def test_the_class_changes_the_image() -> None:
    network = built(2, (1, 16, 16)).eval()
    with torch.inference_mode():
        images = [network.draw(torch.tensor([c]), torch.Generator().manual_seed(1)) for c in (0, 1)]
    assert not torch.allclose(*images)


def test_weights_survive_safetensors() -> None:
    first, second = built(2, (1, 16, 16)).eval(), build(gan(2, (1, 16, 16))).eval()
    second.load_state_dict(load(save(first.state_dict())))
    images = torch.rand(2, 2, 16, 16)
    with torch.inference_mode():
        assert torch.equal(first(images), second(images))


def test_a_generator_without_a_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="size"):
        build(gan(2, None))
